"""Plans of rollouts whose rows take turns: every program, and the largest."""

import dataclasses

import jax
import numpy as np
import plan
import pytest
from absl import flags
from configs import arithmetic
from ml_collections import config_flags

from pure_jax.parallel import sharding
from pure_jax.rollout import engine_programs, generation
from pure_jax.rollout.slots import Slots
from pure_jax.runs.planning import engine as plan_engine
from pure_jax.runs.planning import execution_plan, report, search
from pure_jax.runs.planning.hlo.collectives import Collective
from pure_jax.runs.planning.hlo.costs import Costs
from pure_jax.runs.planning.hlo.loops import Loop
from pure_jax.runs.settings.conversion import settings_from_config

# Two of 8 prompts on each of four row shards: they begin in four rounds.
TURNS = {"rl.engine.slots": 8, "rl.engine.sync_interval": 5, "rl.prompts": 8}


@pytest.fixture(scope="module")
def settings():
  config = arithmetic.get_config("smoke")
  config.update_from_flattened_dict(TURNS)
  return settings_from_config(config).for_platform("cpu")


@pytest.fixture(scope="module")
def planned(settings):
  """(the plan, its stage of rollouts, the planner), on four devices."""
  planner = plan.Planner(settings, None)
  planner.devices = planner.devices[:4]
  way = search.config_way(settings, planner.shapes, planner.devices)
  found = planner.plan(way, ("rollout",))
  return found, found.stages[0], planner


def way_of(layout, rows):
  return execution_plan.Way(
    execution_plan.Layouts(layout, layout, layout, layout), 1, 1, rows
  )


def test_every_program_is_compiled_and_the_largest_is_told(planned):
  """A plan of the loop alone would not see the cache twice."""
  found, stage, _ = planned
  parts = {part.name: part for part in stage.compiled.parts}
  names = ["start", "unshare", "grow", "decode", "refill", "shrink"]
  assert list(parts) == names
  assert stage.compiled.total == max(part.total for part in parts.values())
  # Old and new keys and values.
  cache = stage.cache_bytes
  growing = parts["grow"].memory
  assert growing.outputs >= cache and growing.arguments > cache / 2
  assert growing.aliased == 0
  # Rows that go on and those that they were taken from.
  taking = parts["shrink"].memory
  assert taking.arguments >= cache and taking.outputs >= cache / 2
  text = report.as_text(found, None)
  assert "8 at a time drawn in turns" in text
  assert "Total of each: start" in text
  assert "note: planned of a step: rollout, no more." in text
  assert report.as_json(found, None)["stages"][0]["compiled"]["parts"]


@pytest.mark.parametrize(
  ("rows", "chunk", "expected"),
  [
    # Prompts wait: they are copied before the last growth of the ring.
    (
      8,
      5,
      {"unshare": 20, "grow": 20, "decode": 31, "refill": 31, "shrink": 31},
    ),
    (8, 16, {"unshare": 16, "grow": 16, "decode": 31, "refill": 31}),
    # The first ring is the longest.
    (8, 40, {"unshare": 31, "decode": 31, "refill": 31}),
    # None waits: prompts may be shared until half of the rows have ended.
    (32, 5, {"unshare": 31, "grow": 20, "decode": 31, "shrink": 31}),
  ],
)
def test_programs_are_compiled_where_they_need_the_most(
  settings, rows, chunk, expected
):
  """A shorter ring than the engine's would leave memory out."""
  rl = dataclasses.replace(
    settings.rl,
    sampler=dataclasses.replace(settings.rl.sampler, max_new_tokens=32),
    engine=dataclasses.replace(settings.rl.engine, sync_interval=chunk),
  )
  settings = dataclasses.replace(settings, rl=rl)
  way = way_of(sharding.make_layout(), rows)
  shapes = plan.plan_programs.shapes_of(settings)
  stages = plan.plan_programs.Programs(settings, shapes, way).stages()
  (stage,) = (one for one in stages if one.name == "rollout")
  walk, outputs, rings = plan_engine._walk(stage), None, {}
  while True:
    try:
      name, arguments, _ = walk.send(outputs)
    except StopIteration:
      break
    program = getattr(stage.programs, name)
    outputs = program.eval_shape(*arguments)
    for x in arguments:
      if isinstance(x, Slots):
        rings[name] = x.state.cache.ring_length
        is_shared = x.state.cache.prompt_mask is not None
        assert is_shared == (name == "unshare")
  assert expected.items() <= rings.items()
  assert ("refill" in rings) == (rows < 32)


def test_weights_that_a_program_is_not_called_with_are_there(planned):
  """While the cache grows; what decodes is called with them."""
  found, stage, _ = planned
  parts = {part.name: part for part in stage.compiled.parts}
  sampler = found.resident.sampler
  assert sampler > 0
  for name in ("unshare", "grow", "shrink"):
    assert sampler <= parts[name].beside < 2 * sampler, name
  assert parts["decode"].beside < sampler
  assert parts["decode"].memory.arguments > sampler + stage.cache_bytes


