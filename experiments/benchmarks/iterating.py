"""Peers that do a whole iteration: as many tokens, the same learning."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import batches
from benchmarks.cases import BenchmarkError, Case
from benchmarks.gradients import credit_settings
from benchmarks.iteration import Iterated
from benchmarks.programs import Compiled, Options
from benchmarks.rival import Rival
from benchmarks.timing import Arm
from benchmarks.updating import TRAINING_ARGUMENTS

# Of log-probs in nats, rewards, the loss, and the gradient's norm as a share,
# in float32, beside what it makes that we give no probability to padding.
MOST_DIFFERENT = 1e-3


class Iterating(Rival):
  """transformers' generate, a PRM, and the step of TRL's GRPOTrainer."""

  suite, beside = "iteration", "iteration"

  def arm(self, case: Case, options: Options, ours: Compiled) -> Arm:
    """Makes ready for a case, and checks what it learns from given responses.

    Args:
      case: the batch.
      options: how the models run.
      ours: the arm beside it; its answer is an `Iterated`.

    Returns:
      The arm; its rows end where ours did at first.

    Raises:
      BenchmarkError: if in float32 scores, loss or gradient differ, or later
        the number of tokens.
    """
    model = options.model(case.model)
    prompts = batches.draw_prompts(case, model.vocab_size)
    given = batches.draw_rollout(case, prompts, model.vocab_size)
    # Anew for each case: what it learned from the last one is gone.
    self._facts |= self._peer.load(case, options, ("policy", "prm"))
    self._peer.ask(
      "prepare",
      tokens=np.asarray(prompts.tokens).tolist(),
      samples=case.samples,
      new_tokens=case.new_tokens,
      lengths=ours.answer.lengths.tolist(),
      correct=ours.answer.correct.tolist(),
      credit_temperature=credit_settings(case).temperature,
      ids={
        "pad": batches.PAD_ID,
        "eos": batches.EOS_ID,
        "separator": batches.SEPARATOR_ID,
        "score": batches.SCORE_ID,
      },
      max_steps=batches.MAX_STEPS,
      parts=batches.micro_batches(case.rows, options.rows_at_a_time),
      remat=options.remakes_layers,
      optimizer=TRAINING_ARGUMENTS,
    )
    found = self._peer.ask(
      "given", completions=np.asarray(given.tokens).tolist()
    )
    differ = largest_differences(found, ours.answer)
    self._facts["largest_differences"] = differ
    allowed = MOST_DIFFERENT + 2 / model.vocab_size
    if options.dtype == "float32" and not max(differ.values()) < allowed:
      raise BenchmarkError(
        f"{case}: {self.name} differs in {differ}, more than {allowed:.2g}: "
        "the iterations are not the same."
      )
    return self._drawing(case, ours)


def largest_differences(
  found: Mapping[str, Any], ours: Iterated
) -> dict[str, float]:
  """How far two iterations on the same responses are apart.

  Args:
    found: log-probs ``old_logp`` and ``ref_logp`` [B, C], ``step_rewards``
      [B, S'] with no more columns than there are steps, ``loss`` and
      ``grad_norm``.
    ours: the same of ours.

  Returns:
    The largest difference of each by name, that of the norm as a share.
  """
  theirs = {
    name: np.array(found[name])
    for name in ("old_logp", "ref_logp", "step_rewards")
  }
  rewards = np.asarray(ours.scores.step_rewards)
  missing = rewards.shape[1] - theirs["step_rewards"].shape[1]
  theirs["step_rewards"] = np.pad(
    theirs["step_rewards"], ((0, 0), (0, missing))
  )
  return {
    name: float(np.abs(x - np.asarray(getattr(ours.scores, name))).max())
    for name, x in theirs.items()
  } | {
    "loss": abs(found["loss"] - ours.loss),
    "grad_norm": abs(found["grad_norm"] / ours.grad_norm - 1),
  }
