"""One of two processes of a cluster; prints in JSON what it observed.

`test_two_processes.py` starts it in two ways:

    cluster_member.py rows:FOLDER    makes, reads and gathers global batches
    cluster_member.py agree          makes decisions that all processes share

In both, one process then dies while the other waits for it in a collective:
process 1 after `rows`, process 0 after `agree`.
"""

import argparse
import dataclasses
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import local_cluster
import numpy as np

from pure_jax.host.distributed import (
  cluster,
  global_batch,
  processes,
  watchdog,
)
from pure_jax.parallel import sharding

NUM_ROWS = 16


def rows_of_batch(rows):
  """Values that name their row; float64 thirds do not survive float32."""
  return {
    "ids": rows[:, None] * 10 + np.arange(3),
    "thirds": rows / 3,
    "odd": rows % 2 == 1,
  }


def exchange_rows(layout):
  """Makes, reads and gathers one batch; returns who made and owns which row."""
  rows_sharding = sharding.batch_sharding(layout)
  made_rows = []

  def make(rows):
    made_rows.append(rows.tolist())
    return {"ids": rows_of_batch(rows)["ids"].astype(np.int32)}

  batch = global_batch.make_rows(rows_sharding, NUM_ROWS, make)
  owned = global_batch.owned_rows(rows_sharding, NUM_ROWS)
  own_rows = owned[jax.process_index()]
  ids = global_batch.read_rows(batch, own_rows)["ids"]
  np.testing.assert_array_equal(ids, rows_of_batch(own_rows)["ids"])
  gathered = global_batch.gather_rows(
    rows_sharding, NUM_ROWS, rows_of_batch(own_rows)
  )
  for name, expected in rows_of_batch(np.arange(NUM_ROWS)).items():
    np.testing.assert_array_equal(gathered[name], expected)
    assert gathered[name].dtype == expected.dtype
  np.testing.assert_array_equal(
    global_batch.read_everywhere(batch)["ids"],
    rows_of_batch(np.arange(NUM_ROWS))["ids"],
  )
  key = global_batch.replicate(sharding.replicated(layout), jax.random.key(7))
  drawn = global_batch.read_everywhere(
    jax.random.key_data(jax.random.fold_in(key, 3))
  )
  expected = jax.random.key_data(jax.random.fold_in(jax.random.key(7), 3))
  np.testing.assert_array_equal(drawn, expected)
  return {"made": made_rows, "owned": [rows.tolist() for rows in owned]}


def decode_continuously(layout):
  """Samples five prompts twice, in slots that finished sequences free.

  Each process decides for itself which prompt takes which slot. If the two
  decided differently, rows would be mixed up, or wait for ever.

  Returns:
    Lengths of the completions.
  """
  import small_models  # Here: a process that only dies needs no model.

  from pure_jax.models import policy
  from pure_jax.rollout import generation, sampling
  from pure_jax.rollout.engine_programs import EngineConfig
  from pure_jax.training import rollouts
  from pure_jax.types import Prompts

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
  expected = jax.device_get(
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

  def put(x, x_sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, x_sharding, lambda i: x[i])

  weights = sharding.weight_shardings(policy.declare_policy(model), layout)
  replicated = sharding.replicated(layout)
  rollout = generate(
    jax.tree.map(put, params, weights),
    jax.tree.map(lambda x: put(x, replicated), prompts),
    global_batch.replicate(replicated, key),
  )
  for name in ("tokens", "completion_mask", "truncated", "prompt_tokens"):
    np.testing.assert_array_equal(
      global_batch.read_everywhere(getattr(rollout, name)),
      getattr(expected, name),
    )
  np.testing.assert_allclose(
    global_batch.read_everywhere(rollout.sampled_logp),
    expected.sampled_logp,
    rtol=1e-5,
    atol=1e-5,
  )
  return expected.completion_mask.sum(axis=1).tolist()


def check_shared_folders(folder):
  """Tries a folder per process, then one of both; returns the errors."""
  processes.SHARED_FOLDER_SECONDS = 1.0
  errors = []
  for path in (f"{folder}/{jax.process_index()}", folder):
    os.makedirs(path, exist_ok=True)
    try:
      errors.append(processes.require_shared_folder(path))
    except processes.ProcessesError as error:
      errors.append(str(error))
  return errors


def agree():
  """Returns results, or errors if one process cannot go on."""
  index, results = jax.process_index(), []

  def fail():
    raise OSError("no room")

  for attempt in (
    lambda: processes.raise_on_any_error("no disk" if index == 1 else None),
    lambda: processes.require_same(f"config {index}", "The configs"),
    lambda: processes.on_process_zero(fail),
    lambda: processes.require_same("config", "The configs"),
    lambda: processes.on_process_zero(lambda: index),
    lambda: processes.broadcast_from_zero(lambda: {"first": index}),
  ):
    try:
      results.append(attempt())
    except (processes.ProcessesError, OSError) as error:
      results.append(str(error))
  return results


def observe_rows(folder):
  """Runs every check of global batches on three layouts."""
  devices = jax.devices()
  layouts = [
    sharding.make_layout(2, 4),
    sharding.make_layout(4, 1, 2, rules="tensor"),
    # Its two groups of neighbours have devices of both processes.
    sharding.make_layout(
      2, 1, 4, rules="tensor", devices=[*devices[::2], *devices[1::2]]
    ),
  ]
  global_batch.warm_up_collectives([layout.mesh for layout in layouts])
  return {
    "rows": [*map(exchange_rows, layouts)],
    "lengths": decode_continuously(layouts[2]),
    "folders": check_shared_folders(folder),
  }


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("what")
  parser.add_argument("--coordinator")
  parser.add_argument("--processes", type=int)
  parser.add_argument("--process_id", type=int)
  given = parser.parse_args()
  what, _, folder = given.what.partition(":")
  config = cluster.ClusterConfig(
    given.coordinator, given.processes, given.process_id
  )
  with watchdog.join_cluster(config):
    observed = observe_rows(folder) if what == "rows" else agree()
    # Gloo, a library in C++, prints to stdout as well.
    print(local_cluster.OBSERVED + json.dumps(observed), flush=True)
    # So that neither dies before the other one has printed.
    processes.raise_on_any_error(None)
    if jax.process_index() == (1 if what == "rows" else 0):
      print(f"{local_cluster.DIED}{time.time()}", flush=True)
      os.kill(os.getpid(), signal.SIGKILL)
    # Wait in a collective for a process that is gone.
    rows_sharding = sharding.batch_sharding(sharding.make_layout(2, 4))
    batch = global_batch.make_rows(rows_sharding, 8, lambda rows: rows)
    global_batch.read_everywhere(batch)


if __name__ == "__main__":
  main()
