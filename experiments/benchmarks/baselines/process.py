"""Environments of baselines, and processes in them.

`scripts/NAME.txt` lists the packages of an environment. Nothing of it is
installed next to pure_jax, so that a baseline can pin the versions it needs.
A process executes a file of `scripts/`, which answers requests
(`scripts/exchange.py`).
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks.cases import BenchmarkError
from pure_jax.host.workers import child_guard

SCRIPTS = pathlib.Path(__file__).parent / "scripts"


def python_path(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the interpreter of an environment, whether it exists or not."""
  return folder / name / "bin" / "python"


def make_environment(folder: pathlib.Path, name: str) -> None:
  """Makes an environment in the folder of all, or completes it.

  Raises:
    BenchmarkError: if a command fails.
  """
  install = [python_path(folder, name), "-m", "pip", "install"]
  for command in (
    [sys.executable, "-m", "venv", folder / name],
    [*install, "-r", SCRIPTS / f"{name}.txt"],
  ):
    if subprocess.run(command, check=False).returncode:
      raise BenchmarkError(
        f"the environment {name} in {folder} could not be made: see above."
      )


class Process:
  """A running script of a baseline; a context manager that ends it.

  Attributes:
    name: name of the baseline.
    loaded: for a sampler, which weights it has read, and what `load` answered;
      None before.
  """

  def __init__(self, name: str, python: os.PathLike, script: os.PathLike):
    """Starts a file of `scripts/`, or one with an absolute path."""
    self.name, self.loaded = name, None
    self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 Closed on exit.
    # It imports only the packages of its environment, and downloads nothing.
    variables = os.environ | {"HF_HUB_OFFLINE": "1"}
    variables.pop("PYTHONPATH", None)
    self._process = subprocess.Popen(
      [python, SCRIPTS / script],
      env=variables,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )
    child_guard.add(self._process.pid)

  def call(self, method: str, **arguments: Any) -> dict[str, Any]:
    """Calls a method of the script, and waits.

    The arguments are JSON-like or arrays, which become lists. If the process
    died, the `BenchmarkError` has the last line of its errors.
    """
    request = json.dumps(
      {"method": method, "arguments": arguments},
      default=lambda array: np.asarray(array).tolist(),
    )
    try:
      self._process.stdin.write(request + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      self._process.wait()
      self._errors.seek(0)
      last = self._errors.read().strip().splitlines()[-1:]
      raise BenchmarkError(
        f"the baseline {self.name} died in {method!r}: {''.join(last)}"
      )
    return json.loads(line)

  def kill(self) -> None:
    """Ends the script at once, from any thread; a call that waits raises."""
    self._process.kill()

  def __enter__(self) -> "Process":
    return self

  def __exit__(self, *_: object) -> None:
    """Closes the requests, which ends the script."""
    with contextlib.suppress(BrokenPipeError):  # It has died.
      self._process.stdin.close()
    try:
      self._process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    child_guard.remove(self._process.pid)
    self._process.stdout.close()
    self._errors.close()
