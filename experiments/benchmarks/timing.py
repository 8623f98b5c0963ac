"""Repeats that take turns, so that what else a machine does falls on all."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

# Threads that wait for more work spin for a while before they sleep: those of
# one arm must not take the cores from the next.
PAUSE_SECONDS = 0.05
# Whatever a repeat takes: one alone has no spread.
LEAST_REPEATS = 2


@dataclasses.dataclass(frozen=True)
class Arm:
  """Something to repeat.

  Attributes:
    seconds: runs once and says how long it took.
    work: of one run, in a unit of its own: bytes, FLOPs or tokens.
    ran: whether it ran when it was made: it is warm.
  """

  seconds: Callable[[], float]
  work: float = 0.0
  ran: bool = False


@dataclasses.dataclass(frozen=True)
class Times:
  """Repeats of one arm.

  Attributes:
    seconds: of each, in the order they were made.
    work: of one.
  """

  seconds: tuple[float, ...]
  work: float

  @property
  def median(self) -> float:
    """Seconds of the middle repeat."""
    return float(np.median(self.seconds))

  @property
  def rate(self) -> float:
    """Work per second."""
    return self.work / self.median


def timed(function: Callable[..., Any], *arguments: Any) -> Callable[[], float]:
  """Makes a function that calls another and says how long that took.

  Args:
    function: whose arrays are waited for.
    *arguments: what it is called with, each time.

  Returns:
    A function without arguments.
  """

  def seconds() -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start

  return seconds


def in_turn(
  arms: Mapping[str, Arm],
  repeats: int,
  warm_up: int = 1,
  seconds: float = math.inf,
) -> dict[str, Times]:
  """Runs all arms once, then once more, and so on.

  The order is turned round each time: no arm always follows the same one. A
  pause stands before each.

  Args:
    arms: by name.
    repeats: how often each is measured at most, at least 1.
    warm_up: rounds before those, of arms that have not run; they do not
      count.
    seconds: after the first `LEAST_REPEATS`, no round begins that would likely
      end later than this after the first that counts began.

  Returns:
    The times by name.
  """
  found = {name: [] for name in arms}
  start = time.perf_counter()
  for turn in range(warm_up + repeats):
    if turn == warm_up:
      start = time.perf_counter()
    made = turn - warm_up
    taken = time.perf_counter() - start
    if made >= LEAST_REPEATS and taken * (made + 1) > seconds * made:
      break
    names = list(arms) if turn % 2 else list(reversed(arms))
    for name in names:
      if turn < warm_up and arms[name].ran:
        continue
      time.sleep(PAUSE_SECONDS)
      repeat = arms[name].seconds()
      if turn >= warm_up:
        found[name].append(repeat)
  return {
    name: Times(tuple(made), arms[name].work) for name, made in found.items()
  }
