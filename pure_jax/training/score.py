"""Scoring a rollout: steps, PRM rewards, old and reference log-probs.

One function, `prm_forward`, takes token ids to PRM logits wherever a PRM is
run: in its training, in its evaluation and in RL. What the PRM was trained
on and what it is asked during RL cannot drift apart.
"""

import functools
import itertools
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
from pure_jax.training import micro_batches, packed, packing
from pure_jax.types import (
  Experience,
  PRMInputs,
  Prompts,
  Rollout,
  SeparatorTable,
  StepBoundaries,
)


def prm_forward(
  params: Any,
  model: ModelConfig,
  config: ScoreConfig,
  table: SeparatorTable,
  batch: Any,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[jax.Array, PRMInputs, StepBoundaries]:
  """Cuts responses into steps and runs the PRM, the only way it is run.

  Args:
    params: PRM weights.
    model: the PRM's architecture, extra layers included.
    config: how steps are cut and scored.
    table: which token ids end a step.
    batch: `Rollout`, or any record with its prompt_tokens, prompt_mask
      [B, L], tokens and completion_mask [B, C].
    act_sharding: of the activations.

  Returns:
    (logits [B, T, 2] float32, the inputs they belong to, the steps).
  """
  inputs, cut = prm_inputs(config, table, batch)
  return prm.prm_logits(params, model, inputs, act_sharding), inputs, cut


def prm_inputs(
  config: ScoreConfig, table: SeparatorTable, batch: Any
) -> tuple[PRMInputs, StepBoundaries]:
  """What the PRM reads of responses.

  Args:
    config: how steps are cut and scored.
    table: which token ids end a step.
    batch: as for `prm_forward`.

  Returns:
    (the inputs [B, T], the steps they are made of).
  """
  cut = steps.split_steps(
    batch.tokens, batch.completion_mask, table, max_steps=config.max_steps
  )
  inputs = steps.build_prm_inputs(
    batch.prompt_tokens,
    batch.prompt_mask,
    batch.tokens,
    batch.completion_mask,
    cut,
    table,
    separator=config.separator,
  )
  return inputs, cut


# Where the log-probs come from that the update compares with.
OLD_LOGP = ("score", "sampled", "checked")


@struct.dataclass
class Scores:
  """What stage 2 knows of a rollout.

  Attributes:
    steps: step boundaries, [B, C] and [B, S].
    step_rewards: [B, S] float32 in [-1, 1], 0 where there is no step, and
      everywhere without a PRM.
    old_logp: [B, C] float32 nats, under the policy before the update.
    ref_logp: [B, C] float32 nats, under the reference policy.
    drift_max: [] float32, largest |sampler's - trainer's log-prob| of a token:
      of the distribution sampled from where `old_logp` was read, filters
      included, else of `Rollout.full_logp`. None where nothing was read.
  """

  steps: StepBoundaries
  step_rewards: jax.Array
  old_logp: jax.Array
  ref_logp: jax.Array
  drift_max: jax.Array | None


def rollout_logp(
  params: Any,
  model: ModelConfig,
  sampler: sampling.SamplingConfig,
  rollout: Rollout,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[jax.Array, jax.Array]:
  """Log-probs and entropy of a rollout's tokens under `params`.

  The distribution is the sampler's before top-k and top-p: same temperature,
  same banned ids. Those filters are a property of the behaviour policy only;
  what they cut off shows as drift between sampler and trainer.

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
  model: ModelConfig,
  prm_model: ModelConfig | None,
  sampler: sampling.SamplingConfig,
  config: ScoreConfig,
  table: SeparatorTable,
  layout: sharding.Layout,
  rows_at_a_time: int | None = None,
  *,
  reference_layout: sharding.Layout | None = None,
  prm_layout: sharding.Layout | None = None,
  row_shapes: tuple[packing.RowShape, packing.RowShape] | None = None,
  old_logp: str = "score",
) -> Callable[[Any, Any, Any, Rollout, Prompts], Scores]:
  """Stage 2: steps, step rewards, and the log-probs the update compares with.

  With one gradient step per batch the policy that is updated is the one that
  sampled: the ratio of the clipped loss is 1 at every token, clipping changes
  nothing, and the gradient is that of advantage * log pi. Where the sampler
  computes as the trainer does, reading the policy again finds the rounding
  between `Rollout.full_logp` and what the trainer compiles, nothing else.

  Args:
    model: the architecture of the policy; the reference policy is without its
      adapters, where it has any.
    prm_model: the PRM's architecture, extra layers included; None for a run
      on verdicts alone, which scores no steps.
    sampler: the sampling settings of the rollout.
    config: how steps are cut and scored.
    table: which token ids end a step.
    layout: of the policy, and of the rows that come and go.
    rows_at_a_time: at most so many rows are read together, at least 1; None
      reads all B. Changes the memory used and not the result.
    reference_layout: of the reference policy's weights and activations; None
      takes the policy's.
    prm_layout: of the PRM's, likewise.
    row_shapes: rows that texts are packed into, the policy's and the PRM's,
      which say how many are read together; None reads each text in a row of
      its own. Changes the time used and not the result.
    old_logp: "score" reads the policy for `Scores.old_logp`; "sampled" takes
      `Rollout.full_logp` and does not read it; "checked" takes that, and reads
      the policy for `Scores.drift_max` alone.

  Returns:
    A jitted function (params, reference params, PRM params, rollout, PRM
    prompts) -> `Scores`. The last are `Prompts` [B, L'], what the PRM reads
    in front of each response: the raw problem it was trained with, where the
    policy's prompt is a chat (the paper's reference gives it the latter).
    Without a PRM its params are None and its prompts are not read.

  Raises:
    ValueError: if the sampler's log-probs are asked for and it is greedy.
  """
  _check_old_logp(old_logp, sampler)
  rows = sharding.batch_sharding(layout)
  reference_layout = reference_layout or layout
  prm_layout = prm_layout or layout
  layouts = layout, reference_layout, prm_layout
  shards = max(place.row_shards for place in layouts)
  policy_shape, prm_shape = row_shapes or (None, None)
  if row_shapes is not None:
    rows_at_a_time = None  # Of packed rows, the shapes say how many.
  score_steps = functools.partial(
    _score_steps,
    prm_model,
    config,
    table,
    prm_layout.act_sharding,
    prm_shape,
  )

  def score(params, reference_params, prm_params, rollout, prm_prompts):
    policies = [(reference_params, reference_layout.act_sharding)]
    if old_logp != "sampled":
      policies.insert(0, (params, layout.act_sharding))

    def score_part(part):
      rollout, prm_prompts = part
      cut, rewards = score_steps(prm_params, rollout, prm_prompts)
      logp = _logp_of_each(policies, model, sampler, rollout, policy_shape)
      return cut, rewards, *logp

    cut, rewards, *read, ref_logp = micro_batches.map_rows(
      score_part, (rollout, prm_prompts), rows_at_a_time, shards
    )
    own = old_logp == "score"
    sampled = rollout.sampled_logp if own else rollout.full_logp
    old = read[0] if own else sampled
    drift = _drift(rollout, read[0], sampled) if read else None
    return Scores(cut, rewards, old, ref_logp, drift)

  weights = zip(_weights_read(model, prm_model), layouts, strict=True)
  return jax.jit(
    score,
    in_shardings=(
      *itertools.starmap(sharding.weight_shardings, weights),
      rows,
      rows,
    ),
    out_shardings=Scores(rows, rows, rows, rows, sharding.replicated(layout)),
  )


def _weights_read(model, prm_model):
  """Declarations of policy, reference and PRM."""
  declared = policy.declare_policy(model)
  _, base = lora.split_adapters(declared)
  judge = None if prm_model is None else prm.declare_prm(prm_model)
  return declared, base, judge


def _drift(rollout, logp, sampled):
  """Of the token whose two log-probs are furthest apart."""
  return masked.masked_max(jnp.abs(logp - sampled), rollout.completion_mask)


def _check_old_logp(old_logp, sampler):
  """Refuses the log-probs of a sampler that takes the likeliest token."""
  if old_logp not in OLD_LOGP:
    raise ValueError(f"old_logp must be one of {OLD_LOGP}, not {old_logp!r}.")
  if old_logp != "score" and not sampler.temperature > 0:
    raise ValueError(
      f"old_logp={old_logp!r} takes the sampler's log-probs, and at "
      "temperature 0 it has none that the policy would give: set a temperature "
      "> 0, or old_logp='score'."
    )


def _logp_of_each(policies, model, sampler, rollout, row_shape):
  """Log-probs [B, C] of a rollout under policies and their placements."""
  if row_shape is not None:
    return packed.logp_of_each(policies, model, sampler, rollout, row_shape)
  return [
    rollout_logp(params, model, sampler, rollout, act_sharding)[0]
    for params, act_sharding in policies
  ]


def _score_steps(
  prm_model,
  config: ScoreConfig,
  table,
  act_sharding,
  row_shape,
  prm_params,
  rollout,
  asked,
):
  """Steps of responses and their rewards, 0 without a PRM."""
  if prm_model is None:
    cut = steps.split_steps(
      rollout.tokens, rollout.completion_mask, table, max_steps=config.max_steps
    )
    return cut, jnp.zeros(cut.mask.shape, jnp.float32)
  labelled = rollout.replace(prompt_tokens=asked.tokens, prompt_mask=asked.mask)
  if row_shape is None:
    logits, inputs, cut = prm_forward(
      prm_params, prm_model, config, table, labelled, act_sharding
    )
  else:
    inputs, cut = prm_inputs(config, table, labelled)
    logits = packed.prm_logits(
      prm_params, prm_model, inputs, row_shape, act_sharding
    )
  rewards = steps.read_step_rewards(logits, inputs)
  if config.empty_step_reward is not None:
    rewards = steps.replace_empty_steps(rewards, cut, config.empty_step_reward)
  return cut, rewards


def make_measure(
  config: ScoreConfig, table: SeparatorTable, layout: sharding.Layout
) -> Callable[[Rollout, Prompts], jax.Array]:
  """The longest texts of a batch, which decide what its rows have to hold.

  Args:
    config: how steps are cut and scored.
    table: which token ids end a step.
    layout: of the rows.

  Returns:
    A jitted function (rollout, PRM prompts) -> [2] int32: the most tokens of
    a prompt with its completion, and of what the PRM reads of one; the same
    on every process.
  """

  def measure(rollout, prm_prompts):
    labelled = rollout.replace(
      prompt_tokens=prm_prompts.tokens, prompt_mask=prm_prompts.mask
    )
    inputs, _ = prm_inputs(config, table, labelled)
    texts = rollout.prompt_mask.sum(1) + rollout.completion_mask.sum(1)
    return jnp.stack([texts.max(), inputs.mask.sum(1).max()])

  return jax.jit(measure, out_shardings=sharding.replicated(layout))


def experience_from(
  rollout: Rollout,
  scores: Scores,
  correct: jax.Array,
  has_answer: jax.Array,
  table: SeparatorTable,
) -> Experience:
  """Joins what the device and the grader found out about a rollout.

  Args:
    rollout: sampled completions, [B, C].
    scores: steps, rewards and log-probs of the same rows.
    correct: [B] float32, 1 where the grader found the answer right.
    has_answer: [B] bool, True where the row may use that verdict.
    table: which token ids end a step.

  Returns:
    The update's input.
  """
  return Experience(
    completion_mask=rollout.completion_mask,
    steps=scores.steps,
    step_rewards=scores.step_rewards,
    correct=correct,
    has_answer=has_answer,
    old_logp=scores.old_logp,
    ref_logp=scores.ref_logp,
    terminal_mask=steps.terminal_mask(
      rollout.tokens, rollout.completion_mask, table
    ),
    sampled_logp=rollout.sampled_logp,
  )
