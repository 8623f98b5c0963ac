"""Progress of a long loop: a bar on a terminal, sparse lines in a log."""

import sys
from collections.abc import Mapping

import tqdm

LOG_SECONDS = 20.0  # Between lines where stderr is not a terminal.


class Progress:
  """Shows how far a stage is, with the numbers that matter."""

  def __init__(
    self, name: str, total: int, first: int = 0, *, enabled: bool = True
  ):
    """Starts showing.

    Args:
      name: of the stage.
      total: its number of steps.
      first: steps done before, in a resumed run.
      enabled: False shows nothing.
    """
    terminal = sys.stderr.isatty()
    self._bar = tqdm.tqdm(
      total=total,
      initial=first,
      desc=name,
      disable=not enabled,
      dynamic_ncols=terminal,
      mininterval=0.1 if terminal else LOG_SECONDS,
      maxinterval=0.1 if terminal else LOG_SECONDS,
      ascii=not terminal,
    )

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *unused: object) -> None:
    self._bar.close()

  def advance(self) -> None:
    """One step is done."""
    self._bar.update()

  def show(self, numbers: Mapping[str, float]) -> None:
    """Puts numbers beside the bar.

    Args:
      numbers: by name, few and short.
    """
    text = {name: f"{value:.3g}" for name, value in numbers.items()}
    self._bar.set_postfix(text, refresh=False)

  def say(self, text: str) -> None:
    """Writes lines without breaking the bar.

    Args:
      text: what to write.
    """
    if not self._bar.disable:
      tqdm.tqdm.write(text, file=sys.stderr)
