"""Peers: other programs, each a process in an environment of its own.

`peers/NAME.txt` says what an environment holds, a script beside it
answers requests (`peers/exchange.py`). A peer may pin what it needs;
nothing of it is installed beside pure_jax.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cases import BenchmarkError, Case
from benchmarks.programs import Options, init_policy, init_prm
from benchmarks.timing import Arm
from pure_jax.host import huggingface

FOLDER = pathlib.Path(__file__).parent / "peers"
# By peer and suite: a process has one script.
SCRIPTS = {
  "transformers": {"rollout": "transformers_generate.py"},
  "tunix": {"rollout": "tunix_sampler.py"},
  "trl": {"update": "trl_update.py", "iteration": "trl_iteration.py"},
  "trl_rloo": {"update": "trl_update.py"},
  "trl_prm": {"prm": "trl_prm.py"},
  "torch_credit": {"credit": "torch_credit.py"},
}
# Of peers that run in another one's.
SHARED = {"trl_rloo": "trl"}
# Tokens of the longest text that an exported model is said to be for.
MAX_POSITIONS = 2**15


def make_environment(folder: pathlib.Path, name: str) -> None:
  """Makes the environment of a peer, or completes it.

  Args:
    folder: where environments are.
    name: of the peer, a key of `SCRIPTS`.

  Raises:
    BenchmarkError: if it cannot be made.
  """
  name = SHARED.get(name, name)
  commands = (
    [sys.executable, "-m", "venv", folder / name],
    [
      *(python_of(folder, name), "-m", "pip", "install"),
      *("-r", FOLDER / f"{name}.txt"),
    ],
  )
  for command in commands:
    done = subprocess.run(command, check=False)
    if done.returncode:
      raise BenchmarkError(
        f"the environment of {name} in {folder} could not be made: see above."
      )


def python_of(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The interpreter of a peer's environment.

  Args:
    folder: where environments are.
    name: of the peer.

  Returns:
    The path, whether it is there or not.
  """
  return folder / SHARED.get(name, name) / "bin" / "python"


def check_python(python: pathlib.Path | str) -> None:
  """Raises where an environment has not been made.

  Args:
    python: its interpreter.

  Raises:
    BenchmarkError: if it is not there.
  """
  if not pathlib.Path(python).exists():
    raise BenchmarkError(
      f"{python} is not there: make the environments of peers by "
      "python experiments/benchmark.py --make_peers=FOLDER."
    )


class Peer:
  """A running peer. A context manager: its process ends with the block."""

  def __init__(self, name: str, python: pathlib.Path | str, script: str):
    """Starts it.

    Args:
      name: a key of `SCRIPTS`.
      python: the interpreter of its environment.
      script: one of its scripts.

    Raises:
      BenchmarkError: if there is none.
    """
    self.name = name
    check_python(python)
    self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 As the process.
    # Its packages are its own, and nothing is fetched.
    variables = os.environ | {"HF_HUB_OFFLINE": "1"}
    variables.pop("PYTHONPATH", None)
    self._process = subprocess.Popen(
      [python, FOLDER / script],
      env=variables,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )

  def ask(self, do: str, **fields: Any) -> dict[str, Any]:
    """Sends a request and waits for the answer.

    Args:
      do: name of the handler.
      **fields: its arguments, JSON-like.

    Returns:
      What it gives.

    Raises:
      BenchmarkError: with the last line of its errors, if it died.
    """
    try:
      self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      self._process.wait()
      self._errors.seek(0)
      last = self._errors.read().strip().splitlines()[-1:]
      raise BenchmarkError(
        f"the peer {self.name} died at {do!r}: {''.join(last)}"
      )
    return json.loads(line)

  def load(
    self,
    case: Case,
    options: Options,
    kinds: Sequence[str] = ("policy",),
  ) -> dict[str, Any]:
    """Has it read our weights, as we export them.

    Args:
      case: names the model.
      options: how it runs; the compute dtype is that of the peer's products.
      kinds: of "policy" and "prm".

    Returns:
      What it says of itself.
    """
    model = options.model(case.model)
    writers = {
      "policy": (huggingface.export_policy, init_policy),
      "prm": (huggingface.export_prm, init_prm),
    }
    with tempfile.TemporaryDirectory() as folder:
      folders = {kind: str(pathlib.Path(folder) / kind) for kind in kinds}
      for kind, path in folders.items():
        export, init = writers[kind]
        params = init(case.model, options)
        export(path, params, model, max_positions=MAX_POSITIONS)
      return self.ask("load", **folders, dtype=options.dtype)

  def arm(
    self,
    facts: dict[str, Any],
    work: float,
    check: Callable[[dict[str, Any]], None] = lambda found: None,
    ran: bool = False,
  ) -> Arm:
    """Runs as they are repeated.

    Args:
      facts: where the memory that it takes is noted.
      work: of a run.
      check: raises where the answer to a run shows that it was another one.
      ran: whether it was asked for such a run before.

    Returns:
      The arm, timed by the peer itself.
    """

    def seconds() -> float:
      found = self.ask("run")
      facts["peak_bytes"] = found["peak_bytes"]
      check(found)
      return found["seconds"]

    return Arm(seconds, work, ran)

  def __enter__(self) -> "Peer":
    """Itself."""
    return self

  def __exit__(self, *_: object) -> None:
    """Ends the process, which ends where there are no more requests."""
    with contextlib.suppress(BrokenPipeError):  # It has died.
      self._process.stdin.close()
    try:
      self._process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()
    self._errors.close()
