"""Stage 2 of a training step: steps, PRM scores, old and reference log-probs.

One function, `prm_forward`, takes token ids to PRM logits wherever a PRM runs:
in its training, in its evaluation and in RL. So the PRM reads during RL what
it was trained on.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from pure_jax import masked, steps
from pure_jax.models import lora, policy, prm
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout import sampling
from pure_jax.settings import ScoreConfig
from pure_jax.training import packed
from pure_jax.training.micro_batches import map_rows
from pure_jax.training.packing import ScoreRows
from pure_jax.training.step_spec import StepSpec
from pure_jax.types import (
  PRMInputs,
  Prompts,
  Rollout,
  SeparatorTable,
  StepBoundaries,
)


@struct.dataclass
class Scores:
  """What stage 2 computes from a rollout.

  Attributes:
    steps: step boundaries, [B, C] and [B, S].
    step_rewards: [B, S] float32 in [-1, 1], 0 where there is no step, and
      everywhere without a PRM.
    old_logp: [B, C] float32 nats, under the policy before the update.
    ref_logp: [B, C] float32 nats, under the reference policy.
  """

  steps: StepBoundaries
  step_rewards: jax.Array
  old_logp: jax.Array
  ref_logp: jax.Array


@struct.dataclass
class ScoredBatch:
  """What an update learns from.

  Attributes:
    rollout: prompts and completions of B responses.
    scores: their steps, step rewards and log-probs.
    correct: [B] float32, 1 where the grader found the answer right.
    has_answer: [B] bool, True where the update may use that verdict.
  """

  rollout: Rollout
  scores: Scores
  correct: jax.Array
  has_answer: jax.Array


def prm_inputs(
  config: ScoreConfig, table: SeparatorTable, batch: Any
) -> tuple[PRMInputs, StepBoundaries]:
  """Builds what the PRM reads of responses.

  Args:
    config: how responses are split into steps and scored.
    table: which token ids end a step.
    batch: as for `prm_forward`.

  Returns:
    (the inputs [B, T], the steps they are made of).
  """
  boundaries = steps.split_steps(
    batch.tokens, batch.completion_mask, table, max_steps=config.max_steps
  )
  inputs = steps.build_prm_inputs(
    batch.prompt_tokens,
    batch.prompt_mask,
    batch.tokens,
    batch.completion_mask,
    boundaries,
    table,
    separator=config.separator,
  )
  return inputs, boundaries


def prm_forward(
  params: Any,
  model: ModelConfig,
  config: ScoreConfig,
  table: SeparatorTable,
  batch: Any,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[jax.Array, PRMInputs, StepBoundaries]:
  """Splits responses into steps and runs the PRM.

  Args:
    params: PRM weights.
    model: the PRM's architecture, extra layers included.
    config: how responses are split into steps and scored.
    table: which token ids end a step.
    batch: `Rollout`, or any record with its prompt_tokens, prompt_mask
      [B, L], tokens and completion_mask [B, C].
    act_sharding: of the activations.

  Returns:
    (logits [B, T, 2] float32, the inputs they belong to, the steps).
  """
  inputs, boundaries = prm_inputs(config, table, batch)
  logits = prm.prm_logits(params, model, inputs, act_sharding)
  return logits, inputs, boundaries


def rollout_logp(
  params: Any,
  model: ModelConfig,
  sampler: sampling.SamplingConfig,
  rollout: Rollout,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[jax.Array, jax.Array]:
  """Computes log-probs and entropy of a rollout's tokens.

  The distribution is the sampler's before top-k, top-p and min-p: same
  temperature, same banned ids. Those filters belong to the behaviour policy
  only; what they remove shows as drift between sampler and trainer.

  Args:
    params: policy weights.
    model: the policy's architecture.
    sampler: the sampling settings; greedy rollouts are read at temperature 1.
    rollout: prompts and completions, [B, L] and [B, C].
    act_sharding: of the activations.

  Returns:
    (logp, entropy), both [B, C] float32 in nats, 0 where masked;
    differentiable in `params`.
  """
  return policy.token_logp(
    params,
    model,
    rollout.prompt_tokens,
    rollout.prompt_mask,
    rollout.tokens,
    rollout.completion_mask,
    temperature=sampler.temperature or 1.0,
    banned_ids=sampler.banned_ids,
    act_sharding=act_sharding,
  )


def make_score(
  spec: StepSpec, rows: ScoreRows | None = None
) -> Callable[[Any, Any, Any, Rollout, Prompts], tuple[Scores, jax.Array]]:
  """Makes stage 2, with old log-probs computed by the policy.

  Args:
    spec: what the step computes.
    rows: rows that texts are packed into; None gives each text a row of its
      own. Changes the time used and not the result.

  Returns:
    A jitted function (params, reference params, PRM params, rollout, PRM
    prompts) -> (`Scores`, drift). The PRM prompts [B, L'] are what the PRM
    reads before each response: the problem as in its training, while the
    policy's prompt may be a chat (the paper's reference gives the PRM the
    chat). Without a PRM its params are None and its prompts are not read. The
    drift [] is the largest |sampled_logp - old_logp| of a token, which
    includes the sampler's filters.
  """

  def score(params, reference, prm_params, rollout, prm_prompts):
    boundaries, rewards, logp, ref_logp = _read_all_models(
      spec, rows, (params, reference, prm_params), rollout, prm_prompts
    )
    scores = Scores(boundaries, rewards, logp, ref_logp)
    return scores, _drift(rollout, logp, rollout.sampled_logp)

  return _jit_with_drift(score, spec)


def make_checked_score(
  spec: StepSpec, rows: ScoreRows | None = None
) -> Callable[[Any, Any, Any, Rollout, Prompts], tuple[Scores, jax.Array]]:
  """Makes stage 2 with the sampler's old log-probs, checked by the policy.

  Args:
    spec: what the step computes.
    rows: as for `make_score`.

  Returns:
    A jitted function as `make_score` returns, but `Scores.old_logp` is
    `Rollout.full_logp`, and the drift is the largest difference between that
    and the policy's own log-prob of a token.

  Raises:
    ValueError: if the sampler is greedy.
  """
  _check_explores(spec.sampler)

  def score(params, reference, prm_params, rollout, prm_prompts):
    boundaries, rewards, logp, ref_logp = _read_all_models(
      spec, rows, (params, reference, prm_params), rollout, prm_prompts
    )
    scores = Scores(boundaries, rewards, rollout.full_logp, ref_logp)
    return scores, _drift(rollout, logp, rollout.full_logp)

  return _jit_with_drift(score, spec)


def make_sampled_score(
  spec: StepSpec, rows: ScoreRows | None = None
) -> Callable[[Any, Any, Rollout, Prompts], Scores]:
  """Makes stage 2 with the sampler's old log-probs, unchecked.

  With one gradient step per batch, the updated policy is the one that sampled:
  the ratio of the clipped loss is 1, clipping changes nothing, and the gradient
  is that of advantage * log pi. If the sampler computes as the trainer does, a
  forward pass of the policy would only measure the rounding between
  `Rollout.full_logp` and the trainer's program.

  Args:
    spec: what the step computes.
    rows: as for `make_score`.

  Returns:
    A jitted function (reference params, PRM params, rollout, PRM prompts) ->
    `Scores`, whose old_logp is `Rollout.full_logp`.

  Raises:
    ValueError: if the sampler is greedy.
  """
  _check_explores(spec.sampler)

  def score(reference, prm_params, rollout, prm_prompts):
    policies = [(reference, spec.layouts.reference.act_sharding)]
    boundaries, rewards, ref_logp = _score_rows(
      spec, rows, policies, prm_params, rollout, prm_prompts
    )
    return Scores(boundaries, rewards, rollout.full_logp, ref_logp)

  _, reference, prm_params = _weight_shardings(spec)
  batch = sharding.batch_sharding(spec.layouts.training)
  return jax.jit(
    score,
    in_shardings=(reference, prm_params, batch, batch),
    out_shardings=batch,
  )


def _read_all_models(spec: StepSpec, rows, models, rollout, prm_prompts):
  """(steps, step rewards, log-probs of policy and reference) of a rollout."""
  params, reference, prm_params = models
  policies = [
    (params, spec.layouts.training.act_sharding),
    (reference, spec.layouts.reference.act_sharding),
  ]
  return _score_rows(spec, rows, policies, prm_params, rollout, prm_prompts)


def _score_rows(
  spec: StepSpec, rows, policies, prm_params, rollout, prm_prompts
):
  """(steps, step rewards, log-probs [B, C] under each policy) of a rollout."""
  if rows is not None:
    boundaries, rewards = _step_rewards(
      spec, rows, prm_params, rollout, prm_prompts
    )
    logp = packed.logp_of_each(
      policies, spec.model, spec.sampler, rollout, rows.policy
    )
    return boundaries, rewards, *logp

  def score_micro_batch(batch):
    rollout, prm_prompts = batch
    logp = [
      rollout_logp(params, spec.model, spec.sampler, rollout, act_sharding)[0]
      for params, act_sharding in policies
    ]
    return *_step_rewards(spec, None, prm_params, rollout, prm_prompts), *logp

  return map_rows(
    score_micro_batch,
    (rollout, prm_prompts),
    spec.micro_batch_rows,
    spec.layouts.row_shards,
  )


def _prm_inputs(spec: StepSpec, rollout, prm_prompts):
  """What the PRM reads of a rollout, behind its own prompts."""
  batch = rollout.replace(
    prompt_tokens=prm_prompts.tokens, prompt_mask=prm_prompts.mask
  )
  return prm_inputs(spec.scoring, spec.table, batch)


def _step_rewards(spec: StepSpec, rows, prm_params, rollout, prm_prompts):
  """Steps of responses and their rewards, 0 without a PRM."""
  config, table = spec.scoring, spec.table
  if spec.prm_model is None:
    boundaries = steps.split_steps(
      rollout.tokens, rollout.completion_mask, table, max_steps=config.max_steps
    )
    return boundaries, jnp.zeros(boundaries.mask.shape, jnp.float32)
  act_sharding = spec.layouts.prm.act_sharding
  inputs, boundaries = _prm_inputs(spec, rollout, prm_prompts)
  if rows is None:
    logits = prm.prm_logits(prm_params, spec.prm_model, inputs, act_sharding)
  else:
    logits = packed.prm_logits(
      prm_params, spec.prm_model, inputs, rows.prm, act_sharding
    )
  rewards = steps.read_step_rewards(logits, inputs)
  if config.empty_step_reward is not None:
    rewards = steps.replace_empty_steps(
      rewards, boundaries, config.empty_step_reward
    )
  return boundaries, rewards


def _drift(rollout, logp, sampled):
  """The largest difference between two log-probs of a token."""
  return masked.masked_max(jnp.abs(logp - sampled), rollout.completion_mask)


def _weight_shardings(spec: StepSpec):
  """Shardings of the weights of policy, reference and PRM."""
  declared, layouts = policy.declare_policy(spec.model), spec.layouts
  _, base = lora.split_adapters(declared)
  prm_declared = None
  if spec.prm_model is not None:
    prm_declared = prm.declare_prm(spec.prm_model)
  return (
    sharding.weight_shardings(declared, layouts.training),
    sharding.weight_shardings(base, layouts.reference),
    sharding.weight_shardings(prm_declared, layouts.prm),
  )


def _jit_with_drift(score, spec):
  """Compiles a stage 2 that reads all three models and returns the drift."""
  layout = spec.layouts.training
  batch = sharding.batch_sharding(layout)
  return jax.jit(
    score,
    in_shardings=(*_weight_shardings(spec), batch, batch),
    out_shardings=(batch, sharding.replicated(layout)),
  )


def _check_explores(sampler):
  """Raises if a sampler takes the likeliest token, whose log-prob is 0."""
  if not sampler.temperature > 0:
    raise ValueError(
      "A greedy sampler has no log-probs to take as old log-probs: set a "
      "temperature > 0, or compute them by the policy (old_logp='score')."
    )


def make_measure(spec: StepSpec) -> Callable[[Rollout, Prompts], jax.Array]:
  """Makes a function that measures the longest texts of a batch.

  `pure_jax.training.packing.choose` takes the narrowest rows that hold them.

  Args:
    spec: what the step computes.

  Returns:
    A jitted function (rollout, PRM prompts) -> int32, the same on every
    process: [1] the most tokens of a prompt with its completion, or with a PRM
    [2], the second the most tokens that the PRM reads of a response.
  """

  def measure(rollout, prm_prompts):
    texts = rollout.prompt_mask.sum(1) + rollout.completion_mask.sum(1)
    if spec.prm_model is None:
      return texts.max(keepdims=True)
    inputs, _ = _prm_inputs(spec, rollout, prm_prompts)
    return jnp.stack([texts.max(), inputs.mask.sum(1).max()])

  layout = spec.layouts.training
  return jax.jit(measure, out_shardings=sharding.replicated(layout))
