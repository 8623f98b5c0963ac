"""The scripts as processes: started, signalled, and what they leave."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from checkout import ROOT

from pure_jax.host.checkpoints.checkpointer import Checkpoints

CONFIG = ROOT / "experiments" / "configs" / "arithmetic.py"
# 20 problems: RL, 8 at a time, begins a new epoch in its third iteration.
FEW_PROBLEMS = (
  "--config.sft.demonstrations=20",
  "--config.prm.policy_prompts=20",
  "--config.prm.policy_samples=12",
  "--config.prm.evaluate_head=true",
  "--config.rl.samples_every=1",
)


def command(script, workdir, *options):
  """The words of a command line."""
  return [
    sys.executable,
    str(ROOT / "experiments" / script),
    f"--config={CONFIG}:smoke",
    f"--workdir={workdir}",
    *FEW_PROBLEMS,
    *options,
  ]


def environment(**changes):
  """Of every script, so that runs which are compared are compiled alike.

  Without LLVM's optimiser: they compile much and compute little.
  """
  return os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | changes


def run(script, workdir, *options, **changes):
  """Runs a script to its end, with variables added to the environment."""
  return subprocess.run(
    command(script, workdir, *options),
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=400,
    check=False,
    env=environment(**changes),
  )


def signal_when(is_time, number, script, workdir, *options):
  """Starts a script and signals it at a moment; (exit status, stderr).

  The status is the script's own where it ended before.
  """
  process = subprocess.Popen(
    command(script, workdir, *options),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env=environment(),
  )
  deadline = time.monotonic() + 300
  while process.poll() is None and not is_time():
    assert time.monotonic() < deadline
    time.sleep(0.0005)
  process.send_signal(number)
  _, stderr = process.communicate(timeout=300)
  return process.returncode, stderr


def rows(workdir, name="metrics.jsonl"):
  """Rows without what measures time."""
  lines = (workdir / name).read_text().splitlines()
  return [
    {
      key: value
      for key, value in json.loads(line).items()
      if not key.endswith(("seconds", "_per_second"))
    }
    for line in lines
  ]


def checkpoint_folders(workdir):
  """Every folder of checkpoints below a run's."""
  found = {path.parent.parent for path in workdir.glob("**/checksums.json")}
  return sorted(path.relative_to(workdir) for path in found)


def arrays(folder):
  """Every array of the newest checkpoint, by name; and its step."""
  with Checkpoints(folder) as checkpoints:
    newest = folder / str(checkpoints.steps()[-1])
    record = json.loads((newest / "record" / "metadata").read_text())
    wanted = {}
    for name, described in record["leaves"].items():
      dtype, sizes = described.removesuffix("]").split("[")
      shape = tuple(map(int, filter(None, sizes.split(","))))
      wanted[name] = jax.ShapeDtypeStruct(shape, dtype)
    restored = checkpoints.restore_latest(wanted)
  return jax.device_get(restored.state), restored.step


def assert_same_run(workdir, whole, stages):
  """All that two runs leave of some stages is the same, bit for bit."""
  expected = [row for row in rows(whole) if row["stage"] in stages]
  assert rows(workdir) == expected
  if "rl" in stages:
    for name in ("samples.jsonl", "summary.json"):
      assert (workdir / name).read_bytes() == (whole / name).read_bytes()
  folders = checkpoint_folders(workdir)
  assert folders
  for folder in folders:
    for path in (workdir / folder, whole / folder):
      assert not [*path.glob("*tmp*")], path
    names = [
      sorted(path.name for path in (run / folder).iterdir())
      for run in (workdir, whole)
    ]
    assert names[0] == names[1], folder
    (found, step), (wanted, _) = (
      arrays(workdir / folder), arrays(whole / folder)
    )  # fmt: skip
    assert found.keys() == wanted.keys()
    for name, array in found.items():
      np.testing.assert_array_equal(array, wanted[name], f"{folder} {step}")


def kill(is_time, workdir, *options):
  """SIGKILL at a moment of a whole run; whether it came before the end."""
  status, stderr = signal_when(
    is_time, signal.SIGKILL, "train_pure.py", workdir, *options
  )
  assert status in (0, -signal.SIGKILL), stderr
  return status != 0
