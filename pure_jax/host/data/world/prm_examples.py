"""Responses written to be labelled: what the PRM learns beside real samples.

PRM800K rates several alternatives of a step after the same right beginning.
So do these: a fifth of them are right to the end, the others go wrong at a step
drawn evenly, in one of the ways below, and stop there (what follows a first
error has no label). Without them a PRM sees the mistakes that demonstrations
happen to contain, and RL finds the others.
"""

from collections.abc import Callable

import numpy as np

from pure_jax.host.data.world.arithmetic import (
  SENTENCES,
  SEPARATOR,
  Problem,
  WorldConfig,
  compute,
  sample_problem,
)

JUDGED_SEED = 2  # Apart from those of the splits of `arithmetic`.
# Every response holds right steps, only these a wrong one. With a rate of .5 a
# PRM found all right steps and missed up to a fifth of the wrong ones.
WRONG_RATE = 0.8
MAX_FILLERS = 3  # In a row, before a step.


def make_prm_example(config: WorldConfig, index: int) -> tuple[Problem, str]:
  """Example `index` of the labelled responses.

  The text alone: `arithmetic.label_steps` judges it like any other, so an
  alternative that happens to be right is labelled so.

  Args:
    config: the world; its problems and rate of vacuous steps are read.
    index: at least 0.

  Returns:
    (problem of the train split, response).
  """
  rng = np.random.default_rng((config.seed, JUDGED_SEED, index))
  problem = sample_problem(rng, config, "train")
  wrong_at = len(problem.operations) + 1  # Never.
  if rng.random() < WRONG_RATE:
    wrong_at = int(rng.integers(len(problem.operations) + 1))
  value, lines, equations = problem.first, [], []
  for done in range(len(problem.operations) + 1):
    if rng.random() < config.vacuous_rate:
      choices = [*SENTENCES, *equations[-1:]]
      for _ in range(rng.integers(1, MAX_FILLERS + 1)):
        lines.append(choices[rng.integers(len(choices))])
    if done == wrong_at:
      wrong = WRONG_STEPS[rng.integers(len(WRONG_STEPS))]
      lines.append(wrong(rng, config, problem, done, value))
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


def _number(rng: np.random.Generator, config: WorldConfig) -> int:
  return int(rng.integers(config.number_max + 1))


def _next_operation(problem: Problem, done: int) -> tuple[str, int]:
  """The operation to carry out; after the last one, that one again."""
  return problem.operations[min(done, len(problem.operations) - 1)]


def _wrong_result(rng, config, problem, done, value) -> str:
  """The right left side, a result that is near or anywhere."""
  operator, operand = _next_operation(problem, done)
  result = compute(value, operator, operand)
  near = max(0, result + int(rng.choice([-3, -2, -1, 1, 2, 3])))
  result = near if rng.random() < 0.7 else _number(rng, config)
  return f"{value}{operator}{operand}={result}"


def _other_operation_carried_out(rng, config, problem, done, value) -> str:
  """The right left side, computed with the other operator."""
  operator, operand = _next_operation(problem, done)
  other = "+" if operator == "-" else "-"
  result = max(0, compute(value, other, operand))
  return f"{value}{operator}{operand}={result}"


def _true_but_unasked(rng, config, problem, done, value) -> str:
  """A true equation with another operator or operand."""
  operator, operand = _next_operation(problem, done)
  if rng.random() < 0.5:
    operator = "+" if operator == "-" else "-"
  else:
    operand = int(rng.integers(1, config.operand_max + 1))
  return _true_equation(value, operator, operand)


def _from_another_value(rng, config, problem, done, value) -> str:
  """A true equation that starts from a value nobody reached."""
  operator, operand = _next_operation(problem, done)
  left = _number(rng, config)
  return _true_equation(left, operator, operand)


def _operation_left_out(rng, config, problem, done, value) -> str:
  """A true equation with the operation after the next."""
  return _true_equation(value, *_next_operation(problem, done + 1))


def _operation_repeated(rng, config, problem, done, value) -> str:
  """A true equation with the operation before the next."""
  return _true_equation(value, *_next_operation(problem, max(0, done - 1)))


def _true_equation(value: int, operator: str, operand: int) -> str:
  result = max(0, compute(value, operator, operand))
  return f"{value}{operator}{operand}={result}"


def _early_or_wrong_box(rng, config, problem, done, value) -> str:
  """The running value too early, or any number."""
  number = value if rng.random() < 0.5 else _number(rng, config)
  if done == len(problem.operations) and number == value:
    number += 1
  return f"\\boxed{{{number}}}"


def _scrap(rng, config, problem, done, value) -> str:
  """What is cut off, left empty or put together from pieces."""
  operator, operand = _next_operation(problem, done)
  result = compute(value, operator, operand)
  line = f"{value}{operator}{operand}={result}"
  number = str(_number(rng, config))
  pieces = [
    *("+", "-", "=", "\\boxed{", "}", "Let", " me", " think", " check"),
    *(str(value), str(operand), number, ".", "Let me"),
  ]
  chosen = [pieces[i] for i in rng.integers(len(pieces), size=5)]
  scraps = [
    f"{value}{operator}",
    f"{value}{operator}{operand}=",
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
  return scraps[rng.integers(len(scraps))]


def _after_the_box(rng, config, problem, done, value) -> str:
  """Something after a box: right beginnings may end only once."""
  line = f"\\boxed{{{value}}}"
  again = [line, SENTENCES[0], _wrong_result(rng, config, problem, 0, value)]
  return SEPARATOR.join([line, again[rng.integers(len(again))]])


WRONG_STEPS: tuple[Callable[..., str], ...] = (
  _wrong_result,
  _other_operation_carried_out,
  _true_but_unasked,
  _from_another_value,
  _operation_left_out,
  _operation_repeated,
  _early_or_wrong_box,
  _scrap,
  _after_the_box,
)
