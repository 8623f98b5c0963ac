"""Output of a script on standard error: messages, and progress of a loop."""

import sys
from collections.abc import Mapping

import tqdm

# Between two lines of progress if standard error is not a terminal.
LOG_SECONDS = 20.0


def tell(message: object) -> None:
  """Writes one message on lines of its own.

  Args:
    message: its text.
  """
  sys.stderr.write(f"{message}\n")
  sys.stderr.flush()


class Progress:
  """Shows how far a stage is: a bar on a terminal, sparse lines in a log."""

  def __init__(
    self, name: str, total: int, first: int = 0, *, enabled: bool = True
  ):
    """Starts showing progress.

    Args:
      name: name of the stage.
      total: its number of steps.
      first: steps that a resumed run did before.
      enabled: False shows nothing.
    """
    is_terminal = sys.stderr.isatty()
    interval = 0.1 if is_terminal else LOG_SECONDS
    self._bar = tqdm.tqdm(
      total=total,
      initial=first,
      desc=name,
      disable=not enabled,
      dynamic_ncols=is_terminal,
      mininterval=interval,
      maxinterval=interval,
      miniters=0,  # Time alone decides when the bar is drawn again.
      ascii=not is_terminal,
    )

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *unused: object) -> None:
    self._bar.close()

  def advance(self, steps: int = 1) -> None:
    """Counts steps; with 0 the bar is only drawn again, if it is time."""
    self._bar.update(steps)

  def show(self, metrics: Mapping[str, float]) -> None:
    """Shows metrics next to the bar: few numbers, with short names."""
    text = {name: f"{value:.3g}" for name, value in metrics.items()}
    self._bar.set_postfix(text, refresh=False)

  def say(self, text: str) -> None:
    """Writes lines above the bar."""
    if not self._bar.disable:
      tqdm.tqdm.write(text, file=sys.stderr)
