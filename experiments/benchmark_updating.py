"""Peers that learn: the same batch, and the same loss and advantages."""

from typing import Any

import benchmark_batches as batches
import jax
import numpy as np
from benchmark_cases import MODELS, BenchmarkError, Case
from benchmark_environments import Peer
from benchmark_programs import Compiled, Options
from benchmark_suites import OPTIMIZER, credit_settings, draw_experience
from benchmark_timing import Arm

from pure_jax.advantages import pure_advantages


class Updating:
  """The step of TRL's GRPOTrainer, given our advantages."""

  name, beside = "trl", "update"

  def __init__(self, peer: Peer):
    """Takes a running peer.

    Args:
      peer: of `benchmark_peers/trl_update.py`.
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
    return case.suite == "update"

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
    self._facts |= self._peer.load(model)
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
    self._peer.ask(
      "prepare",
      **{name: np.asarray(x).tolist() for name, x in arrays.items()},
      samples=case.samples,
      parts=batches.micro_batches(case.rows, options.rows_at_a_time),
      pad_id=batches.PAD_ID,
      remat=options.remat != "none",
      optimizer={
        "learning_rate": OPTIMIZER.learning_rate,
        "weight_decay": OPTIMIZER.weight_decay,
        "adam_beta1": OPTIMIZER.beta1,
        "adam_beta2": OPTIMIZER.beta2,
        "max_grad_norm": OPTIMIZER.max_grad_norm,
      },
    )
    self._peer.ask("run")
    found = self._peer.ask("answer")
    theirs = np.array([found["loss"], found["grad_norm"]])
    differ = float(np.abs(theirs / ours.answer - 1).max())
    self._facts["largest_relative_difference"] = differ
    if options.dtype == "float32" and not differ < 1e-3 + 2 / model.vocab_size:
      raise BenchmarkError(
        f"{case}: loss and gradient norm of {self.name} are {theirs}, ours "
        f"{ours.answer}: the steps are not the same."
      )
    return self._peer.arm(self._facts, ours.arm.work)

  def facts(self) -> dict[str, Any]:
    """What a line tells of it.

    Returns:
      ``versions``, ``peak_bytes`` of its process, and of loss and gradient the
      ``largest_relative_difference``.
    """
    return dict(self._facts)


class TorchCredit:
  """Credit and advantages as the obvious torch loop."""

  name, beside = "torch_credit", "credit"

  def __init__(self, peer: Peer):
    """Takes a running peer.

    Args:
      peer: of `benchmark_peers/torch_credit.py`.
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
    return case.suite == "credit"

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
    theirs = np.array(self._peer.ask("answer")["advantages"])
    differ = float(np.abs(theirs - np.asarray(ours.answer)).max())
    self._facts["largest_difference"] = differ
    if not differ < 1e-4:
      raise BenchmarkError(
        f"{case}: advantages differ by {differ:.2g}: the formulas are not the "
        "same."
      )
    return self._peer.arm(self._facts, ours.arm.work)

  def facts(self) -> dict[str, Any]:
    """What a line tells of it.

    Returns:
      ``versions``, ``peak_bytes`` of its process and ``largest_difference`` of
      an advantage.
    """
    return dict(self._facts)
