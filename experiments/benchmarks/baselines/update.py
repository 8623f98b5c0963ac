"""Baselines of gradient steps: TRL's trainers of GRPO and PRMs."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from benchmarks import batches
from benchmarks.baselines.baseline import Baseline
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import Options
from benchmarks.programs import Program
from benchmarks.suites.score import SCORING
from benchmarks.suites.update import OPTIMIZER, credit_config
from benchmarks.timing import Arm
from pure_jax.advantages import pure_advantages
from pure_jax.training.micro_batches import count_micro_batches
from pure_jax.training.score import prm_inputs
from pure_jax.training.train import experience_from
from pure_jax.types import Experience

# The fields of our optimizer under the names of transformers.
TRAINING_ARGUMENTS = {
  "learning_rate": OPTIMIZER.learning_rate,
  "weight_decay": OPTIMIZER.weight_decay,
  "adam_beta1": OPTIMIZER.beta1,
  "adam_beta2": OPTIMIZER.beta2,
  "max_grad_norm": OPTIMIZER.max_grad_norm,
}


def trainer_fields(
  case: Case, options: Options, algorithm: str
) -> dict[str, Any]:
  """Lists the fields of `TrainerConfig` in `scripts/trl_training.py`.

  Args:
    case: sizes.
    options: rows of a micro-batch, and rematerialisation.
    algorithm: "grpo" or "prm".

  Returns:
    The fields, JSON-like.
  """
  return {
    "algorithm": algorithm,
    "rows": case.rows,
    "samples": case.samples,
    "new_tokens": case.new_tokens,
    "micro_batches": count_micro_batches(case.rows, options.rows_at_a_time),
    "pad_id": batches.PAD_ID,
    "remat": options.recomputes_layers,
    "optimizer": TRAINING_ARGUMENTS,
  }


def draw_experience(case: Case, vocab_size: int) -> Experience:
  """Draws a random batch in the form in which credit reads it.

  Args:
    case: B rows of C tokens.
    vocab_size: V.

  Returns:
    The batch.
  """
  table = batches.separator_table(vocab_size)
  rollout = batches.draw_rollout(case, vocab_size)
  batch = batches.draw_scored_batch(rollout, table)
  return jax.jit(experience_from)(batch, table)


@dataclasses.dataclass(frozen=True)
class Step:
  """The inputs of a trainer, and the results that it must reproduce.

  Attributes:
    batch: fields of the batch as the script's `prepare` takes them.
    reference: [loss, norm of the gradient].
    tolerance: relative difference that is allowed on top of a thousandth.
  """

  batch: dict[str, Any]
  reference: np.ndarray
  tolerance: float = 0.0


class UpdateBaseline(Baseline):
  """A trainer that takes gradient steps on a given batch."""

  compared_with = "update"
  algorithm: ClassVar[str]
  model_kind: ClassVar[str] = "policy"

  def arm(self, case: Case, options: Options, ours: Program) -> Arm:
    """Prepares a case and compares the loss and the norm of the gradient.

    Args:
      case: the batch.
      options: how the model runs.
      ours: the arm of ours; its reference is [loss, norm of the gradient].

    Returns:
      The arm.

    Raises:
      BenchmarkError: if in float32 one of the two differs by more than a
        thousandth plus the differences due to rounding or to the objectives.
    """
    self._load(case, options, (self.model_kind,))
    step = self._make_step(case, options, ours)
    self._process.call(
      "prepare",
      trainer=trainer_fields(case, options, self.algorithm),
      **step.batch,
    )
    self._process.call("run")
    answer = self._process.call("answer")
    theirs = np.array([answer["loss"], answer["grad_norm"]])
    difference = float(np.abs(theirs / step.reference - 1).max())
    self.info["largest_relative_difference"] = difference
    if options.dtype == "float32" and not difference < 1e-3 + step.tolerance:
      raise BenchmarkError(
        f"{case}: loss and gradient norm of {self.name} are {theirs}, ours "
        f"{step.reference}: the steps are not the same."
      )
    return self._timed_run(ours.arm.work, ran=True)

  def _make_step(self, case: Case, options: Options, ours: Program) -> Step:
    raise NotImplementedError


def _rollout_fields(
  case: Case, vocab_size: int, advantages: Any, old_logp: Any
) -> dict[str, Any]:
  """The batch of GRPO and RLOO: responses with advantages and log-probs."""
  rollout = batches.draw_rollout(case, vocab_size)
  return {
    "prompts": np.asarray(rollout.prompt_tokens).tolist(),
    "completions": np.asarray(rollout.tokens).tolist(),
    "advantages": np.asarray(advantages).tolist(),
    "old_logp": np.asarray(old_logp).tolist(),
  }


class GRPOUpdate(UpdateBaseline):
  """The step of TRL's GRPOTrainer, given our advantages."""

  algorithm = "grpo"

  def _make_step(self, case: Case, options: Options, ours: Program) -> Step:
    vocab_size = options.model(case.model).vocab_size
    experience = draw_experience(case, vocab_size)
    advantages, _ = jax.jit(pure_advantages, static_argnums=1)(
      experience, credit_config(case)
    )
    batch = _rollout_fields(case, vocab_size, advantages, experience.old_logp)
    # Only ours gives padding no probability.
    return Step(batch, ours.reference, tolerance=2 / vocab_size)


class PRMUpdate(UpdateBaseline):
  """The step of TRL's PRMTrainer."""

  compared_with, algorithm, model_kind = "prm", "prm", "prm"

  def _make_step(self, case: Case, options: Options, ours: Program) -> Step:
    """Inserts score tokens into the texts, each with a label."""
    vocab_size = options.model(case.model).vocab_size
    rollout = batches.draw_rollout(case, vocab_size)
    inputs, _ = jax.device_get(
      jax.jit(prm_inputs, static_argnums=0)(
        SCORING, batches.separator_table(vocab_size), rollout
      )
    )
    texts, positions, labels = [], [], []
    for row, row_labels in enumerate(batches.draw_labels(case)):
      steps = inputs.score_mask[row]
      texts.append(inputs.tokens[row][inputs.mask[row]].tolist())
      positions.append(inputs.score_position[row][steps].tolist())
      labels.append(row_labels[steps].tolist())
    batch = {"texts": texts, "score_positions": positions, "labels": labels}
    return Step(batch, ours.reference)
