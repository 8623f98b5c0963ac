"""The suite of credit: alone, within the loss, and beside the update."""

import jax

from benchmarks import batches, bounds
from benchmarks.cases import MODELS, Case
from benchmarks.gradients import credit_settings, update
from benchmarks.programs import Compiled, Options, compile_call
from benchmarks.timing import Arm, timed
from pure_jax import losses
from pure_jax.advantages import pure_advantages
from pure_jax.settings import LossConfig
from pure_jax.training.score import ScoredBatch
from pure_jax.training.train import experience_from
from pure_jax.types import Experience


def draw_experience(case: Case, vocab_size: int) -> Experience:
  """A random batch as credit sees it.

  Args:
    case: B rows of C tokens.
    vocab_size: V.

  Returns:
    The batch.
  """
  table = batches.separator_table(vocab_size)
  drawn = batches.draw_rollout(
    case, batches.draw_prompts(case, vocab_size), vocab_size
  )
  batch = ScoredBatch(drawn, *batches.draw_prm_responses(drawn, table))
  return jax.jit(experience_from)(batch, table)


def credit(case: Case, options: Options) -> dict[str, Compiled]:
  """Credit alone, the loss with and without it, and the update around them.

  Args:
    case: sizes.
    options: how the model of the update runs.

  Returns:
    The arms "credit", "loss" and "credit and loss", the last two with their
    gradient by the log-probs, and "update".
  """
  experience = draw_experience(case, MODELS[case.model].vocab_size)
  settings, loss = credit_settings(case), LossConfig()
  logp, entropy = experience.old_logp, -experience.old_logp

  def alone(experience):
    return pure_advantages(experience, settings)

  def given(logp, entropy, advantages, experience):
    return losses.policy_objective(logp, entropy, advantages, experience, loss)

  def fused(logp, entropy, experience):
    return losses.pure_loss(logp, entropy, experience, settings, loss)

  def gradient(function):
    return jax.jit(jax.value_and_grad(function, has_aux=True))

  def ready(function, *arguments, phases=()):
    compiled, compilation = compile_call(function, *arguments)
    arm = Arm(timed(compiled, *arguments), case.rows * case.new_tokens)
    return Compiled(arm, phases, compilation, compiled(*arguments)[0])

  # It reads its input and writes a number for each token.
  moved = sum(leaf.nbytes for leaf in jax.tree.leaves(experience)) + logp.nbytes
  least = [bounds.Phase(0.0, moved)]
  found = ready(jax.jit(alone), experience, phases=least)
  arms = {
    "credit": found,
    "loss": ready(gradient(given), logp, entropy, found.answer, experience),
    "credit and loss": ready(gradient(fused), logp, entropy, experience),
  }
  return arms | update(case, options)
