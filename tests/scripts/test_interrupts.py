"""Ctrl-C ends every script, wherever it comes: one line, exit status 130.

The thorough test: python -m pytest -m slow tests/scripts/test_interrupts.py
"""

import ast
import json
import os
import random
import signal
import subprocess
import sys
import time
from unittest import mock

import interrupts
import lost_signals
import pytest
import smoke_run
import train_pure
from checkout import EXPERIMENTS

from pure_jax.host.data.world import dataset
from pure_jax.host.logs import console
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


@pytest.mark.parametrize(
  "error", [MemoryError(), OverflowError("Python int too large to convert")]
)
def test_what_runs_out_in_a_script_is_one_line(error, monkeypatch, capsys):
  """Of the scripts that are no runs, which have other advice."""
  monkeypatch.setattr(console, "guard_terminal", lambda: None)

  def fail():
    raise error

  with pytest.raises(SystemExit) as ended:
    interrupts.run(fail)
  assert ended.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and "rl." not in line


def test_another_error_in_a_script_keeps_its_stack_trace(monkeypatch):
  monkeypatch.setattr(console, "guard_terminal", lambda: None)
  with pytest.raises(ZeroDivisionError):
    interrupts.run(lambda: 1 / 0)


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

  with (
    pytest.raises(SystemExit) as ended,
    mock.patch.object(os, "_exit", sys.exit),
  ):
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


# ===== At random =====

ENVIRONMENT = smoke_run.environment(JAX_PLATFORMS="cpu")
# Python starts before a script can handle anything.
STARTED = 0.3


def process(words):
  """Starts a command that Ctrl-C can end, with pipes for its output."""
  return subprocess.Popen(
    words,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=ENVIRONMENT,
  )


def run_to_its_end(words):
  """Runs a command; its stdout, and how many seconds it took."""
  began = time.monotonic()
  done = process(words)
  stdout, stderr = done.communicate()
  assert done.returncode == 0, stderr
  return stdout, time.monotonic() - began


def interrupt_at_random(words, seconds, chance, end):
  """Interrupts a command up to its end; whether it ended before.

  `end` is a text of its stdout that says that it has done everything.
  """
  wait = chance.uniform(STARTED, seconds)
  interrupted = process(words)
  try:
    stdout, stderr = interrupted.communicate(timeout=wait)
    assert interrupted.returncode == 0 and end in stdout, stderr
    return True
  except subprocess.TimeoutExpired:
    interrupted.send_signal(signal.SIGINT)
  stdout, stderr = interrupted.communicate(timeout=300)
  report = f"after {wait:.2f} of {seconds:.2f} s: {stderr}"
  print(interrupted.returncode, report)
  assert "Traceback" not in stderr and "Exception ignored" not in stderr, report
  if interrupted.returncode != 130:
    # It had done everything; at its very end Python takes no signals.
    assert interrupted.returncode in (0, -signal.SIGINT), report
    assert end in stdout, report
    return True
  lines = [line for line in stderr.splitlines() if line.startswith("stopped")]
  assert len(lines) == 1 and lines[0] == stderr.splitlines()[-1], report
  return end in stdout


COMPILES_FOR_MINUTES = f"""
import os, signal, sys, threading
sys.path.insert(0, {str(EXPERIMENTS)!r})
import interrupts
interrupts.exit_on_ctrl_c()
import jax, jax.numpy as jnp

def main():
  def unrolled(x):
    for number in range(1000):
      x = jnp.sin(x @ x + number)
    return x

  lowered = jax.jit(unrolled).lower(jnp.ones((64, 64)))
  threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
  lowered.compile()

interrupts.run(main)
"""


@pytest.mark.slow
def test_ctrl_c_in_a_compilation_does_not_wait_for_its_end():
  """It goes on in a thread, for which Python's own exit waits, or crashes."""
  compiling = process([sys.executable, "-c", COMPILES_FOR_MINUTES])
  _, stderr = compiling.communicate(timeout=300)
  assert (compiling.returncode, stderr.splitlines()[-1]) == (130, "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_interrupted_at_random_is_the_uninterrupted_run(
  finished, tmp_path, seed
):
  """Ten times each, from the start of a process to its end."""
  chance, whole = random.Random(seed), finished[0]
  stages = {row["stage"] for row in smoke_run.rows(whole)}
  _, seconds = run_to_its_end(
    smoke_run.command("train_pure.py", tmp_path / "0")
  )
  number = 1
  for _ in range(10):
    words = smoke_run.command("train_pure.py", tmp_path / str(number))
    if interrupt_at_random(words, seconds, chance, "everything is in"):
      smoke_run.assert_same_run(tmp_path / str(number), whole, stages)
      number += 1
  run_to_its_end(smoke_run.command("train_pure.py", tmp_path / str(number)))
  smoke_run.assert_same_run(tmp_path / str(number), whole, stages)


@pytest.mark.slow
def test_an_evaluation_interrupted_at_random_is_the_uninterrupted_one(tmp_path):
  chance, begin = random.Random(0), str(EXPERIMENTS / "evaluate.py")
  config = f"--config={EXPERIMENTS / 'configs' / 'evaluate.py'}:smoke"

  def words(number):
    return [sys.executable, begin, config, f"--workdir={tmp_path / number}"]

  def assert_same(number):
    for name in ("responses.jsonl", "report.json"):
      left = (tmp_path / number / name).read_bytes()
      assert left == (tmp_path / "0" / name).read_bytes()

  stdout, seconds = run_to_its_end(words("0"))
  number = 1
  for _ in range(10):
    if interrupt_at_random(
      words(str(number)), seconds, chance, stdout.splitlines()[-2]
    ):
      assert_same(str(number))
      number += 1
  assert run_to_its_end(words(str(number)))[0] == stdout
  assert_same(str(number))


@pytest.mark.slow
def test_grading_interrupted_at_random_leaves_nothing(tmp_path):
  row = {"problem": "1 + 1", "answer": r"\frac{4}{2}"}
  row["responses"] = [rf"\boxed{{2 + \frac{{{n}}}{{7}} }}" for n in range(2000)]
  source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text(json.dumps(row))
  words = [sys.executable, str(EXPERIMENTS / "grade.py"), f"--input={source}"]
  words.append(f"--output={output}")
  _, seconds = run_to_its_end(words)
  verdicts, chance = output.read_bytes(), random.Random(0)
  for _ in range(10):
    output.unlink(missing_ok=True)
    interrupt_at_random(words, seconds, chance, '"items": 2000')
    left = {path.name for path in tmp_path.iterdir()} - {source.name}
    assert left <= {output.name}
    assert not left or output.read_bytes() == verdicts
