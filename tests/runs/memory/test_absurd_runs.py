"""Scripts with absurd numbers, in processes of their own.

python -m pytest -m slow tests/runs/memory/test_absurd_runs.py
"""

import os
import subprocess
import time

import pytest
import smoke_run

BILLION = 10**9
SECONDS = 60  # Until a script has refused a number.
GIB = 2**30
REFUSED = (
  *("rl.sampler.max_new_tokens", "prm.score.max_steps", "rl.prompts"),
  *("world.max_operations", "rl.eval_prompts", "prm.eval_prompts"),
  *("model.width", "rl.lora.rank", "rl.packed_tokens", "sft.demonstrations"),
  *("model.num_layers", "prm.labelled", "prm.policy_samples"),
)
# Numbers that are as good as smaller ones.
HARMLESS = (
  *("sft.log_every", "prm.log_every", "rl.eval_every", "rl.samples_every"),
  *("rl.checkpoint_every", "rl.checkpoints_kept", "rl.max_skipped_updates"),
  *("rl.generations", "rl.length_buckets", "prm.length_multiple"),
  *("rl.sampler.top_k", "rl.engine.slots", "rl.engine.sync_interval"),
  *("world.value_max", "rl.optim.warmup_steps", "rl.credit.baseline_length"),
  *("rl.old_logp.check_every", "rl.benchmark_samples", "rl.optim.decay_steps"),
)


def run(workdir, *options):
  """Runs a smoke run: (status, stderr, seconds, most bytes resident)."""
  log = workdir.with_suffix(".log")
  begin = time.monotonic()
  with log.open("w") as stderr:
    process = subprocess.Popen(
      smoke_run.command("train_pure.py", workdir, *options),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=stderr,
      env=smoke_run.environment(),
    )
    _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  seconds = time.monotonic() - begin
  return process.returncode, log.read_text(), seconds, usage.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.parametrize("field", REFUSED)
def test_a_billion_of_a_size_is_refused_at_once(field, tmp_path):
  status, stderr, seconds, resident = run(
    tmp_path / "run",
    f"--config.{field}={BILLION}",
    "--config.rl.micro_batches=2",
  )
  assert status == 1, stderr
  (line,) = stderr.splitlines()
  assert line.startswith("error: ") and line.endswith(".")
  assert field.rpartition(".")[2] in line
  assert not (tmp_path / "run").exists()
  assert seconds < SECONDS and resident < GIB


@pytest.mark.slow
def test_a_billion_of_what_is_no_size_changes_nothing_but_time(tmp_path):
  options = [f"--config.{field}={BILLION}" for field in HARMLESS]
  options.append(f"--config.rl.optim.decay_steps={2 * BILLION}")
  status, stderr, _, resident = run(tmp_path / "run", *options)
  assert status == 0, stderr
  assert resident < 2 * GIB
  assert (tmp_path / "run" / "summary.json").exists()
