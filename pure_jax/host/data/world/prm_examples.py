"""Responses with a mistake at a random step, to train the PRM on.

PRM800K labels several alternatives of a step after the same right beginning.
These examples do the same: a fifth of them are right to the end; the others go
wrong at a uniformly drawn step, in one of the ways of `WRONG_STEPS`, and stop
there, because steps after the first error are not labelled. Without them a PRM
sees only the mistakes that demonstrations happen to contain, and RL exploits
the others.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from pure_jax.host.data.world.arithmetic import (
  FILLERS,
  SEPARATOR,
  ArithmeticProblem,
  WorldConfig,
  compute,
  sample_problem,
)

RANDOM_STREAM = 2  # Streams 0 and 1 belong to the splits of `arithmetic`.
# Each response contains right steps, but only these contain a wrong one. With a
# rate of .5 a PRM recognised all right steps and missed up to a fifth of the
# wrong ones.
WRONG_RATE = 0.8
MAX_FILLERS = 3  # Fillers in a row before a step.
_OTHER = {"+": "-", "-": "+"}


@dataclasses.dataclass(frozen=True)
class _Position:
  """A point within a response that has been right so far.

  Attributes:
    config: the world.
    problem: the problem.
    done: number of operations carried out.
    value: the running value.
  """

  config: WorldConfig
  problem: ArithmeticProblem
  done: int
  value: int

  def operation(self, offset: int = 0) -> tuple[str, int]:
    """(operator, operand) of the next operation, or `offset` after it.

    Past either end it is the last or the first operation.
    """
    operations = self.problem.operations
    return operations[min(max(0, self.done + offset), len(operations) - 1)]

  def random_number(self, rng: np.random.Generator) -> int:
    """Any number of the world's vocabulary."""
    return int(rng.integers(self.config.number_max + 1))


def make_prm_example(
  config: WorldConfig, index: int
) -> tuple[ArithmeticProblem, str]:
  """Generates one example: (problem of the training split, response).

  `checker.label_steps` labels it: a drawn mistake may happen to be right.

  Args:
    config: the world. Only its problems and `vacuous_rate` are used.
    index: number of the example, from 0. Examples do not depend on each other.
  """
  rng = np.random.default_rng((config.seed, RANDOM_STREAM, index))
  problem = sample_problem(rng, config, "train")
  wrong_at = len(problem.operations) + 1  # Never.
  if rng.random() < WRONG_RATE:
    wrong_at = int(rng.integers(len(problem.operations) + 1))
  value, lines, equations = problem.first, [], []
  for done in range(len(problem.operations) + 1):
    if rng.random() < config.vacuous_rate:
      choices = [*FILLERS, *equations[-1:]]
      for _ in range(rng.integers(1, MAX_FILLERS + 1)):
        lines.append(choices[rng.integers(len(choices))])
    if done == wrong_at:
      wrong_step = WRONG_STEPS[rng.integers(len(WRONG_STEPS))]
      lines.append(wrong_step(rng, _Position(config, problem, done, value)))
      break
    if done == len(problem.operations):
      lines.append(f"\\boxed{{{value}}}")
      break
    operator, operand = problem.operations[done]
    result = compute(value, operator, operand)
    equations.append(f"{value}{operator}{operand}={result}")
    lines.append(equations[-1])
    value = result
  return problem, SEPARATOR.join(lines)


def _true_equation(value: int, operator: str, operand: int) -> str:
  result = max(0, compute(value, operator, operand))
  return f"{value}{operator}{operand}={result}"


def _wrong_result(rng: np.random.Generator, at: _Position) -> str:
  """The right left side with a result near the right one, or any result."""
  operator, operand = at.operation()
  result = compute(at.value, operator, operand)
  near = max(0, result + int(rng.choice([-3, -2, -1, 1, 2, 3])))
  result = near if rng.random() < 0.7 else at.random_number(rng)
  return f"{at.value}{operator}{operand}={result}"


def _other_operation_carried_out(
  rng: np.random.Generator, at: _Position
) -> str:
  """The right left side, computed with the other operator."""
  del rng
  operator, operand = at.operation()
  result = max(0, compute(at.value, _OTHER[operator], operand))
  return f"{at.value}{operator}{operand}={result}"


def _another_operation(rng: np.random.Generator, at: _Position) -> str:
  """A true equation with another operator or operand."""
  operator, operand = at.operation()
  if rng.random() < 0.5:
    operator = _OTHER[operator]
  else:
    operand = int(rng.integers(1, at.config.operand_max + 1))
  return _true_equation(at.value, operator, operand)


def _early_or_wrong_box(rng: np.random.Generator, at: _Position) -> str:
  """A box with the running value too early, or with any number."""
  number = at.value if rng.random() < 0.5 else at.random_number(rng)
  if at.done == len(at.problem.operations) and number == at.value:
    number += 1
  return f"\\boxed{{{number}}}"


def _fragment(rng: np.random.Generator, at: _Position) -> str:
  """A step that is cut off, empty, or put together from random pieces."""
  operator, operand = at.operation()
  line = f"{at.value}{operator}{operand}={compute(at.value, operator, operand)}"
  number = str(at.random_number(rng))
  pieces = [
    *("+", "-", "=", "\\boxed{", "}", "Let", " me", " think", " check"),
    *(str(at.value), str(operand), number, ".", "Let me"),
  ]
  chosen = [pieces[i] for i in rng.integers(len(pieces), size=5)]
  fragments = [
    f"{at.value}{operator}",
    f"{at.value}{operator}{operand}=",
    f"{line}={number}",
    f"{line}{operator}{operand}",
    "\\boxed{}",
    f"\\boxed{{{number}",
    f"\\boxed{{{line}}}",
    "Let me.",
    "Let",
    number,
    *("".join(chosen[: rng.integers(1, 6)]) for _ in range(5)),
  ]
  return fragments[rng.integers(len(fragments))]


def _after_the_box(rng: np.random.Generator, at: _Position) -> str:
  """The box, and a further step: nothing may follow the box."""
  box = f"\\boxed{{{at.value}}}"
  wrong_result = _wrong_result(rng, dataclasses.replace(at, done=0))
  further = [box, FILLERS[0], wrong_result]
  return SEPARATOR.join([box, further[rng.integers(len(further))]])


WRONG_STEPS: tuple[Callable[[np.random.Generator, _Position], str], ...] = (
  _wrong_result,
  _other_operation_carried_out,
  _another_operation,
  # True equations: from a random value, with the operation after the next one,
  # and with the operation before it.
  lambda rng, at: _true_equation(at.random_number(rng), *at.operation()),
  lambda rng, at: _true_equation(at.value, *at.operation(1)),
  lambda rng, at: _true_equation(at.value, *at.operation(-1)),
  _early_or_wrong_box,
  _fragment,
  _after_the_box,
)
