"""Repeated timings of several programs, interleaved.

Whatever else the machine does at the time then slows all of them alike.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

# Idle threads spin for a while before they sleep. The pause keeps those of one
# arm from taking the cores of the next.
PAUSE_SECONDS = 0.05
# A single repeat shows no spread.
LEAST_REPEATS = 2


@dataclasses.dataclass(frozen=True)
class Arm:
  """A program that is timed repeatedly.

  Attributes:
    seconds: runs the program once and returns the seconds it took.
    work: amount of work in one run: bytes, FLOPs or tokens.
    ran: whether the program has run already, so that it needs no warm-up.
  """

  seconds: Callable[[], float]
  work: float = 0.0
  ran: bool = False


@dataclasses.dataclass(frozen=True)
class Times:
  """The timed repeats of one arm.

  Attributes:
    seconds: seconds of each repeat, in order.
    work: amount of work in one repeat.
  """

  seconds: tuple[float, ...]
  work: float

  @property
  def median(self) -> float:
    """Median seconds."""
    return float(np.median(self.seconds))

  @property
  def rate(self) -> float:
    """Work per second, from the median."""
    return self.work / self.median


def timed(function: Callable[..., Any], *arguments: Any) -> Callable[[], float]:
  """Makes a function that times one call of another.

  Args:
    function: the timed function; its arrays are waited for.
    *arguments: of each call.

  Returns:
    A function without arguments that returns seconds.
  """

  def seconds() -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start

  return seconds


def time_interleaved(
  arms: Mapping[str, Arm],
  repeats: int,
  warm_up: int = 1,
  seconds: float = math.inf,
) -> dict[str, Times]:
  """Times all arms in rounds, each arm once per round.

  Every other round reverses the order, so that no arm always follows the same
  one. A pause precedes each run.

  Args:
    arms: by name.
    repeats: most timed rounds, at least 1.
    warm_up: rounds before those, which do not count; they leave out arms that
      have run already.
    seconds: time limit of the timed rounds. After `LEAST_REPEATS` of them, no
      round begins that would exceed it at the mean time of a round so far.

  Returns:
    The times by name.
  """
  times = {name: [] for name in arms}
  start = time.perf_counter()
  for turn in range(warm_up + repeats):
    if turn == warm_up:
      start = time.perf_counter()
    done = turn - warm_up
    elapsed = time.perf_counter() - start
    if done >= LEAST_REPEATS and elapsed * (done + 1) > seconds * done:
      break
    names = list(arms) if turn % 2 else list(reversed(arms))
    for name in names:
      if turn < warm_up and arms[name].ran:
        continue
      time.sleep(PAUSE_SECONDS)
      repeat = arms[name].seconds()
      if turn >= warm_up:
        times[name].append(repeat)
  return {
    name: Times(tuple(repeats), arms[name].work)
    for name, repeats in times.items()
  }
