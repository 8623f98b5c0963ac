"""Facts of single responses, from which the metrics of a batch are computed."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from pure_jax.host.evaluation.repetition import response_repetition
from pure_jax.host.text.tokenization import SEPARATOR
from pure_jax.types import Rollout, StepBoundaries

# Words with which a response looks back at what it has written: the list of
# PURE's code (github.com/CJReinforce/PURE, branch verl,
# verl/utils/monitored_metric), which extends that of Open-Reasoner-Zero.
REFLECTION_PATTERNS = tuple(
  re.compile(pattern)
  for pattern in (
    r"wait,",
    r"alternatively,",
    r"however,",
    r"recheck[,\s]",
    r"rethink[,\s]",
    r"retry[,\s]",
    r"try again",
    r"let's check",
    r"let's verify",
  )
)
_BOX = "\\boxed"
_DIGIT, _NUMBER = re.compile(r"\d"), re.compile(r"\d[\d.,]*")


@dataclasses.dataclass(frozen=True)
class ResponseFacts:
  """Per-response quantities from which the metrics are computed.

  Each process computes them for its own rows; they are small enough to be
  gathered for the whole batch.

  Attributes:
    tokens: [B] int64, number of tokens.
    truncated: [B] bool, cut by the length limit.
    at_limit: [B] bool, as long as the limit: truncated, or ended with its last
      token.
    is_long: [B] bool, at least half as long as the limit.
    longest_step: [B] int64, tokens of the longest step.
    repetition: [B] float64, see `repetition_score`.
    reflection_words: [B] int64, see `count_reflection_words`.
    has_work: [B] bool, see `has_work`.
    has_answer: [B] bool, whether an answer is found.
    answer_digest: [B] uint64, a hash of the answer; any value without one.
    text_digest: [B] uint64, a hash of the text.
    written_steps: [B] int64, number of step texts.
    vacuous_steps: [B] int64, how many of them claim and conclude nothing.
    step_mask: [B, S] bool, True where the step exists.
    empty: [B, S] bool, steps without content.
    overflow: [B] int32, steps merged into the last one.
    step_rewards: [B, S] float32, -1..1; None without a PRM.
  """

  tokens: np.ndarray
  truncated: np.ndarray
  at_limit: np.ndarray
  is_long: np.ndarray
  longest_step: np.ndarray
  repetition: np.ndarray
  reflection_words: np.ndarray
  has_work: np.ndarray
  has_answer: np.ndarray
  answer_digest: np.ndarray
  text_digest: np.ndarray
  written_steps: np.ndarray
  vacuous_steps: np.ndarray
  step_mask: np.ndarray
  empty: np.ndarray
  overflow: np.ndarray
  step_rewards: np.ndarray | None

  @property
  def content_steps(self) -> np.ndarray:
    """[B] int64, number of steps with content."""
    return (self.step_mask & ~self.empty).sum(1)


def response_facts(
  rollout: Rollout,
  steps: StepBoundaries,
  step_rewards: np.ndarray | None,
  step_texts: Sequence[Sequence[str]],
  answers: Sequence[str | None],
  is_vacuous: Callable[[str], bool],
  repetition_unit: str = "characters",
) -> ResponseFacts:
  """Computes the facts of each of B responses.

  Args:
    rollout: numpy arrays, [B, C].
    steps: numpy arrays, [B, C] and [B, S].
    step_rewards: [B, S] float, -1..1; None without a PRM.
    step_texts: B lists with the text of each step.
    answers: B answers as text; None where the response gives none.
    is_vacuous: tells whether a step's text claims and concludes nothing.
    repetition_unit: one of `repetition.UNITS`.
  """
  mask = np.asarray(rollout.completion_mask)
  lengths, limit = mask.sum(1), mask.shape[1]
  texts = [SEPARATOR.join(steps_of_row) for steps_of_row in step_texts]
  rows = zip(texts, np.asarray(rollout.tokens), lengths, strict=True)
  repetition = [
    response_repetition(text, row[:length], repetition_unit)
    for text, row, length in rows
  ]
  reflection = [count_reflection_words(text) for text in texts]
  vacuous = [sum(map(is_vacuous, texts)) for texts in step_texts]
  return ResponseFacts(
    tokens=lengths,
    truncated=np.asarray(rollout.truncated),
    at_limit=lengths == limit,
    is_long=2 * lengths >= limit,
    longest_step=_longest_step(steps),
    repetition=np.asarray(repetition, np.float64),
    reflection_words=np.asarray(reflection, np.int64),
    has_work=np.asarray([has_work(text) for text in texts], bool),
    has_answer=np.asarray([answer is not None for answer in answers], bool),
    answer_digest=_digests([answer or "" for answer in answers]),
    text_digest=_digests(texts),
    written_steps=np.asarray([len(texts) for texts in step_texts], np.int64),
    vacuous_steps=np.asarray(vacuous, np.int64),
    step_mask=np.asarray(steps.mask),
    empty=np.asarray(steps.empty),
    overflow=np.asarray(steps.overflow),
    step_rewards=None if step_rewards is None else np.asarray(step_rewards),
  )


def count_reflection_words(text: str) -> int:
  """Counts the reflection words of a response.

  As in PURE's code, the patterns match the lowercased text, without word
  boundaries ("await," has "wait,"), and each is counted by itself ("retry
  again" counts twice).

  >>> count_reflection_words("Wait, 3+5=8. However, let's verify: 8-5=3.")
  3
  >>> count_reflection_words("")
  0

  Args:
    text: any text.
  """
  lowered = text.lower()
  return sum(len(pattern.findall(lowered)) for pattern in REFLECTION_PATTERNS)


def has_work(text: str) -> bool:
  r"""Whether a response writes numbers before its answer.

  The answer begins at the last ``\boxed``, or, without one, at the last number.
  A restated problem counts as work, and a derivation without any number does
  not.

  >>> has_work(r"3+5=8. \boxed{8}"), has_work(r"The answer is \boxed{8}")
  (True, False)
  >>> has_work("3 and 5 are 8"), has_work("Thank you."), has_work("It is 8.")
  (True, False, False)

  Args:
    text: any text.
  """
  before, box, _ = text.rpartition(_BOX)
  if box:
    return _DIGIT.search(before) is not None
  numbers = _NUMBER.finditer(text)
  return next(numbers, None) is not None and next(numbers, None) is not None


def _longest_step(steps: StepBoundaries) -> np.ndarray:
  """[B] int64, the tokens of the longest step, 0 without steps."""
  mask = np.asarray(steps.mask)
  ends = np.where(mask, np.asarray(steps.end_position), -1).astype(np.int64)
  before = np.pad(ends, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  return np.where(mask, ends - before, 0).max(axis=1, initial=0)


def _digests(texts: Sequence[str]) -> np.ndarray:
  """[B] uint64, a hash of each text, the same in every process."""
  digests = b"".join(
    hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
    for text in texts
  )
  return np.frombuffer(digests, np.uint64)
