"""Smoke runs of the scripts: in this process or in their own, and compared."""

import contextlib
import importlib
import io
import json
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import time
from unittest import mock

import cli
import jax
import numpy as np
from absl.testing import flagsaver
from checkout import ROOT
from process_table import wait_until_none_is_alive, with_variables

from pure_jax.host.checkpoints.checkpointer import Checkpoints
from pure_jax.host.logs import curves

CONFIG = ROOT / "experiments" / "configs" / "arithmetic.py"
SMALL = (
  # 20 problems: RL, 8 at a time, begins a new epoch in its third iteration.
  "--config.sft.demonstrations=20",
  "--config.prm.policy_prompts=20",
  "--config.prm.evaluate_head=true",
  "--config.rl.samples_every=1",
  # Few rows and steps: without LLVM's optimiser programs are slow.
  "--config.sft.batch_size=16",
  "--config.sft.steps=12",
  "--config.sft.log_every=4",
  "--config.prm.labelled=60",
  "--config.prm.batch_size=16",
  "--config.prm.head_steps=4",
  "--config.prm.full_steps=8",
  "--config.prm.log_every=4",
  # As many as policy_prompts: one program samples for both.
  "--config.prm.eval_prompts=20",
)


def arguments(script, workdir, *options, config=None):
  """The words of a command line, without the interpreter.

  Without a config it is a smoke run of the embedded world, made smaller.
  """
  return [
    str(ROOT / "experiments" / script),
    f"--config={config or f'{CONFIG}:smoke'}",
    f"--workdir={workdir}",
    *(SMALL if config is None else ()),
    *options,
  ]


def command(script, workdir, *options, config=None):
  """The words of a command line."""
  words = arguments(script, workdir, *options, config=config)
  return [sys.executable, *words]


def environment(config=None, **changes):
  """The environment of every script, so that compared runs compile alike.

  LLVM's optimiser is off without a config: those runs compile much and compute
  little.
  """
  quickly = {} if config else {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  return os.environ | quickly | changes


def call(script, workdir, *options):
  """Runs a script to its end in this process, as its command line would.

  A process of its own takes 5 to 10 seconds to start. The caller compiles
  quickly, as `environment` does. Of the curves one is drawn: all take seconds.
  """
  # It defines flags, which flagsaver would forget after the first call.
  importlib.import_module("array_record.python.array_record_data_source")
  stdout, stderr = io.StringIO(), io.StringIO()
  words = arguments(script, workdir, *options)
  main = importlib.import_module(pathlib.Path(script).stem).main
  with (
    flagsaver.flagsaver(),
    mock.patch.object(sys, "argv", words),
    mock.patch.object(os, "_exit", sys.exit),
    mock.patch.object(curves, "SHOWN", ("loss",)),
    contextlib.redirect_stdout(stdout),
    contextlib.redirect_stderr(stderr),
  ):
    try:
      cli.run(main)
      status = 0
    except SystemExit as error:
      status = error.code or 0
  return subprocess.CompletedProcess(
    words, status, stdout.getvalue(), stderr.getvalue()
  )


def run(script, workdir, *options, config=None, **changes):
  """Runs a script as a process, with variables added to the environment."""
  return subprocess.run(
    command(script, workdir, *options, config=config),
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=400,
    check=False,
    env=environment(config, **changes),
  )


def signal_when(is_time, number, script, workdir, *options, config=None):
  """Starts a script and signals it at a moment; (exit status, stderr).

  The status is the script's own if it ended before. No process that it started
  may outlive it.
  """
  mark = {"STARTED_BY_SMOKE_RUN": secrets.token_hex(16)}
  process = subprocess.Popen(
    command(script, workdir, *options, config=config),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env=environment(config, **mark),
  )
  deadline = time.monotonic() + 300
  while process.poll() is None and not is_time():
    assert time.monotonic() < deadline
    time.sleep(0.0005)
  process.send_signal(number)
  _, stderr = process.communicate(timeout=300)
  assert wait_until_none_is_alive(with_variables(mark))
  return process.returncode, stderr


def rows(workdir, name="metrics.jsonl"):
  """Logged rows without their timings."""
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
  """Every folder of checkpoints below a run's folder."""
  checksums = workdir.glob("**/checksums.json")
  folders = {path.parent.parent for path in checksums}
  return sorted(path.relative_to(workdir) for path in folders)


def arrays(folder, step=None):
  """Every array of a checkpoint, or of the newest, by name; and its step."""
  with Checkpoints(folder) as checkpoints:
    step = checkpoints.steps()[-1] if step is None else step
    metadata = folder / str(step) / "record" / "metadata"
    record = json.loads(metadata.read_text())
    abstract = {}
    for name, described in record["leaves"].items():
      dtype, sizes = described.removesuffix("]").split("[")
      shape = tuple(map(int, filter(None, sizes.split(","))))
      abstract[name] = jax.ShapeDtypeStruct(shape, dtype)
    restored = checkpoints._restore(step, abstract)
  return jax.device_get(restored.state), restored.step


def temporaries(workdir):
  """Every temporary file and folder below a run's folder."""
  return [
    path
    for path in workdir.rglob("*")
    if path.name.endswith(".tmp")
    or path.name.startswith("incomplete.")
    or "orbax-checkpoint-tmp" in path.name
  ]


def assert_same_run(workdir, whole, stages=None):
  """Compares what two runs left of some or all stages, bit for bit.

  Returns (how many rows were compared, how many arrays).
  """
  stages = stages or {row["stage"] for row in rows(whole)}
  expected = [row for row in rows(whole) if row["stage"] in stages]
  count = len(expected)
  assert rows(workdir) == expected
  if "rl" in stages:
    tables = [
      sorted(path.name for path in (run / "generations").iterdir())
      for run in (workdir, whole)
    ]
    assert tables[0] == tables[1] != []
    for name in (
      *("samples.jsonl", "generations.jsonl", "summary.json"),
      *(f"generations/{table}" for table in tables[0]),
    ):
      content = (workdir / name).read_bytes()
      assert content == (whole / name).read_bytes(), name
      count += content.count(b"\n") * name.endswith(".jsonl")
  assert temporaries(workdir) == temporaries(whole) == []
  folders, num_arrays = checkpoint_folders(workdir), 0
  assert folders
  for folder in folders:
    names = [
      sorted(path.name for path in (run / folder).iterdir())
      for run in (workdir, whole)
    ]
    steps = filter(str.isdigit, names[0])
    if folder.name == "weights":  # Their number counts the saves.
      names, steps = [len(both) for both in names], [None]
    assert names[0] == names[1], folder
    for step in steps:
      saved, expected = (
        arrays(run / folder, step)[0] for run in (workdir, whole)
      )
      assert saved.keys() == expected.keys()
      for name, array in saved.items():
        np.testing.assert_array_equal(array, expected[name], f"{folder} {step}")
      num_arrays += len(saved)
  return count, num_arrays


def kill(is_time, workdir, *options):
  """Kills a whole run at a moment; whether that came before its end."""
  status, stderr = signal_when(
    is_time, signal.SIGKILL, "train_pure.py", workdir, *options
  )
  assert status in (0, -signal.SIGKILL), stderr
  return status != 0
