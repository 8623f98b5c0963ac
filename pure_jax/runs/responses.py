"""The responses of a rollout on the host: texts, verdicts, metrics."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pure_jax.host.data.records import Problem
from pure_jax.host.distributed import global_batch
from pure_jax.host.evaluation.rollout_metrics import (
  ResponseFacts,
  response_facts,
  rollout_metrics,
)
from pure_jax.host.text.tokenization import split_texts
from pure_jax.runs.run import Run
from pure_jax.runs.tasks.task import Verdicts
from pure_jax.training.score import Scores
from pure_jax.types import Rollout


@dataclasses.dataclass(frozen=True)
class GradedResponses:
  """Texts and verdicts of a rollout.

  Attributes:
    texts: step texts of the responses of this process's share.
    verdicts: the grader's verdicts on all B responses.
  """

  texts: list[list[str]]
  verdicts: Verdicts


def grade(
  run: Run, problems: Sequence[Problem], rollout: Rollout
) -> GradedResponses:
  """Decodes and grades a rollout; each process grades its share of the rows.

  Args:
    run: the open run.
    problems: B problems.
    rollout: B responses.

  Returns:
    Their texts and verdicts.
  """
  rows = run.batches.share(len(problems))
  texts = step_texts(run, rollout, rows)
  verdicts = run.task.grade([problems[row] for row in rows], texts)
  everywhere = run.batches.gather(len(problems), dataclasses.asdict(verdicts))
  return GradedResponses(texts, Verdicts(**everywhere))


def step_texts(run: Run, rollout: Rollout, rows: np.ndarray) -> list[list[str]]:
  """Decodes responses whose rows are in this process.

  Args:
    run: the open run.
    rollout: B responses.
    rows: row numbers.

  Returns:
    The step texts of each row.
  """
  arrays = (rollout.tokens, rollout.completion_mask)
  tokens, mask = global_batch.read_rows(arrays, rows)
  return split_texts(run.task.tokenizer, tokens, mask)


def response_metrics(
  run: Run, graded: GradedResponses, rollout: Rollout, scores: Scores
) -> dict[str, float]:
  """Computes metrics of graded and scored responses.

  Args:
    run: the open run.
    graded: their texts and verdicts.
    rollout: B responses.
    scores: their steps and step rewards.

  Returns:
    Metrics by name, the same in every process.
  """
  verdicts = graded.verdicts
  count = len(verdicts.correct)
  rows = run.batches.share(count)
  own_rollout, steps = global_batch.read_rows((rollout, scores.steps), rows)
  rewards = None
  if run.spec.prm_model is not None:
    rewards = global_batch.read_rows(scores.step_rewards, rows)
  facts = response_facts(
    own_rollout, steps, rewards, graded.texts, run.task.is_vacuous
  )
  facts = ResponseFacts(**run.batches.gather(count, dataclasses.asdict(facts)))
  return rollout_metrics(facts, verdicts.correct) | verdicts.metrics
