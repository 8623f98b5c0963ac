"""The baseline of a whole iteration: transformers, a PRM and TRL."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import batches
from benchmarks.baselines.baseline import Baseline
from benchmarks.baselines.update import trainer_fields
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import Options
from benchmarks.programs import Program
from benchmarks.suites.iteration import IterationReference
from benchmarks.suites.update import credit_config
from benchmarks.timing import Arm

# In float32: of log-probs in nats, rewards and the loss, and of the gradient's
# norm as a share. Only ours gives padding no probability, which comes on top.
MOST_DIFFERENT = 1e-3


class IterationBaseline(Baseline):
  """transformers' generate, a PRM, and the step of TRL's GRPOTrainer."""

  compared_with = "iteration"

  def arm(self, case: Case, options: Options, ours: Program) -> Arm:
    """Prepares a case and compares an iteration on given responses.

    Args:
      case: the batch.
      options: how the models run.
      ours: the arm of ours; its reference is an `IterationReference`.

    Returns:
      The arm; its responses are as long as the first ones of ours.

    Raises:
      BenchmarkError: if in float32 scores, loss or gradient differ, or later
        the number of tokens.
    """
    vocab_size = options.model(case.model).vocab_size
    given = batches.draw_rollout(case, vocab_size)
    prompts = batches.draw_prompts(case, vocab_size)
    # Loaded for each case: the weights of the last one have been trained.
    self._load(case, options, ("policy", "prm"))
    self._process.call(
      "prepare",
      trainer=trainer_fields(case, options, "grpo"),
      tokens=np.asarray(prompts.tokens).tolist(),
      lengths=ours.reference.lengths.tolist(),
      correct=ours.reference.correct.tolist(),
      credit_temperature=credit_config(case).temperature,
      step_ids={
        "eos": batches.EOS_ID,
        "separator": batches.SEPARATOR_ID,
        "score": batches.SCORE_ID,
      },
      max_steps=batches.MAX_STEPS,
    )
    answer = self._process.call(
      "learn_from", completions=np.asarray(given.tokens).tolist()
    )
    differences = largest_differences(answer, ours.reference)
    self.info["largest_differences"] = differences
    allowed = MOST_DIFFERENT + 2 / vocab_size
    if options.dtype == "float32" and not max(differences.values()) < allowed:
      raise BenchmarkError(
        f"{case}: {self.name} differs in {differences}, more than "
        f"{allowed:.2g}: the iterations are not the same."
      )
    return self._timed_sampling(case, ours)


def largest_differences(
  answer: Mapping[str, Any], ours: IterationReference
) -> dict[str, float]:
  """Compares two iterations on the same responses.

  Args:
    answer: of the baseline: log-probs ``old_logp`` and ``ref_logp`` [B, C],
      ``step_rewards`` [B, S'] with at most as many columns as ours, ``loss``
      and ``grad_norm``.
    ours: the reference.

  Returns:
    The largest absolute difference of each by name; for the norm the relative
    difference.
  """
  theirs = {
    name: np.array(answer[name])
    for name in ("old_logp", "ref_logp", "step_rewards")
  }
  columns = np.asarray(ours.scores.step_rewards).shape[1]
  missing = columns - theirs["step_rewards"].shape[1]
  theirs["step_rewards"] = np.pad(
    theirs["step_rewards"], ((0, 0), (0, missing))
  )
  return {
    name: float(np.abs(x - np.asarray(getattr(ours.scores, name))).max())
    for name, x in theirs.items()
  } | {
    "loss": abs(answer["loss"] - ours.loss),
    "grad_norm": abs(answer["grad_norm"] / ours.grad_norm - 1),
  }
