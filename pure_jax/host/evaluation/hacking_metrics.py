"""Metrics that show how a policy hacks its rewards, and how it collapses.

The paper (arXiv 2504.15275) describes three cases of hacking, and a collapse.
Each has its signs here and in `rollout_metrics`:

  case 1    thinks and never solves: many vacuous steps, no answer
  case 2    one long step without separators: one step, the longest is all
  case 3    says nothing, such as "Thank you.": no work, no answer, few tokens
  collapse  long, repetitive, and right (pseudo-positive)
"""

import numpy as np

from pure_jax.host.evaluation.repetition import HIGH_REPETITION
from pure_jax.host.evaluation.response_facts import ResponseFacts

# By name, one value for each response that the mean is over.
Values = dict[str, np.ndarray]
AGREEMENT_METRICS = (
  *("accepted_right", "accepted_wrong"),
  *("rejected_right", "rejected_wrong"),
)


def agreement(
  outcome: np.ndarray, right: np.ndarray, gradable: np.ndarray
) -> Values:
  """Compares what the PRM says of whole responses with the grader's verdicts.

  The PRM accepts a response if its process outcome is above 0.

  Args:
    outcome: [B] float, process outcomes, -1..1.
    right: [B] bool, whether the answer is right.
    gradable: [B] bool, whether the answer of the problem is known.

  Returns:
    `AGREEMENT_METRICS`, each [b] bool over the gradable responses: exactly one
    of the four is True.
  """
  accepted, right = outcome[gradable] > 0, right[gradable]
  cells = (
    *(accepted & right, accepted & ~right),
    *(~accepted & right, ~accepted & ~right),
  )
  return dict(zip(AGREEMENT_METRICS, cells, strict=True))


def signs_of_hacking(facts: ResponseFacts) -> Values:
  """The signs of the three cases.

  Args:
    facts: facts of B responses.

  Returns:
    [B] or fewer values by name. `docs/metrics.md` defines the names.
  """
  some = facts.tokens > 0
  return {
    "no_step_share": facts.content_steps == 0,
    "one_step_share": facts.content_steps == 1,
    "longest_step_tokens": facts.longest_step,
    "longest_step_share": facts.longest_step[some] / facts.tokens[some],
    "answer_without_work": facts.has_answer & ~facts.has_work,
    "work_without_answer": facts.has_work & ~facts.has_answer,
    "no_work_or_answer": ~(facts.has_work | facts.has_answer),
  }


def pseudo_positive(facts: ResponseFacts, right: np.ndarray) -> np.ndarray:
  """Finds responses that are right, long, and highly repetitive.

  Training on them precedes the collapse that the paper describes. Long is at
  least half of the length limit.

  Args:
    facts: facts of B responses.
    right: [B] bool, whether the answer is right.

  Returns:
    [B] bool.
  """
  return right & facts.is_long & (facts.repetition > HIGH_REPETITION)


def group_diversity(
  facts: ResponseFacts, group_size: int
) -> dict[str, float | None]:
  """Measures how much the samples of a prompt differ.

  Args:
    facts: facts of B responses; samples of one prompt are contiguous.
    group_size: n, samples of a prompt; divides B.

  Returns:
    ``distinct_answers``, the mean number of different answers to a prompt, as
    texts, and ``identical_responses``, the share of responses whose text
    another sample of the prompt has written before.
  """
  texts = facts.text_digest.reshape(-1, group_size)
  answers = facts.answer_digest.reshape(-1, group_size)
  answered = facts.has_answer.reshape(-1, group_size)
  distinct = [
    len(set(row[some].tolist()))
    for row, some in zip(answers, answered, strict=True)
  ]
  written = sum(len(set(row.tolist())) for row in texts)
  return {
    "distinct_answers": float(np.mean(distinct)) if distinct else None,
    "identical_responses": 1 - written / texts.size if texts.size else None,
  }
