"""Peers that are given a batch: the same loss and the same advantages."""

import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks import batches
from benchmarks.cases import MODELS, BenchmarkError, Case
from benchmarks.credit import draw_experience
from benchmarks.gradients import OPTIMIZER, credit_settings, draw_labels
from benchmarks.programs import Compiled, Options
from benchmarks.rival import Rival
from benchmarks.rloo import draw_rloo
from benchmarks.scoring import CONFIG
from benchmarks.timing import Arm
from pure_jax.advantages import pure_advantages
from pure_jax.training.score import prm_inputs

# What transformers calls the fields of our optimizer.
TRAINING_ARGUMENTS = {
  "learning_rate": OPTIMIZER.learning_rate,
  "weight_decay": OPTIMIZER.weight_decay,
  "adam_beta1": OPTIMIZER.beta1,
  "adam_beta2": OPTIMIZER.beta2,
  "max_grad_norm": OPTIMIZER.max_grad_norm,
}


@dataclasses.dataclass(frozen=True)
class _Batch:
  """What a peer is given and has to find.

  Attributes:
    fields: arguments of the script's `prepare`.
    answer: loss and gradient norm, [2].
    allowed: by how much of them the peer may differ beside a thousandth.
  """

  fields: dict[str, Any]
  answer: np.ndarray
  allowed: float = 0.0


class _Stepping(Rival):
  """A peer that takes gradient steps on a batch that it is sent."""

  kinds = ("policy",)

  def arm(self, case: Case, options: Options, ours: Compiled) -> Arm:
    """Makes ready for a case, and checks the loss and its gradient.

    Args:
      case: the batch.
      options: how the model runs.
      ours: the arm beside it; its answer is the loss and the gradient's norm.

    Returns:
      The arm.

    Raises:
      BenchmarkError: if in float32 one of the two differs by more than a
        thousandth, and what the rounding or the objectives account for.
    """
    self._facts |= self._peer.load(case, options, self.kinds)
    batch = self._draw(case, options, ours)
    self._facts |= self._peer.ask(
      "prepare",
      **batch.fields,
      pad_id=batches.PAD_ID,
      remat=options.remakes_layers,
      optimizer=TRAINING_ARGUMENTS,
    )
    self._peer.ask("run")
    found = self._peer.ask("answer")
    theirs = np.array([found["loss"], found["grad_norm"]])
    differ = float(np.abs(theirs / batch.answer - 1).max())
    self._facts["largest_relative_difference"] = differ
    if options.dtype == "float32" and not differ < 1e-3 + batch.allowed:
      raise BenchmarkError(
        f"{case}: loss and gradient norm of {self.name} are {theirs}, ours "
        f"{batch.answer}: the steps are not the same."
      )
    return self._peer.arm(self._facts, ours.arm.work, ran=True)

  def _draw(self, case: Case, options: Options, ours: Compiled) -> _Batch:
    """What is sent, and what has to come back."""
    raise NotImplementedError


def _policy_fields(
  case: Case, options: Options, algorithm: str, **given: Any
) -> dict[str, Any]:
  """Arguments of `prepare` of `peers/trl_update.py`."""
  vocab_size = options.model(case.model).vocab_size
  prompts = batches.draw_prompts(case, vocab_size)
  drawn = batches.draw_rollout(case, prompts, vocab_size)
  arrays = given | {
    "prompts": drawn.prompt_tokens,
    "completions": drawn.tokens,
  }
  return {name: np.asarray(x).tolist() for name, x in arrays.items()} | {
    "algorithm": algorithm,
    "samples": case.samples,
    "parts": batches.micro_batches(case.rows, options.rows_at_a_time),
  }


class Updating(_Stepping):
  """The step of TRL's GRPOTrainer, given our advantages."""

  suite, beside = "update", "update"

  def _draw(self, case: Case, options: Options, ours: Compiled) -> _Batch:
    """The batch of our arm; only we give no probability to padding."""
    vocab_size = options.model(case.model).vocab_size
    batch = draw_experience(case, vocab_size)
    advantages, _ = jax.jit(pure_advantages, static_argnums=1)(
      batch, credit_settings(case)
    )
    fields = _policy_fields(
      case, options, "grpo", advantages=advantages, old_logp=batch.old_logp
    )
    return _Batch(fields, ours.answer, 2 / vocab_size)


class UpdatingRLOO(_Stepping):
  """The step of TRL's RLOOTrainer on the same responses.

  It has an advantage for a response and a ratio of whole responses, so it is
  held to `rloo.draw_rloo`, not to the answer of our arm, which is timed.
  """

  suite, beside = "update", "update"

  def _draw(self, case: Case, options: Options, ours: Compiled) -> _Batch:
    """Advantages of a leave-one-out baseline, and what they give."""
    del ours
    given = draw_rloo(case, options)
    fields = _policy_fields(
      case,
      options,
      "rloo",
      advantages=given.advantages,
      old_logp=given.old_logp,
    )
    return _Batch(fields, given.answer, given.rounded)


class TrainingPRM(_Stepping):
  """The step of TRL's PRMTrainer."""

  suite, beside, kinds = "prm", "prm", ("prm",)

  def _draw(self, case: Case, options: Options, ours: Compiled) -> _Batch:
    """Texts with their score tokens, and a label for each."""
    vocab_size = options.model(case.model).vocab_size
    drawn = batches.draw_rollout(
      case, batches.draw_prompts(case, vocab_size), vocab_size
    )
    inputs, _ = jax.device_get(
      jax.jit(prm_inputs, static_argnums=0)(
        CONFIG, batches.separator_table(vocab_size), drawn
      )
    )
    texts, scored, labels = [], [], []
    for row, good in enumerate(draw_labels(case)):
      there = inputs.score_mask[row]
      texts.append(inputs.tokens[row][inputs.mask[row]].tolist())
      scored.append(inputs.score_position[row][there].tolist())
      labels.append(good[there].tolist())
    return _Batch(
      {"texts": texts, "scored": scored, "labels": labels}, ours.answer
    )


class TorchCredit(Rival):
  """Credit and advantages as the obvious torch loop."""

  suite, beside = "credit", "credit"

  def arm(self, case: Case, options: Options, ours: Compiled) -> Arm:
    """Makes ready for a case, and checks the advantages.

    Args:
      case: the batch.
      options: not used: credit has no model.
      ours: the arm beside it; its answer is the advantages.

    Returns:
      The arm.

    Raises:
      BenchmarkError: if an advantage differs by more than 1e-4; they have a
        variance of 1.
    """
    del options
    batch = draw_experience(case, MODELS[case.model].vocab_size)
    settings = credit_settings(case)
    arrays = {
      "step_rewards": batch.step_rewards,
      "step_counts": batch.steps.mask.sum(axis=1),
      "step_index": batch.steps.index,
      "lengths": batch.completion_mask.sum(axis=1),
      "correct": batch.correct,
    }
    self._facts |= self._peer.ask(
      "prepare",
      **{name: np.asarray(x).tolist() for name, x in arrays.items()},
      samples=case.samples,
      temperature=settings.temperature,
    )
    self._peer.ask("run")
    found = self._peer.ask("answer")
    theirs = np.array(found["advantages"])
    differ = float(np.abs(theirs - np.asarray(ours.answer)).max())
    self._facts["largest_difference"] = differ
    if not differ < 1e-4:
      raise BenchmarkError(
        f"{case}: advantages differ by {differ:.2g}: the formulas are not the "
        "same."
      )
    return self._peer.arm(self._facts, ours.arm.work, ran=True)
