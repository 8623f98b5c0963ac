"""A run with continuous batching, stop texts and filters.

python -m pytest -m slow tests/scripts/test_rollout_runs.py
"""

import math

import pytest
import smoke_run

SLOTS = ("--config.rl.engine.slots=8", "--config.rl.engine.sync_interval=5")


@pytest.mark.slow
def test_a_killed_run_continues_with_other_slots(finished, tmp_path):
  start = f"--start={finished[0]}"
  options = (
    *(
      "--config.rl.sampler.min_p=0.05",
      "--config.rl.rollout.stop_on_boxed=true",
    ),
    *(
      "--config.rl.rollout.cache_dtype=bfloat16",
      "--config.rl.checkpoint_every=1",
    ),
  )
  assert smoke_run.kill(
    (tmp_path / "rl" / "2").exists, tmp_path, start, *options, *SLOTS
  )
  done = smoke_run.run(
    *("train_pure.py", tmp_path, start, *options),
    "--config.rl.engine.slots=16",
  )
  assert done.returncode == 0, done.stderr
  assert "donated" not in done.stderr
  iterations = [r for r in smoke_run.rows(tmp_path) if r["stage"] == "rl"]
  assert [row["step"] for row in iterations] == [1, 2, 3, 4]
  assert all(math.isfinite(row["policy_loss"]) for row in iterations)
  assert all(row["skipped_updates"] == 0 for row in iterations)
