"""The functions of `pure_jax.training`, ready to be measured.

`SUITES` maps the name of a suite to a function that compiles its arms for a
case. What is measured is what a run calls: the same makers, on weights drawn
at random in the case's shape.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import MODELS, BenchmarkError, Case
from benchmarks.programs import Compiled, Options, compile_call, init_policy
from benchmarks.timing import Arm, timed
from pure_jax import losses
from pure_jax.advantages import pure_advantages
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training import rollouts, train
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.training.score import ScoreConfig, experience_from, make_score
from pure_jax.types import Experience, Prompts

OPTIMIZER = OptimConfig(learning_rate=1e-6)


def _frozen(params: Any, model: ModelConfig) -> tuple[Any, Any]:
  """A reference and a PRM on the same trunk, in arrays of their own."""
  layout, declared = sharding.make_layout(), policy.declare_policy(model)
  copy = train.make_compute_copy(declared, model, layout, layout)
  reference, judge = (jax.tree.map(jnp.copy, copy(params)) for _ in range(2))
  wanted = prm.declare_prm(model)
  head = weights.init_params(jax.random.key(1), {"score": wanted["score"]})
  return reference, {name: (judge | head)[name] for name in wanted}


def rollout(case: Case, options: Options) -> dict[str, Compiled]:
  """Sampling the responses of a batch.

  Args:
    case: sizes and stops.
    options: how the model runs.

  Returns:
    One arm, "generate"; its work is the tokens that were drawn.
  """
  model = options.model(case.model)
  arguments = (
    init_policy(model, copied=True),
    batches.draw_prompts(case, model.vocab_size),
    jax.random.key(1),
  )
  generate, compilation = compile_call(
    rollouts.make_generate(
      model,
      batches.sampler(case, model.vocab_size),
      case.samples,
      sharding.make_layout(),
    ),
    *arguments,
  )
  # The same key each time: the same tokens, so the same work.
  lengths = np.asarray(generate(*arguments).completion_mask).sum(axis=1)
  phases = bounds.rollout_phases(
    model, case.prompts, case.prompt_tokens, lengths, options.itemsize
  )
  arm = Arm(timed(generate, *arguments), int(lengths.sum()))
  return {"generate": Compiled(arm, phases, compilation, lengths)}


def score(case: Case, options: Options) -> dict[str, Compiled]:
  """Old and reference log-probs, steps, and the rewards of a PRM.

  Args:
    case: sizes.
    options: how the three models run.

  Returns:
    One arm, "score"; its work is the tokens of prompts and responses.
  """
  model = options.model(case.model)
  params = init_policy(model)
  table = batches.separator_table(model.vocab_size)
  prompts = batches.draw_prompts(case, model.vocab_size)
  drawn = batches.draw_rollout(case, prompts, model.vocab_size)
  arguments = (
    params,
    *_frozen(params, model),
    drawn,
    # The PRM reads the prompts that the policy answered.
    Prompts(drawn.prompt_tokens, drawn.prompt_mask),
  )
  compiled, compilation = compile_call(
    make_score(
      model,
      model,
      batches.sampler(case, model.vocab_size),
      ScoreConfig(batches.MAX_STEPS),
      table,
      sharding.make_layout(),
      options.rows_at_a_time,
    ),
    *arguments,
  )
  judged, *_ = batches.draw_judgement(drawn, table)
  phases = bounds.score_phases(
    model,
    case.rows,
    case.prompt_tokens,
    case.new_tokens,
    int(judged.steps.mask.sum()) // case.rows,
    options.itemsize,
  )
  arm = Arm(timed(compiled, *arguments), _tokens(case))
  return {"score": Compiled(arm, phases, compilation)}


def update(case: Case, options: Options) -> dict[str, Compiled]:
  """One gradient step of the PURE loss with AdamW.

  Args:
    case: sizes.
    options: how the model runs.

  Returns:
    One arm, "update"; its work is the tokens of prompts and responses.

  Raises:
    BenchmarkError: when repeated, if an update was skipped: it would have
      had nothing to apply.
  """
  model = options.model(case.model)
  table = batches.separator_table(model.vocab_size)
  optimizer = make_optimizer(OPTIMIZER)
  layout, declared = sharding.make_layout(), policy.declare_policy(model)
  drawn = batches.draw_rollout(
    case, batches.draw_prompts(case, model.vocab_size), model.vocab_size
  )
  batch = (drawn, *batches.draw_judgement(drawn, table))
  state = train.start_state(init_policy(model), declared, optimizer, layout)
  compiled, compilation = compile_call(
    train.make_update(
      model,
      batches.sampler(case, model.vocab_size),
      credit_settings(case),
      LossConfig(),
      optimizer,
      table,
      layout,
      batches.micro_batches(case.rows, options.rows_at_a_time),
    ),
    state,
    *batch,
  )

  state, metrics = compiled(state, *batch)
  first = np.array([metrics["policy_loss"], metrics["grad_norm"]])

  def seconds() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(state, *batch))
    taken = time.perf_counter() - start
    if metrics["skipped_updates"]:
      raise BenchmarkError(
        f"{case}: the loss or a gradient is not finite, so there was no update."
      )
    return taken

  phases = bounds.update_phases(
    model,
    case.rows,
    case.prompt_tokens,
    case.new_tokens,
    weights.count_params(declared),
    options.itemsize,
  )
  arm = Arm(seconds, _tokens(case))
  return {"update": Compiled(arm, phases, compilation, first)}


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
  return jax.jit(experience_from)(
    drawn, *batches.draw_judgement(drawn, table), table
  )


def credit_settings(case: Case) -> CreditConfig:
  """How updates give credit: as `CreditConfig` does without further words.

  Args:
    case: whose samples are compared.

  Returns:
    The settings.
  """
  return CreditConfig(group_size=case.samples)


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


def _tokens(case: Case) -> int:
  """Of prompts and responses."""
  return case.rows * (case.prompt_tokens + case.new_tokens)


SUITES: dict[str, Callable[[Case, Options], dict[str, Compiled]]] = {
  "rollout": rollout,
  "score": score,
  "update": update,
  "credit": credit,
}
