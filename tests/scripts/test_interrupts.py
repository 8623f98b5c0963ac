"""Ctrl-C ends every script, wherever it comes: one line, exit status 130.

The thorough test: python -m pytest -m slow tests/scripts/test_interrupts.py
"""

import ast
import os
import signal
import subprocess
import sys
from unittest import mock

import interrupts
import lost_signals
import pytest
import smoke_run
import train_pure
from checkout import EXPERIMENTS

from pure_jax.host.data.world import dataset
from pure_jax.runs.folder import RunFolder

SCRIPTS = sorted(
  path.stem
  for path in EXPERIMENTS.glob("*.py")
  if "\nif __name__ ==" in path.read_text()
)
BEGINNING = """\
if __name__ == '__main__':
    import interrupts
    interrupts.exit_on_ctrl_c()"""
# All that a script may import first; each interrupts the script.
HEAVY = ("absl", "jax", "matplotlib", "ml_collections", "numpy", "pure_jax")


@pytest.fixture(autouse=True)
def ctrl_c_raises():
  """A shell's background job ignores it, and so would what it starts."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def interrupting_packages(tmp_path_factory):
  """A folder of packages whose import is interrupted."""
  packages = tmp_path_factory.mktemp("packages")
  for name in HEAVY:
    (packages / f"{name}.py").write_text(
      "import os, signal, time\n"
      "os.kill(os.getpid(), signal.SIGINT)\n"
      "time.sleep(60)\n"
    )
  return packages


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_the_imports_ends_in_a_line(
  script, interrupting_packages
):
  path = EXPERIMENTS / f"{script}.py"
  done = subprocess.run(
    [sys.executable, str(path)],
    env=os.environ | {"PYTHONPATH": str(interrupting_packages)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")
  # Before the imports that are quick, too.
  statements = ast.parse(path.read_text()).body
  assert ast.unparse(statements[1]) == BEGINNING


def test_an_ignored_ctrl_c_stays_ignored():
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  interrupts.exit_on_ctrl_c()
  assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("lose", [signal.raise_signal, *lost_signals.WAYS])
def test_a_script_with_flags_of_its_own_ends_in_a_line(lose, capfd):
  """Also if it ends by sys.exit, as absl ends it."""

  def call(status):
    lose(signal.SIGINT)
    sys.exit(status)

  with pytest.raises(SystemExit) as ended:
    interrupts.run(call, 0)
  assert ended.value.code == 130
  assert capfd.readouterr() == ("", "stopped\n")


# ===== Runs =====

LINE = "stopped; the same command continues"


def interrupted_at(owner, name, script, workdir, *options):
  """Runs a script that is interrupted at a call, in a garbage collection."""
  function, interrupted = getattr(owner, name), []

  def interrupt(*arguments, **keywords):
    if not interrupted:
      interrupted.append(True)
      lost_signals.in_garbage_collection(signal.SIGINT)
    return function(*arguments, **keywords)

  with mock.patch.object(owner, name, interrupt):
    done = smoke_run.call(script, workdir, *options)
  assert interrupted
  return done


def test_ctrl_c_in_a_garbage_collection_ends_a_run_between_its_loops(
  finished, tmp_path, capfd
):
  """Lost there, it ended nothing: the run went on, and its status was 0."""
  start = f"--start={finished[0]}"
  for owner, name, script, *options in (
    # While data are prepared.
    (dataset.ArithmeticDataset, "_example", "train_sft.py"),
    # Where nothing is left to do.
    (RunFolder, "draw_curves", "train_sft.py", start),
    # In the first validation.
    (train_pure, "put_prm_texts", "train_pure.py", start),
  ):
    workdir = tmp_path / name
    done = interrupted_at(owner, name, script, workdir, *options)
    assert (done.returncode, done.stdout) == (130, ""), name
    assert done.stderr.splitlines()[-1] == LINE, name
    assert "Traceback" not in done.stderr + capfd.readouterr().err, name
    assert not (workdir / "metrics.jsonl").read_text()
