"""A run whose responses take turns, end with a text, and are filtered.

python -m pytest -m slow tests/scripts/test_rollout_runs.py
"""

import math

import pytest
import smoke_run

TURNS = ("--config.rl.engine.slots=8", "--config.rl.engine.sync_interval=5")


@pytest.mark.slow
def test_a_killed_run_goes_on_with_other_turns(finished, tmp_path):
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
    (tmp_path / "rl" / "2").exists, tmp_path, start, *options, *TURNS
  )
  done = smoke_run.run(
    *("train_pure.py", tmp_path, start, *options),
    "--config.rl.engine.slots=16",
  )
  assert done.returncode == 0, done.stderr
  assert "donated" not in done.stderr
  found = [row for row in smoke_run.rows(tmp_path) if row["stage"] == "rl"]
  assert [row["step"] for row in found] == [1, 2, 3, 4]
  assert all(math.isfinite(row["policy_loss"]) for row in found)
  assert all(row["skipped_updates"] == 0 for row in found)