def test_what_takes_turns_computes_what_the_method_needs(planned):
  """All rounds, all chunks: one round of one chunk would be a twentieth."""
  _, stage, _ = planned
  compiled = 4 * stage.compiled.costs.flops
  assert 0.75 < stage.model_flops / compiled <= 1.0


@pytest.mark.parametrize(
  ("prompts", "samples", "shards", "rows"),
  [(8, 4, 1, 7), (8, 4, 2, 17), (3, 2, 2, 64), (8, 2, 4, 1), (6, 3, 4, 60)],
)
def test_rows_at_a_time_are_those_that_begin(
  planned, prompts, samples, shards, rows
):
  """The engine's own rounding, of another number memory would be planned."""
  planner = planned[2]
  way = way_of(
    sharding.make_layout(data=shards, devices=jax.devices()[:shards]), rows
  )
  spec = engine_programs.EngineSpec(
    generation.GenerationSpec(planner.shapes.model, None),
    samples,
    engine_programs.EngineConfig(rows, 5),
    shards=shards,
  )
  begun = spec.num_starting_prompts(prompts) * samples
  assert way.rows_at_a_time(prompts, samples) == begun


def test_rows_are_halved_down_to_a_prompt_on_each_shard():
  layout = sharding.make_layout(data=2, devices=jax.devices()[:2])
  way, found = way_of(layout, 130), []
  while way is not None:
    found.append(way.rows_at_a_time(64, 8))
    way = way.smaller(64, 8)
  assert found == [128, 64, 32, 16]


@pytest.mark.parametrize(
  ("rows", "caches", "expected"),
  [(8, 1.6, 8), (8, 1.4, 4), (32, 2.1, 32), (32, 1.9, 16)],
)
def test_the_search_takes_fewer_rows_where_more_than_one_cache_does_not_fit(
  settings, rows, caches, expected
):
  """Room for one cache, which a plan of one loop needs, is not enough."""
  shapes = plan.plan_programs.shapes_of(settings)
  layout = sharding.make_layout()
  cache = plan.plan_estimates.cache_bytes(settings, shapes, layout, rows)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(search, "_spare_bytes", lambda *unused: caches * cache)
    (found, *_) = search.rollout_ways(
      settings, shapes, way_of(layout, rows), jax.devices()[:1]
    )
  assert (found.rollout_rows, found.rollout_parts) == (expected, 1)


def test_the_flags_of_rows_that_take_turns_are_a_config(settings):
  """Beside a config that draws in parts, too."""
  devices = jax.devices()
  way = dataclasses.replace(
    way_of(sharding.make_layout(data=8), 16), micro_batches=2
  )
  config = arithmetic.get_config("smoke")
  config.rl.rollout.batches = 2
  given = ["plan", *way.flags()]
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    "config", config, flag_values=values, sys_argv=given
  )
  values(given)
  read = settings_from_config(values.config)
  shapes = plan.plan_programs.shapes_of(settings)
  assert search.config_way(read, shapes, devices) == way


def test_costs_of_programs_that_run_several_times():
  loop = Loop("while", 3, "counted")
  one = Costs(2.0, 3.0, {"all-reduce": Collective(1, 8, 16)}, (loop,))
  two = Costs(5.0, 7.0, {"all-gather": Collective(1, 1, 1)}, ())
  found = plan_engine.add_costs(one, two, 1.5)
  assert (found.flops, found.hbm_bytes) == (9.5, 13.5)
  assert found.collectives["all-gather"] == Collective(1.5, 1.5, 1.5)
  found = plan_engine.add_costs(found, one, 2)
  assert found.collectives["all-reduce"] == Collective(3, 24, 48)
  assert found.loops == (loop, loop)


def test_what_is_in_memory_beside_a_program():
  mesh = sharding.make_layout(data=2, devices=jax.devices()[:2])
  split = jax.ShapeDtypeStruct(
    (4, 3), np.float32, sharding=sharding.batch_sharding(mesh)
  )
  whole = jax.ShapeDtypeStruct(
    (5,), np.int8, sharding=sharding.replicated(mesh)
  )
  held = [split, {"a": whole, "again": whole}]
  assert plan_engine.bytes_beside(held, ()) == 24 + 5
  assert plan_engine.bytes_beside(held, (split, 3)) == 5


def test_a_program_that_is_refused_ends_the_plan(planned, monkeypatch):
  """It does not fit, whatever the others need."""
  planner = planned[2]
  refused = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Used 41.50G of 31.25G hbm."
  )
  stages = plan.plan_programs.Programs(
    planner.settings, planner.shapes, way_of(sharding.make_layout(), 8)
  ).stages()
  (stage,) = (one for one in stages if one.name == "rollout")

  class Refused:
    def lower(self, *arguments):
      raise refused

  programs = dataclasses.replace(stage.programs, unshare=Refused())
  found = plan_engine.compile_stage(
    dataclasses.replace(stage, programs=programs), 1, None
  )
  assert found.memory is None and found.costs is None
  assert found.needed_bytes == 41.5 * 2**30
  assert [part.name for part in found.parts] == [
    "to_decoding_params",
    "start",
    "unshare",
  ]
