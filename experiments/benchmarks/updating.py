"""Peers that are given a batch: the same loss and the same advantages."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from benchmarks import batches
from benchmarks.cases import MODELS, BenchmarkError, Case
from benchmarks.credit import draw_experience
from benchmarks.environments import Peer
from benchmarks.gradients import OPTIMIZER, credit_settings, draw_labels
from benchmarks.programs import Compiled, Options
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


class _GivenABatch:
  """A peer that answers for one suite, on arrays that it is sent."""

  name: ClassVar[str]
  beside: ClassVar[str]
  suite: ClassVar[str]

  def __init__(self, peer: Peer):
    """Takes a running peer.

    Args:
      peer: of the script that `environments.SCRIPTS` has for the name.
    """
    self._peer = peer
    self._facts: dict[str, Any] = {}

  def takes(self, case: Case) -> bool:
    """Whether it can do what the case asks.

    Args:
      case: of any suite.

    Returns:
      False for another suite.
    """
    return case.suite == self.suite

  def facts(self) -> dict[str, Any]:
    """What a line tells of it.

    Returns:
      ``versions``, ``peak_bytes`` of its process, and the largest difference
      from our answer.
    """
    return dict(self._facts)

  def _answer(self, arrays: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Sends a batch, and has it run once.

    Args:
      arrays: by argument of the script's `prepare`.
      **fields: the others.

    Returns:
      The script's `answer`.
    """
    sent = {name: np.asarray(x).tolist() for name, x in arrays.items()}
    self._facts |= self._peer.ask("prepare", **sent, **fields)
    self._peer.ask("run")
    return self._peer.ask("answer")

  def _hold(
    self,
    case: Case,
    options: Options,
    found: Mapping[str, float],
    ours: np.ndarray,
    allowed: float = 0.0,
  ) -> None:
    """Compares loss and gradient norm, in float32 to a thousandth and more."""
    theirs = np.array([found["loss"], found["grad_norm"]])
    differ = float(np.abs(theirs / ours - 1).max())
    self._facts["largest_relative_difference"] = differ
    if options.dtype == "float32" and not differ < 1e-3 + allowed:
      raise BenchmarkError(
        f"{case}: loss and gradient norm of {self.name} are {theirs}, ours "
        f"{ours}: the steps are not the same."
      )


class Updating(_GivenABatch):
  """The step of TRL's GRPOTrainer, given our advantages."""

  name, beside, suite = "trl", "update", "update"

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
        thousandth, and what it makes that we give no probability to padding.
    """
    model = options.model(case.model)
    self._facts |= self._peer.load(case, options)
    prompts = batches.draw_prompts(case, model.vocab_size)
    drawn = batches.draw_rollout(case, prompts, model.vocab_size)
    advantages, _ = jax.jit(pure_advantages, static_argnums=1)(
      draw_experience(case, model.vocab_size), credit_settings(case)
    )
    arrays = {
      "prompts": drawn.prompt_tokens,
      "completions": drawn.tokens,
      "advantages": advantages,
      "old_logp": drawn.sampled_logp,
    }
    found = self._answer(
      arrays,
      samples=case.samples,
      parts=batches.micro_batches(case.rows, options.rows_at_a_time),
      pad_id=batches.PAD_ID,
      remat=options.remat != "none",
      optimizer=TRAINING_ARGUMENTS,
    )
    self._hold(case, options, found, ours.answer, 2 / model.vocab_size)
    return self._peer.arm(self._facts, ours.arm.work)


class TrainingPRM(_GivenABatch):
  """The step of TRL's PRMTrainer."""

  name, beside, suite = "trl_prm", "prm", "prm"

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
        thousandth.
    """
    model = options.model(case.model)
    self._facts |= self._peer.load(case, options, ("prm",))
    drawn = batches.draw_rollout(
      case, batches.draw_prompts(case, model.vocab_size), model.vocab_size
    )
    inputs, _ = jax.device_get(
      jax.jit(prm_inputs, static_argnums=0)(
        CONFIG, batches.separator_table(model.vocab_size), drawn
      )
    )
    texts, scored, labels = [], [], []
    for row, good in enumerate(draw_labels(case)):
      there = inputs.score_mask[row]
      texts.append(inputs.tokens[row][inputs.mask[row]].tolist())
      scored.append(inputs.score_position[row][there].tolist())
      labels.append(good[there].tolist())
    found = self._answer(
      {},
      texts=texts,
      scored=scored,
      labels=labels,
      pad_id=batches.PAD_ID,
      remat=options.remat != "none",
      optimizer=TRAINING_ARGUMENTS,
    )
    self._hold(case, options, found, ours.answer)
    return self._peer.arm(self._facts, ours.arm.work)


class TorchCredit(_GivenABatch):
  """Credit and advantages as the obvious torch loop."""

  name, beside, suite = "torch_credit", "credit", "credit"

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
    found = self._answer(
      arrays, samples=case.samples, temperature=settings.temperature
    )
    theirs = np.array(found["advantages"])
    differ = float(np.abs(theirs - np.asarray(ours.answer)).max())
    self._facts["largest_difference"] = differ
    if not differ < 1e-4:
      raise BenchmarkError(
        f"{case}: advantages differ by {differ:.2g}: the formulas are not the "
        "same."
      )
    return self._peer.arm(self._facts, ours.arm.work)
