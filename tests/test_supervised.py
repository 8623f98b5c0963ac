"""The loop of a supervised stage stops where nothing is learnt any more."""

import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import supervised  # noqa: E402

from pure_jax.host.metrics import MetricsWriter  # noqa: E402
from pure_jax.training import train  # noqa: E402

LOG_EVERY = 3


def run_stage(folder, skipped, max_skipped=5):
  """A stage whose updates are skipped as told; the steps it logs, saves."""
  settings = types.SimpleNamespace(
    seed=0,
    progress=False,
    rl=types.SimpleNamespace(max_skipped_updates=max_skipped),
  )
  folder.mkdir(exist_ok=True)
  in_a_row = iter(skipped)

  def update(state, indices):
    assert len(indices) == 2
    count = next(in_a_row)
    loss = np.nan if count else 1.0
    return state, {"loss": loss, "skipped_in_a_row": jnp.int32(count)}

  state = train.new_state({"w": jnp.ones(2)}, optax.adam(0.1))
  with MetricsWriter(folder) as metrics:
    space = types.SimpleNamespace(
      settings=settings, start=folder, metrics=metrics
    )
    return supervised.run_steps(
      space, "prm_head", len(skipped), LOG_EVERY, state, update,
      num_examples=4, batch_size=2, tokens_per_example=1.0,
    )  # fmt: skip


def logged(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["step"] for line in lines]


def saved(folder):
  checkpoints = folder / "prm" / "checkpoints_prm_head"
  return sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())


def test_a_stage_stops_after_too_many_skipped_updates_in_a_row(tmp_path):
  skipped = [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
  with pytest.raises(FloatingPointError, match="prm_head, step 9: 6 updates"):
    run_stage(tmp_path, skipped)
  # The checkpoint is that of step 6, with 3 in a row: it is kept.
  assert logged(tmp_path) == [3, 6, 9] and saved(tmp_path) == [6]


def test_a_stage_without_any_update_stops_however_short_it_is(tmp_path):
  """Its weights would be judged: NaN scores, and somebody else's error."""
  with pytest.raises(FloatingPointError, match="step 2: 2 updates in a row"):
    run_stage(tmp_path, [1, 2])


def test_a_few_skipped_updates_are_survived(tmp_path):
  skipped = [1, 2, 3, 4, 0, 1, 2, 3, 4]
  state = run_stage(tmp_path, skipped)
  assert jax.tree.map(np.asarray, state.params)["w"].tolist() == [1, 1]
  assert logged(tmp_path) == [3, 6, 9] and saved(tmp_path) == [9]
