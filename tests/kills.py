"""Kills smoke runs at random moments, and compares what they left.

  python tests/kills.py [--kills=20] [--seed=0] [--config=FILE:smoke]

The smoke run of the config (of the embedded world by default) is made once
without an interruption. Then it is made in another folder, and its process is
killed by SIGKILL: two times in three at a random moment of the time that the
whole run takes, else in the middle of the first save after such a moment. The
same command is started again, until it ends before it is killed. Further runs
follow until there were as many kills.

Every run must have the same rows of metrics (but for times and speeds), the
same samples and tables, and in every checkpoint the same arrays, bit for bit.
No temporary file and no process may be left. The exit status is then 0.
`tests/runs/test_survival.py` has smaller runs, some of them stopped by SIGTERM.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent / "experiments"), str(TESTS / "support")]

import smoke_run  # noqa: E402 Found by the line above.

SCRIPT = "train_pure.py"


@dataclasses.dataclass(frozen=True)
class Moment:
  """When and how a process is interrupted.

  Attributes:
    seconds: after its start; if `in_save`, in the first save from then on.
    in_save: whether a save must be unfinished.
    number: the signal.
    after: the seconds count from when this path exists.
  """

  seconds: float
  in_save: bool = False
  number: int = signal.SIGKILL
  after: pathlib.Path = TESTS


def unfinished(workdir: pathlib.Path) -> set[tuple[pathlib.Path, int]]:
  """Folders of unfinished saves; a folder created again counts as another."""
  while True:
    try:
      return {
        (path, path.stat().st_ino)
        for path in workdir.glob("**/*.orbax-checkpoint-tmp")
        if path.parent.name in ("rl", "weights")
        or path.parent.name.startswith("checkpoints_")
      }
    except FileNotFoundError:
      continue  # A save ended while its folder was listed.


def last_row(workdir: pathlib.Path) -> str:
  """The stage and the step of the last row of a run."""
  path = workdir / "metrics.jsonl"
  lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
  if not lines:
    return "before the first row"
  row = json.loads(lines[-1])
  return f"after {row['stage']} {row['step']}"


def interrupt(
  workdir: pathlib.Path, moments: Iterator[Moment], *options: str, **run: str
) -> tuple[int, int]:
  """Interrupts a run again and again, then lets it end.

  Args:
    workdir: its folder.
    moments: when its processes are interrupted, one after another. It may end
      before; it is not interrupted once there are no more moments.
    options: of the command.
    run: its config, as `smoke_run.command` takes it.

  Returns:
    (interruptions, those of them in the middle of a save).
  """
  count = torn = 0
  for moment in moments:
    left, began, counted = unfinished(workdir), time.monotonic(), []

    def is_time(moment=moment, left=left, counted=counted):
      if not counted and moment.after.exists():
        counted.append(time.monotonic())
      late = counted and time.monotonic() - counted[0] > moment.seconds
      return late and (not moment.in_save or unfinished(workdir) - left)

    status, stderr = smoke_run.signal_when(
      is_time, moment.number, SCRIPT, workdir, *options, **run
    )
    assert status in (0, 75, 143, -moment.number), stderr
    assert "Traceback" not in stderr, stderr
    if status == 0:
      return count, torn
    is_torn = bool(unfinished(workdir) - left)
    count, torn = count + 1, torn + is_torn
    print(
      f"{workdir.name}: {signal.Signals(moment.number).name} after "
      f"{time.monotonic() - began:.1f} s, {last_row(workdir)}"
      + (", in a save" if is_torn else ""),
      flush=True,
    )
  done = smoke_run.run(SCRIPT, workdir, *options, **run)
  assert done.returncode == 0, done.stderr
  return count, torn


def random_moments(chance: random.Random, seconds: float) -> Iterator[Moment]:
  """Yields moments without end.

  Args:
    chance: the random numbers.
    seconds: duration of a whole run.
  """
  while True:
    in_save = chance.random() < 1 / 3
    yield Moment(chance.uniform(0, seconds), in_save)


def compare_killed_runs(
  folder: pathlib.Path, kills: int, seed: int, **run: str
) -> str:
  """Makes a whole run and killed ones; returns a summary if they are equal.

  Raises:
    AssertionError: if anything differs or is left over.
  """
  whole, chance = folder / "whole", random.Random(seed)
  # Twice: the second finds what the first has compiled, as killed runs do.
  for path in (folder / "compiling", whole):
    began = time.monotonic()
    done = smoke_run.run(SCRIPT, path, **run)
    assert done.returncode == 0, done.stderr
  seconds = time.monotonic() - began
  print(f"an uninterrupted run takes {seconds:.1f} s", flush=True)
  count = torn = runs = rows = arrays = 0
  while count < kills:
    runs, began = runs + 1, time.monotonic()
    workdir = folder / f"run {runs}"
    moments = itertools.islice(random_moments(chance, seconds), kills - count)
    hits, torn_hits = interrupt(workdir, moments, **run)
    if not hits:  # Too late: the machine is quicker now.
      seconds = min(seconds, time.monotonic() - began)
    compared = smoke_run.assert_same_run(workdir, whole)
    print(f"{workdir.name}: ended, and is equal", flush=True)
    count, torn = count + hits, torn + torn_hits
    rows, arrays = rows + compared[0], arrays + compared[1]
  return (
    f"{count} kills, {torn} of them in a save, in {runs} runs: 0 of {rows:,} "
    f"rows and 0 of {arrays:,} arrays differ; no temporary file and no process "
    "is left"
  )


def main() -> int:
  """Kills runs and prints whether they are equal."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--kills", type=int, default=20, help="how many")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument(
    "--config", default=f"{smoke_run.CONFIG}:smoke", help="FILE:smoke"
  )
  arguments = parser.parse_args()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="pure_jax_kills_"))
  try:
    summary = compare_killed_runs(
      folder, arguments.kills, arguments.seed, config=arguments.config
    )
  except Exception:  # A difference, or a file that cannot even be compared.
    traceback.print_exc()
    print(f"FAILED. The runs are in {folder}.")
    return 1
  shutil.rmtree(folder)
  print(summary)
  return 0


if __name__ == "__main__":
  sys.exit(main())
