"""One of two processes; says in JSON what it made of batches.

Started by the tests of `host.distributed.shared_rows`, `peers` and `processes`.
"""

import argparse
import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import small_models

from pure_jax.host.distributed import cluster, processes, shared_rows, watchdog
from pure_jax.models import policy
from pure_jax.parallel import sharding
from pure_jax.rollout import generation, sampling
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.training import rollouts
from pure_jax.types import Prompts

ROWS = 16


def batch(rows):
  """Values that name their row; float64 thirds do not survive float32."""
  return {
    "ids": rows[:, None] * 10 + np.arange(3),
    "thirds": rows / 3,
    "odd": rows % 2 == 1,
  }


def exchange(layout):
  """Makes, reads and gathers one batch."""
  place = sharding.batch_sharding(layout)
  asked = []

  def make(rows):
    asked.append(rows.tolist())
    return {"ids": batch(rows)["ids"].astype(np.int32)}

  made = shared_rows.make_rows(place, ROWS, make)
  shares = shared_rows.shares(place, ROWS)
  mine = shares[jax.process_index()]
  read = shared_rows.read_rows(made, mine)["ids"]
  np.testing.assert_array_equal(read, batch(mine)["ids"])
  whole = shared_rows.gather_rows(place, ROWS, batch(mine))
  for name, expected in batch(np.arange(ROWS)).items():
    np.testing.assert_array_equal(whole[name], expected)
    assert whole[name].dtype == expected.dtype
  everywhere = shared_rows.read_everywhere(made)["ids"]
  np.testing.assert_array_equal(everywhere, batch(np.arange(ROWS))["ids"])
  key = shared_rows.replicate(sharding.replicated(layout), jax.random.key(7))
  drawn = jax.random.fold_in(key, 3)
  drawn = shared_rows.read_everywhere(jax.random.key_data(drawn))
  alone = jax.random.key_data(jax.random.fold_in(jax.random.key(7), 3))
  np.testing.assert_array_equal(drawn, alone)
  return {"asked": asked, "shares": [share.tolist() for share in shares]}


def take_turns(layout):
  """Samples of five prompts, begun where others have ended: their lengths.

  Each process decides for itself which prompts begin in which places. If two
  decided otherwise, rows would be those of others, or wait for ever.
  """
  # Most of the time is XLA's, which optimises what runs for moments.
  jax.config.update("jax_disable_most_optimizations", True)
  # A vocabulary that four tensor shards divide.
  model = dataclasses.replace(small_models.TINY, num_layers=1, vocab_size=24)
  params = small_models.random_policy(model)
  sampler = sampling.SamplingConfig(
    max_new_tokens=9, pad_id=small_models.PAD, stop_ids=(14, 18, 19)
  )
  rng = np.random.default_rng(3)
  prompts = Prompts(
    *small_models.random_prompts(rng, rng.integers(1, 5, 5), 4, 24)
  )
  key = jax.random.key(6)
  alone = jax.device_get(
    jax.jit(generation.generate, static_argnums=1)(
      params,
      generation.GenerationSpec(model, sampler),
      jax.tree.map(lambda x: np.repeat(x, 2, axis=0), prompts),
      sampling.row_keys(key, jnp.arange(10)),
    )
  )
  generate = rollouts.make_engine(
    model, sampler, 2, layout, EngineConfig(slots=4, sync_interval=2)
  ).generate

  def everywhere(x, place):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, place, lambda part: x[part])

  places = sharding.weight_shardings(policy.declare_policy(model), layout)
  whole = sharding.replicated(layout)
  found = generate(
    jax.tree.map(everywhere, params, places),
    jax.tree.map(lambda x: everywhere(x, whole), prompts),
    shared_rows.replicate(whole, key),
  )
  for name in ("tokens", "completion_mask", "truncated", "prompt_tokens"):
    np.testing.assert_array_equal(
      shared_rows.read_everywhere(getattr(found, name)), getattr(alone, name)
    )
  np.testing.assert_allclose(
    shared_rows.read_everywhere(found.sampled_logp),
    alone.sampled_logp,
    rtol=1e-5,
    atol=1e-5,
  )
  return alone.completion_mask.sum(axis=1).tolist()


def share(folder):
  """Whether a folder of each process, then one of both, counts as shared."""
  index, said = jax.process_index(), []
  processes.SHARED_SECONDS = 1.0
  for path in (f"{folder}/{index}", folder):
    os.makedirs(path, exist_ok=True)
    try:
      said.append(processes.check_shared(path))
    except processes.ProcessesError as error:
      said.append(str(error))
  return said


def agree():
  """What a process is told when another one cannot go on."""
  index, said = jax.process_index(), []

  def fail():
    raise OSError("no room")

  for attempt in (
    lambda: processes.check_all("no disk" if index == 1 else None),
    lambda: processes.check_same(f"config {index}", "The configs"),
    lambda: processes.on_process_zero(fail),
    lambda: processes.check_same("config", "The configs"),
    lambda: processes.on_process_zero(lambda: index),
    lambda: processes.broadcast_from_zero(lambda: {"first": index}),
  ):
    try:
      said.append(attempt())
    except (processes.ProcessesError, OSError) as error:
      said.append(str(error))
  return said


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("what")
  parser.add_argument("--coordinator")
  parser.add_argument("--processes", type=int)
  parser.add_argument("--process_id", type=int)
  given = parser.parse_args()
  what = given.what.split(":")
  member = cluster.Membership(
    given.coordinator, given.processes, given.process_id
  )
  with watchdog.joined(member):
    if what[0] == "rows":
      devices = jax.devices()
      layouts = [
        sharding.make_layout(2, 4),
        sharding.make_layout(4, 1, 2, rules="tensor"),
        # Its two groups of neighbours have devices of both processes.
        sharding.make_layout(
          2, 1, 4, rules="tensor", devices=[*devices[::2], *devices[1::2]]
        ),
      ]
      shared_rows.warm_up_collectives([layout.mesh for layout in layouts])
      found = {"agree": agree(), "rows": [*map(exchange, layouts)]}
      found["turns"] = take_turns(layouts[2])
      found["share"] = share(what[1])
      print(json.dumps(found))
      return
    if what[0] == "agrees":
      print(json.dumps(agree()))
      return
    if jax.process_index() == int(what[1]):
      if what[0] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
      raise SystemExit(3)
    # For a part of a sum that never comes.
    place = sharding.batch_sharding(sharding.make_layout(2, 4))
    made = shared_rows.make_rows(place, 8, lambda rows: rows)
    shared_rows.read_everywhere(made)


if __name__ == "__main__":
  try:
    main()
  except SystemExit as left:
    watchdog.leave(left.code)
