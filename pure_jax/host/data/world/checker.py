"""The checker of the embedded world: step labels, grades, kinds of
responses."""

import re
from collections.abc import Sequence

import numpy as np

from pure_jax.host.data.records import label_arrays, label_early_ends
from pure_jax.host.data.world.arithmetic import (
  FILLERS,
  SEPARATOR,
  ArithmeticProblem,
  compute,
  parse_problem,
)
from pure_jax.host.grading import verify
from pure_jax.host.text.tokenization import (
  Tokenizer,
  ended_by_choice,
  split_texts,
)

_EQUATION = re.compile(r"(\d+)([+-])(\d+)=(\d+)")
_BOX = re.compile(r"\\boxed\{([0-9]+)\}")


def is_vacuous(step: str) -> bool:
  """Whether a step neither computes nor answers: a filler sentence, or nothing.

  A repeated equation is not detected: this needs the steps before it, see
  `label_steps`.

  Args:
    step: the text of the step, without the separator.
  """
  return step == "" or step in FILLERS


def label_steps(
  problem: ArithmeticProblem, step_texts: Sequence[str]
) -> list[int | None]:
  """Labels each step by the rules of PRM800K: 1 (good), 0 (bad) or None.

  An equation is good if it is true *and* is the next one: its left side is the
  running value and the next operation of the problem. A filler sentence, an
  empty step and a repeated good equation are neutral, and therefore good. The
  box is good if all operations have been carried out and it contains the
  running value; a right answer without its derivation is a guess, and therefore
  bad. Everything after the box, and everything that cannot be parsed, is bad.
  Steps after the first bad one are not labelled.

  Args:
    problem: the problem.
    step_texts: the texts of the steps, without separators.
  """
  value, done, boxed, established = problem.first, 0, False, set()
  labels: list[int | None] = []
  for step in step_texts:
    if labels and labels[-1] != 1:
      labels.append(None)
      continue
    following = None
    if done < len(problem.operations):
      operator, operand = problem.operations[done]
      result = compute(value, operator, operand)
      following = f"{value}{operator}{operand}={result}"
    box = _BOX.fullmatch(step)
    if boxed:
      good = False
    elif step == following:  # First: 3-1+1-1 needs 3-1=2 twice.
      good, value, done = True, result, done + 1
      established.add(step)
    elif box:
      boxed = True
      good = done == len(problem.operations) and _is_number(box[1], value)
    else:
      good = step in established or is_vacuous(step)
    labels.append(int(good))
  return labels


def grade(problem: ArithmeticProblem, response: str) -> bool:
  """Whether the last box contains the chain's value: the verifiable reward.

  Args:
    problem: the problem.
    response: the text of the response; a decimal number in its last box counts.
  """
  content = verify.boxed(response) or ""
  decimal = content.isascii() and content.isdecimal()
  return decimal and _is_number(content, problem.answer)


def _is_number(digits: str, value: int) -> bool:
  """Whether digits are a number; `int` refuses more than 4,300 of them."""
  return (digits.lstrip("0") or "0") == str(value)


def classify(problem: ArithmeticProblem, step_texts: Sequence[str]) -> str:
  """Classifies a response, to show how a policy exploits a reward.

  Args:
    problem: the problem.
    step_texts: the texts of the steps, without separators.

  Returns:
    One of "right", "right without derivation", "nothing said", "only
    fillers", "no box", "empty box", "skipped steps", "misconception",
    "wrong equation", "wrong box".
  """
  labels = label_steps(problem, step_texts)
  if grade(problem, SEPARATOR.join(step_texts)):
    return "right" if 0 not in labels else "right without derivation"
  if not any(step_texts):
    return "nothing said"
  *before, last = step_texts
  if all(is_vacuous(step) for step in before) and any(
    sentence.startswith(last) for sentence in FILLERS
  ):  # The length limit may have cut the last one.
    return "only fillers"
  answer = verify.boxed(SEPARATOR.join(step_texts))
  if not answer:
    return "no box" if answer is None else "empty box"
  first_bad = step_texts[labels.index(0)] if 0 in labels else ""
  equation = _EQUATION.fullmatch(first_bad)
  if not equation:
    done = sum(1 for step in step_texts if _EQUATION.fullmatch(step))
    return "skipped steps" if done < len(problem.operations) else "wrong box"
  left, operator, right, result = equation.groups()
  if operator == "-" and int(left) + int(right) == int(result):
    return "misconception"
  return "wrong equation"


def label_rollout(
  tokenizer: Tokenizer,
  problems: Sequence[str],
  tokens: np.ndarray,
  completion_mask: np.ndarray,
  max_steps: int,
  read_end: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Labels sampled responses, aligned with the steps of `steps.split_steps`.

  If a response has more than `max_steps` steps, its last entry stands for the
  rest, see `records.label_arrays`.

  Args:
    tokenizer: decodes the responses.
    problems: the texts of B problems.
    tokens: [B, C] int, completion ids.
    completion_mask: [B, C] bool.
    max_steps: S, as given to `steps.split_steps`.
    read_end: True judges EOS with the last step: a response that ends without a
      box has a bad last step, if the steps before are good.

  Returns:
    (labels [B, S] int32, label_mask [B, S] bool).
  """
  step_texts = split_texts(tokenizer, tokens, completion_mask)
  labels = [
    label_steps(parse_problem(text), steps)
    for text, steps in zip(problems, step_texts, strict=True)
  ]
  if read_end:
    ended = ended_by_choice(tokenizer, tokens, completion_mask)
    has_box = [any(map(_BOX.fullmatch, steps)) for steps in step_texts]
    labels = label_early_ends(labels, ended & ~np.asarray(has_box, bool))
  return label_arrays(labels, max_steps)
