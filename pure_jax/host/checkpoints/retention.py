"""Which checkpoints of a folder stay: the last few, the best, the newest."""

from collections.abc import Callable, Sequence
from typing import Any

from pure_jax.host.checkpoints.record import Standing


class Retention:
  """A preservation policy for Orbax's checkpoint manager.

  A run that is stopped between two regular checkpoints leaves one there. It
  is kept while it is the newest and then counts for nothing: what a run
  leaves behind does not depend on how often it was stopped.
  """

  def __init__(
    self,
    keep_latest: int,
    standing: Callable[[int], Standing],
    goodness: Callable[[Standing], float | None],
  ):
    """Sets the rules.

    Args:
      keep_latest: how many of the newest regular checkpoints stay.
      standing: step -> of its checkpoint.
      goodness: standing -> how good the checkpoint is, more is better; None
        where it does not compete.
    """
    self._keep_latest = keep_latest
    self._standing = standing
    self._goodness = goodness

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    """Orbax's question.

    Args:
      checkpoints: records with a step, ascending.
      context: not used.

    Returns:
      For each of them, whether it stays.
    """
    del context
    steps = [info.step for info in checkpoints]
    standings = {step: self._standing(step) for step in steps}
    regular = [step for step in steps if not standings[step].interim]
    kept = {*regular[-self._keep_latest :], *steps[-1:]}
    ranked = [
      (goodness, step)
      for step in steps
      if (goodness := self._goodness(standings[step])) is not None
    ]
    if ranked:
      kept.add(max(ranked)[1])
    return [step in kept for step in steps]
