"""Rolls a run back to a checkpoint, from which it goes on with other settings.

A roll-back is written down before anything is removed, and marked as finished
after that. A run that was killed in between finishes it when it is continued.
It then continues from the older checkpoint, with changed settings and other
random keys. The record and the logs of undone iterations are in the folder of
RL, so that they are removed with it.
"""

import dataclasses
import pathlib
from typing import Any

from pure_jax.host import json_text
from pure_jax.host.atomic_files import (
  create_folder_atomic,
  write_json_atomic,
)
from pure_jax.host.distributed import preemption, processes
from pure_jax.host.logs.metrics import read_log
from pure_jax.runs.folder import LOG_FILES
from pure_jax.runs.loop import StageCheckpoints
from pure_jax.runs.rl.alarms import Alarm
from pure_jax.runs.run import Run
from pure_jax.runs.settings.alarms import RollBackSettings
from pure_jax.runs.settings.roll_backs import after_roll_backs
from pure_jax.runs.workdir import WorkdirError

RECORD_FILE = pathlib.Path("rl", "roll_backs.json")
UNDONE = pathlib.Path("rl", "undone")  # A folder of logs for each roll-back.


@dataclasses.dataclass(frozen=True)
class RollBack:
  """One time that a run was rolled back.

  Attributes:
    alarm: name of the alarm.
    reason: why it was raised.
    step: the iteration that raised it.
    to: the iteration of the checkpoint that the run went back to; 0 if it began
      anew.
    changes: fields of `RollBackSettings`, as they were at that time.
    finished: whether checkpoints after that one have been removed.
  """

  alarm: str
  reason: str
  step: int
  to: int
  changes: dict[str, Any]
  finished: bool = False


def read_record(folder: pathlib.Path) -> list[RollBack]:
  """Reads the roll-backs of a run, in order.

  Args:
    folder: the workdir.

  Raises:
    WorkdirError: if the record is damaged.
  """
  path = folder / RECORD_FILE
  try:
    roll_backs = [RollBack(**x) for x in json_text.parse(path.read_bytes())]
    for roll_back in roll_backs:
      RollBackSettings(**roll_back.changes)
    return roll_backs
  except FileNotFoundError:
    return []
  except (OSError, ValueError, TypeError) as error:
    raise WorkdirError(
      f"{path} is not the record of a run's roll-backs ({error}). It says with "
      "which settings the run goes on: put it back."
    ) from error


def begin(
  run: Run,
  alarm: Alarm | None,
  checkpoints: StageCheckpoints,
  shutdown: preemption.StopRequest,
) -> bool:
  """Writes down that a run is to be rolled back; returns whether it is.

  Every process must call it.

  The run goes back at least `rl.alarms.roll_back.iterations` iterations before
  the alarm: to the newest checkpoint, or, if it has not had so many, to its
  beginning. If all such checkpoints have been removed, it is the oldest.

  Args:
    run: the open run.
    alarm: the alarm that rolls back; None does nothing.
    checkpoints: the checkpoints of RL.
    shutdown: whether SIGTERM came in the meantime.

  Raises:
    Preempted: after SIGTERM, once it is written down.
  """
  if alarm is None:
    return False
  changes = run.spec.settings.rl.alarms.roll_back
  last = alarm.step - changes.iterations
  # Without those that an uninterrupted run would not have saved.
  steps = [x for x in checkpoints.regular_steps() if x <= alarm.step]
  to = 0
  if last > 0 and steps:
    to = max((x for x in steps if x <= last), default=steps[0])
  new = RollBack(
    alarm.name, alarm.reason, alarm.step, to, dataclasses.asdict(changes)
  )
  _write(run, [*_read_everywhere(run), new])
  run.tell(f"rolls back to iteration {to}, because of alarm {alarm.name}")
  if shutdown.requested():
    raise preemption.Preempted(
      f"stopped by SIGTERM after the run was rolled back to iteration {to}; "
      "the same command continues"
    )
  return True


def finish(run: Run, checkpoints: StageCheckpoints) -> Run:
  """Finishes the last roll-back, if it is not; every process must call it.

  The logs of the iterations that are undone are copied to a folder of their
  own, and their checkpoints are removed.

  Args:
    run: the open run, with the settings of its config.
    checkpoints: the checkpoints of RL.

  Returns:
    The run with the settings and random keys after its roll-backs.
  """
  done = _read_everywhere(run)
  if not done:
    return run
  if not done[-1].finished:
    to = done[-1].to
    processes.on_process_zero(lambda: _keep_undone(run, len(done), to))
    checkpoints.remove_after(to)
    _write(run, [*done[:-1], dataclasses.replace(done[-1], finished=True)])
  changes = [RollBackSettings(**roll_back.changes) for roll_back in done]
  spec = dataclasses.replace(
    run.spec,
    settings=after_roll_backs(run.spec.settings, changes),
    roll_backs=len(done),
  )
  return dataclasses.replace(run, spec=spec)


def _read_everywhere(run: Run) -> list[RollBack]:
  """The record as process 0 reads it."""
  rows = processes.broadcast_from_zero(
    lambda: [dataclasses.asdict(x) for x in read_record(run.folder.path)]
  )
  return [RollBack(**row) for row in rows]


def _write(run: Run, roll_backs: list[RollBack]) -> None:
  """Writes the record, once."""
  rows: Any = [dataclasses.asdict(roll_back) for roll_back in roll_backs]
  path = run.folder.path / RECORD_FILE
  processes.on_process_zero(lambda: write_json_atomic(path, rows))


def _keep_undone(run: Run, number: int, to: int) -> None:
  """Copies the rows of iterations after `to` of every log."""
  folder = run.folder.path / UNDONE / str(number)
  if folder.exists():
    return
  with create_folder_atomic(folder) as unfinished:
    for name in LOG_FILES:
      path = run.folder.path / name
      rows = read_log(path) if path.exists() else []
      undone = [
        row
        for row in rows
        if row["stage"] in ("rl", "rl_eval") and row["step"] > to
      ]
      lines = [json_text.dump(row) + "\n" for row in undone]
      (unfinished / name).write_text("".join(lines), encoding="utf-8")
