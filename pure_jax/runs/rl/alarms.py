"""Alarms of a run: what they write, and what they make the run do."""

import dataclasses
from typing import Any

from pure_jax.host.distributed import processes
from pure_jax.host.evaluation import alarms
from pure_jax.host.evaluation.alarms import AlarmError
from pure_jax.host.logs.metrics import METRICS_FILE, read_metrics
from pure_jax.runs.loop import StageCheckpoints
from pure_jax.runs.run import Run


@dataclasses.dataclass(frozen=True)
class Alarm:
  """An alarm that an iteration has raised.

  Attributes:
    name: of `host.evaluation.alarms.RULES`.
    step: number of the iteration.
    reason: what the rule saw, a sentence.
    action: what it does, of `settings.alarms.ACTIONS`.
  """

  name: str
  step: int
  reason: str
  action: str

  @property
  def text(self) -> str:
    """A line for the console."""
    return f"iteration {self.step}: alarm {self.name}: {self.reason}"

  @property
  def record(self) -> dict[str, str]:
    """What alarms.jsonl has of it."""
    return {"alarm": self.name, "reason": self.reason, "action": self.action}


class AlarmWatch:
  """Watches the metrics of the iterations of RL for alarms.

  Every process watches the same numbers, and so decides the same.

  Attributes:
    stops: the alarm that stops the run, None as long as there is none.
    rolls_back: the alarm that rolls it back, None as long as there is none.
  """

  def __init__(self, run: Run):
    """Reads the metrics of the iterations so far, once they are rewound."""
    self._settings = run.spec.settings.rl.alarms
    times = self._settings.roll_back.times
    self._may_roll_back = run.spec.roll_backs < times
    self._history: list[Any] = processes.broadcast_from_zero(
      lambda: _read_history(run)
    )
    self.stops: Alarm | None = None
    self.rolls_back: Alarm | None = None

  def check(self, step: int, row: alarms.Row) -> list[Alarm]:
    """Adds the metrics of an iteration; returns the alarms that it raises."""
    self._history.append(row)
    raised = []
    for name, reason in alarms.raised(
      self._history, self._settings.thresholds
    ).items():
      action = self._settings.actions[name]
      if action == "off":
        continue
      if action == "roll_back" and not self._may_roll_back:
        action = "tell"
      alarm = Alarm(name, step, reason, action)
      raised.append(alarm)
      if action == "stop":
        self.stops = alarm
      elif action == "roll_back":
        self.rolls_back = alarm
    return raised

  def raise_if_stopped(self, checkpoints: StageCheckpoints) -> None:
    """Raises AlarmError if an alarm stops the run, once its state is saved."""
    if self.stops is None:
      return
    checkpoints.wait()
    raise AlarmError(
      f"{self.stops.text}. The state is saved in {checkpoints.folder}, and "
      "samples.jsonl has two responses of that iteration. The same command "
      f"goes on; with --config.rl.alarms.{self.stops.name}=tell it does not "
      "stop again."
    )


def _read_history(run: Run) -> list[dict[str, Any]]:
  """The rows of the iterations in metrics.jsonl."""
  path = run.folder.path / METRICS_FILE
  return read_metrics(path, "rl") if path.exists() else []
