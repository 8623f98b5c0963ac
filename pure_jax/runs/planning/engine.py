"""Compiles the parts of continuous batching, and finds the largest.

Each is compiled where it needs the most memory: every row is there, and the
ring of the cache is as long as it gets, but for the first prompts, which begin
with a short one, and for what is done before its last growth. Keys and values
are in memory one and a half times while the ring grows or half of the rows are
taken, and twice while prompts stop being shared, which is before the last
growth where prompts wait.
"""

import dataclasses
import math
import pathlib
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from pure_jax.rollout.scheduling import assign_free_slots
from pure_jax.runs.planning.compiler import CompiledStage, compile_program
from pure_jax.runs.planning.hlo.collectives import Collective
from pure_jax.runs.planning.hlo.costs import Costs
from pure_jax.runs.planning.stages import EngineStage, Stage

# (name, arguments, what is in memory meanwhile) -> outputs, all abstract.
_Walk = Generator[tuple[str, tuple[Any, ...], Any], Any, None]


def compile_stage(
  stage: Stage | EngineStage, devices: int, path: pathlib.Path | None = None
) -> CompiledStage:
  """Lowers, compiles and counts a stage, of one program or of several.

  Args:
    stage: what to compile.
    devices: that it is laid out over.
    path: of a gzip file to write the compiled program to; of several, each
      has a name of its own before ".txt".

  Returns:
    What came out.
  """
  if isinstance(stage, EngineStage):
    return compile_engine(stage, devices, path)
  return compile_program(stage, devices, path)[0]


def compile_engine(
  stage: EngineStage, devices: int, path: pathlib.Path | None = None
) -> CompiledStage:
  """Lowers, compiles and counts every part, up to one that is refused.

  Args:
    stage: what to compile.
    devices: that it is laid out over.
    path: see `compile_stage`.

  Returns:
    The memory of the part that needs the most, and the costs of a rollout
    whose responses are all at their longest.
  """
  found: list[CompiledStage] = []
  walk, outputs = _walk(stage), None
  while True:
    try:
      name, arguments, held = walk.send(outputs)
    except StopIteration:
      break
    where = path and path.with_name(path.name.replace(".txt", f"_{name}.txt"))
    part, outputs = compile_program(
      Stage(name, getattr(stage.programs, name), arguments), devices, where
    )
    beside = bytes_beside(held, arguments)
    found.append(dataclasses.replace(part, beside=beside))
    if outputs is None:
      break
  refused = found[-1] if outputs is None else None
  largest = refused or max(found, key=lambda part: part.total)
  return dataclasses.replace(
    largest,
    name=stage.name,
    seconds=sum(part.seconds for part in found),
    costs=None if refused else _costs(stage, found),
    parts=tuple(dataclasses.replace(part, costs=None) for part in found),
  )


def _walk(stage: EngineStage) -> _Walk:
  """The parts one after another, each of what others gave."""
  params, prompts, _ = stage.arguments
  total, longest = prompts.tokens.shape[0], stage.ring_length(stage.new_tokens)
  held, decoding = [params, prompts], params
  if stage.programs.to_decoding_params is not None:
    decoding = yield "to_decoding_params", (params,), held
    held.append(decoding)
  given = *stage.arguments, np.arange(stage.prompts, dtype=np.int32)
  ring = stage.ring_length(stage.chunk)
  places, results = yield "start", (*given, ring), held
  held.append(results)
  while stage.ring_length(2 * ring) < longest:
    ring = stage.ring_length(2 * ring)
  waits = stage.prompts < total
  if places.state.cache.prompt_mask is not None:
    places = _with_ring(places, ring if waits else longest)
    places = yield "unshare", (places,), held
  if ring < longest:
    yield "grow", (_with_ring(places, ring), longest), held
  places = _with_ring(places, longest)
  yield "decode", (decoding, places, results), held
  rows = stage.prompts * stage.samples
  if waits:
    free = assign_free_slots(
      np.ones(rows, bool), stage.shards, stage.samples, stage.prompts, total
    )
    again = *stage.arguments, free.prompt_ids, free.index, places, results
    yield "refill", again, held
  half = rows // stage.shards // 2
  if half:
    index = np.zeros((stage.shards, half), np.int32)
    yield "shrink", (places, index), held


def _with_ring(places, ring):
  """The same places, with another ring: abstract, where they are now."""
  cache = places.state.cache

  def cut(x):
    # The axis of slots comes third, behind rows and heads.
    shape = (*x.shape[:2], cache.ring_start + ring, *x.shape[3:])
    return x.update(shape=shape)

  keys, values = jax.tree.map(cut, (cache.keys, cache.values))
  mask = cache.mask.update(shape=(cache.mask.shape[0], cache.ring_start + ring))
  cache = cache.replace(keys=keys, values=values, mask=mask)
  return places.replace(state=places.state.replace(cache=cache))


def bytes_beside(held: Any, arguments: Any) -> int:
  """What is in memory though a function is not called with it.

  Args:
    held: tree of abstract arrays with shardings.
    arguments: of the function, in which some of them are.

  Returns:
    Bytes on one device.
  """
  given = {id(leaf) for leaf in jax.tree.leaves(arguments)}
  others = {id(leaf): leaf for leaf in jax.tree.leaves(held)}
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for name, leaf in others.items()
    if name not in given
  )


def _costs(stage: EngineStage, parts: list[CompiledStage]) -> Costs:
  """Those of all parts, as often as they run at most."""
  rounds = -(-stage.arguments[1].tokens.shape[0] // stage.prompts)
  often = {
    "decode": rounds * (stage.new_tokens - 1) / stage.chunk,
    "refill": rounds - 1,
    # All that were shorter cost together about as much as the last.
    "grow": 2,
    "shrink": 0,
  }
  total = Costs(0.0, 0.0, {}, ())
  for part in parts:
    total = add_costs(total, part.costs, often.get(part.name, 1))
  return total


def add_costs(total: Costs, more: Costs, times: float) -> Costs:
  """A program's costs after those of others.

  Args:
    total: of the others.
    more: of the program.
    times: that it runs.

  Returns:
    Their sum.
  """
  collectives = dict(total.collectives)
  for kind, found in more.collectives.items():
    scaled = Collective(*(times * x for x in dataclasses.astuple(found)))
    collectives[kind] = collectives.get(kind, Collective()) + scaled
  return Costs(
    total.flops + times * more.flops,
    total.hbm_bytes + times * more.hbm_bytes,
    collectives,
    total.loops + more.loops,
  )
