"""The responses of a rollout on the host: texts, verdicts, checks, metrics."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from pure_jax.host.data.batches import each_step_inputs
from pure_jax.host.data.records import (
  Problem,
  label_arrays,
  label_early_ends,
)
from pure_jax.host.distributed import global_batch, preemption
from pure_jax.host.evaluation import prm_metrics
from pure_jax.host.evaluation.response_facts import (
  ResponseFacts,
  response_facts,
)
from pure_jax.host.evaluation.rollout_metrics import Metrics, rollout_metrics
from pure_jax.host.text.tokenization import split_texts
from pure_jax.runs.run import Run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.tasks.task import Verdicts
from pure_jax.training.score import (
  PRMTexts,
  ScoredBatch,
  Scores,
  StepScores,
)
from pure_jax.types import PRMInputs, Rollout


@dataclasses.dataclass(frozen=True)
class GradedResponses:
  """Texts and verdicts of a rollout.

  Attributes:
    texts: step texts of the responses of this process's share.
    verdicts: the grader's verdicts on all B responses.
    gradable: [B] bool, whether the answer of the problem is known.
  """

  texts: list[list[str]]
  verdicts: Verdicts
  gradable: np.ndarray


def grade(
  run: Run, problems: Sequence[Problem], rollout: Rollout
) -> GradedResponses:
  """Decodes and grades a rollout; each process grades its share of the rows.

  Args:
    run: the open run.
    problems: B problems.
    rollout: B responses.
  """
  preemption.raise_received()
  rows = run.batches.share(len(problems))
  texts = step_texts(run, rollout, rows)
  verdicts = run.task.grade([problems[row] for row in rows], texts)
  everywhere = run.batches.gather(len(problems), dataclasses.asdict(verdicts))
  gradable = [problem.known_answer is not None for problem in problems]
  return GradedResponses(
    texts, Verdicts(**everywhere), np.asarray(gradable, bool)
  )


def step_texts(run: Run, rollout: Rollout, rows: np.ndarray) -> list[list[str]]:
  """Decodes responses: the step texts of each row.

  Args:
    run: the open run.
    rollout: B responses.
    rows: row numbers, of this process.
  """
  arrays = (rollout.tokens, rollout.completion_mask)
  tokens, mask = global_batch.read_rows(arrays, rows)
  return split_texts(run.task.tokenizer, tokens, mask)


def put_prm_texts(
  run: Run, problems: Sequence[Problem], rollout: Rollout
) -> PRMTexts:
  """Puts what the PRM reads of a rollout onto the devices.

  Each process makes the rows of its devices. If every step is encoded by
  itself, it waits for the rollout.

  Args:
    run: the open run.
    problems: B problems.
    rollout: B responses.

  Returns:
    The PRM's prompts [B, L'], or its inputs [B, T] if `prm.score.separator` is
    "each". Without a PRM, prompts without tokens.
  """
  spec, batches = run.spec, run.batches
  config, encoder = spec.step.scoring, batches.prm_prompt_encoder
  if spec.prm_model is None:
    return batches.put_no_prm_prompts(len(problems))
  if config.separator != "each":
    return batches.put_prm_prompts(problems)

  def make(rows: np.ndarray) -> PRMInputs:
    return each_step_inputs(
      encoder.tokenizer,
      [encoder.ids(problems[row]) for row in rows],
      step_texts(run, rollout, rows),
      spec.prm_columns,
      config.max_steps,
    )

  return batches.put_rows(len(problems), make)


def check_finite(
  run: Run, step: int, problems: Sequence[Problem], batch: ScoredBatch
) -> None:
  """Checks step rewards before they reach the policy.

  Args:
    run: the open run.
    step: number of the iteration.
    problems: B problems.
    batch: scored responses.

  Raises:
    FloatingPointError: if a step reward is not finite; the batch is saved.
  """
  rewards = global_batch.read_everywhere(batch.scores.step_rewards)
  bad = ~np.isfinite(rewards).all(axis=1)
  if bad.any():
    facts = {"problems": [problem.problem for problem in problems]}
    path = run.folder.dump_batch("rl", step, batch, facts)
    raise FloatingPointError(
      f"Iteration {step}: the PRM's step rewards of {bad.sum()} of "
      f"{bad.size} responses are not finite, first in row {bad.argmax()}. "
      f"The batch is in {path}. The policy was not updated; the last "
      "checkpoint is intact. Check the PRM's weights."
    )


def check_drift(run: Run, step: int, drift: jax.Array | None) -> None:
  """Checks the sampler's log-probs if the update uses them as the policy's.

  Args:
    run: the open run.
    step: number of the iteration.
    drift: [] float, their largest difference in nats; None if it was not
      measured.

  Raises:
    ConfigError: if it is beyond `rl.old_logp.tolerance`.
  """
  rl = run.spec.settings.rl
  if rl.old_logp.source != "sampled" or drift is None:
    return
  if not float(drift) <= rl.old_logp.tolerance:
    raise ConfigError(
      f"Iteration {step}: the sampler's log-probs are up to {float(drift):.3g} "
      "nats off the policy's, and rl.old_logp.source='sampled' allows only "
      f"rl.old_logp.tolerance={rl.old_logp.tolerance}. The "
      "policy was not updated; the last checkpoint is intact. The same command "
      "continues from there with --config.rl.old_logp.source=score."
    )


def gather_facts(
  run: Run,
  graded: GradedResponses,
  rollout: Rollout,
  scores: Scores | StepScores,
) -> ResponseFacts:
  """Computes the facts of responses, the same in every process.

  Args:
    run: the open run.
    graded: their texts and verdicts.
    rollout: B responses.
    scores: their steps and step rewards.
  """
  count = len(graded.verdicts.correct)
  rows = run.batches.share(count)
  own_rollout, steps = global_batch.read_rows((rollout, scores.steps), rows)
  rewards = None
  if run.spec.prm_model is not None:
    rewards = global_batch.read_rows(scores.step_rewards, rows)
  facts = response_facts(
    own_rollout,
    steps,
    rewards,
    graded.texts,
    [run.task.find_answer(texts) for texts in graded.texts],
    run.task.is_vacuous,
    run.spec.settings.rl.repetition_unit,
  )
  return ResponseFacts(**run.batches.gather(count, dataclasses.asdict(facts)))


def response_metrics(graded: GradedResponses, facts: ResponseFacts) -> Metrics:
  """Computes metrics of responses.

  Args:
    graded: their texts and verdicts.
    facts: their facts.
  """
  verdicts = graded.verdicts
  metrics = rollout_metrics(facts, verdicts.correct, graded.gradable)
  return metrics | verdicts.metrics


def step_labels(
  run: Run,
  problems: Sequence[Problem],
  graded: GradedResponses,
  truncated: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Labels the steps of responses by the task's checker.

  Every process must call it. If the PRM reads the end of a response, an end
  without an answer is bad.

  Args:
    run: the open run.
    problems: B problems.
    graded: texts and verdicts of B responses.
    truncated: [B] bool, cut by the length limit.

  Returns:
    (labels [B, S] int32, 1 for good; their mask [B, S] bool).
  """
  score, count = run.spec.settings.prm.score, len(truncated)
  rows = run.batches.share(count)
  labels = run.task.step_labels([problems[row] for row in rows], graded.texts)
  if score.read_end:
    answers = [run.task.find_answer(texts) for texts in graded.texts]
    unanswered = np.asarray([answer is None for answer in answers], bool)
    labels = label_early_ends(labels, unanswered & ~truncated[rows])
  return run.batches.gather(count, label_arrays(labels, score.max_steps))


def prm_step_metrics(
  run: Run,
  problems: Sequence[Problem],
  graded: GradedResponses,
  facts: ResponseFacts,
) -> Metrics:
  """Compares the PRM's scores of the policy's steps with labels of a checker.

  Every process must call it.

  Args:
    run: the open run.
    problems: B problems.
    graded: texts and verdicts of B responses.
    facts: their facts.

  Returns:
    Metrics by name, None without a value. Empty without a PRM.
  """
  if facts.step_rewards is None:
    return {}
  labels, mask = step_labels(run, problems, graded, facts.truncated)
  metrics = {}
  if np.isfinite(facts.step_rewards[mask]).all():
    metrics = prm_metrics.step_metrics(facts.step_rewards, labels == 1, mask)
  return {
    "prm_step_accuracy": metrics.get("step_accuracy"),
    "prm_balanced_accuracy": metrics.get("balanced_accuracy"),
    "prm_auc": metrics.get("auc"),
    "prm_calibration_error": metrics.get("calibration_error"),
    "prm_good_share": metrics.get("good_share"),
    "prm_labelled_steps": float(mask.sum()),
  }
