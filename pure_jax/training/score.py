"""The second function of an iteration: steps, PRM scores, log-probs.

One function, `prm_forward`, takes token ids to PRM logits wherever a PRM runs:
in its training, in its evaluation and in RL. So the inputs of the PRM in RL
have the form of its training inputs.
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
from pure_jax.settings import ScoreConfig
from pure_jax.training import passes
from pure_jax.training.micro_batches import map_rows
from pure_jax.training.packing import RowShape, ScoreRows
from pure_jax.training.passes import rollout_logp
from pure_jax.training.step_spec import StepSpec
from pure_jax.types import (
  PRMInputs,
  Prompts,
  Rollout,
  SeparatorTable,
  StepBoundaries,
)

# What the PRM reads of a rollout, see `make_score`.
PRMTexts = Prompts | PRMInputs


@struct.dataclass
class StepScores:
  """Steps of a rollout and their rewards.

  Attributes:
    steps: step boundaries, [B, C] and [B, S].
    step_rewards: [B, S] float32 in [-1, 1], 0 without a step or a PRM.
  """

  steps: StepBoundaries
  step_rewards: jax.Array


@struct.dataclass
class Scores:
  """Steps, their rewards and log-probs of a rollout.

  Attributes:
    steps: step boundaries, [B, C] and [B, S].
    step_rewards: [B, S] float32, as in `StepScores`.
    old_logp: [B, C] float32 nats, under the policy before the update.
    ref_logp: [B, C] float32 nats, of the reference policy, or None if unread.
  """

  steps: StepBoundaries
  step_rewards: jax.Array
  old_logp: jax.Array
  ref_logp: jax.Array | None


@struct.dataclass
class ScoredBatch:
  """The batch of an update: a rollout, its scores and its grades.

  Attributes:
    rollout: prompts and completions of B responses.
    scores: their steps, step rewards and log-probs.
    correct: [B] float32, 1 where the grader found the answer right.
    has_answer: [B] bool, True where the update may use `correct`.
    order: [B, epochs] int32, which responses each epoch's mini-batches take, as
      in `mini_batches.rows_of_updates`; None takes them in their order.
    values: [B, C] float32, a critic's value of the state before each token;
      None without a critic.
  """

  rollout: Rollout
  scores: Scores
  correct: jax.Array
  has_answer: jax.Array
  order: jax.Array | None = None
  values: jax.Array | None = None


def prm_inputs(
  config: ScoreConfig, table: SeparatorTable, batch: Any
) -> PRMInputs:
  """Builds the PRM's inputs from responses, unless the host has built them.

  Args:
    config: how responses are split into steps and scored.
    table: which token ids end a step.
    batch: as for `prm_forward`.

  Returns:
    The inputs [B, T].

  Raises:
    ValueError: the batch does not belong to the separator.
  """
  if isinstance(batch, PRMInputs) != (config.separator == "each"):
    raise ValueError(
      f"separator={config.separator!r} cannot score {type(batch).__name__}: "
      "'each' takes PRMInputs, which the host makes of the texts of steps, and "
      "the others take prompts with responses as ids."
    )
  if config.separator == "each":
    return batch
  return steps.build_prm_inputs(
    batch.prompt_tokens,
    batch.prompt_mask,
    batch.tokens,
    batch.completion_mask,
    _split_steps(config, table, batch),
    table,
    separator=config.separator,
    read_end=config.read_end,
  )


def _split_steps(config, table, batch):
  """The steps of responses."""
  return steps.split_steps(
    batch.tokens, batch.completion_mask, table, max_steps=config.max_steps
  )


def prm_forward(
  params: Any,
  model: ModelConfig,
  config: ScoreConfig,
  table: SeparatorTable,
  batch: Any,
  act_sharding: ActivationSharding = LOCAL,
  shape: RowShape | None = None,
) -> tuple[jax.Array, PRMInputs]:
  """Runs the PRM on the steps of responses.

  Args:
    params: PRM weights.
    model: the PRM's architecture, extra layers included.
    config: how responses are split into steps and scored.
    table: which token ids end a step.
    batch: `Rollout`, or any record with its prompt_tokens, prompt_mask
      [B, L], tokens and completion_mask [B, C]. With the separator "each" it
      is the `PRMInputs` [B, T].
    act_sharding: sharding of the activations.
    shape: rows that texts are packed into; None gives each text its own row.

  Returns:
    (logits [B, T, 2] float32, the inputs they belong to).
  """
  inputs = prm_inputs(config, table, batch)
  logits = passes.prm_logits(params, model, inputs, act_sharding, shape)
  return logits, inputs


def make_score(
  spec: StepSpec, rows: ScoreRows | None = None
) -> Callable[[Any, Any, Any, Rollout, PRMTexts], tuple[Scores, jax.Array]]:
  """Makes `score`, with old log-probs computed by the policy.

  Args:
    spec: the step's specification.
    rows: rows that texts are packed into; None gives each text a row of its
      own. This changes the time, not the result.

  Returns:
    A jitted function (params, reference params, PRM params, rollout, PRM
    texts) -> (`Scores`, drift). The PRM's texts are `Prompts` [B, L'], which it
    reads before each response, or its whole `PRMInputs` [B, T] with the
    separator "each". They have the problem in the format of the PRM's training,
    while the policy's prompt may be a chat (in the paper's reference code the
    PRM reads the policy's prompt). Without a PRM its params are None and its
    texts are not read. The drift [] is the largest |sampled_logp - old_logp|
    of a token, in nats, which includes the sampler's filters.
  """

  def score(params, reference, prm_params, rollout, prm_texts):
    models = (params, reference, prm_params)
    scores = _score(spec, rows, models, rollout, prm_texts)
    return scores, _drift(rollout, scores, rollout.sampled_logp)

  return _jit_with_drift(score, spec)


def make_checked_score(
  spec: StepSpec, rows: ScoreRows | None = None
) -> Callable[[Any, Any, Any, Rollout, PRMTexts], tuple[Scores, jax.Array]]:
  """Makes `score` with the sampler's old log-probs, checked by the policy.

  Args:
    spec: the step's specification.
    rows: as for `make_score`.

  Returns:
    A jitted function as `make_score` returns, but `Scores.old_logp` is
    `Rollout.full_logp`, and the drift is the largest difference between that
    and the policy's own log-prob of a token. Without a KL penalty
    `Scores.ref_logp` is None.

  Raises:
    ValueError: if the sampler is greedy.
  """
  _check_explores(spec.sampler)

  def score(params, reference, prm_params, rollout, prm_texts):
    models = (params, reference if spec.penalizes_kl else None, prm_params)
    scores = _score(spec, rows, models, rollout, prm_texts)
    drift = _drift(rollout, scores, rollout.full_logp)
    return scores.replace(old_logp=rollout.full_logp), drift

  return _jit_with_drift(score, spec)


def make_sampled_score(
  spec: StepSpec, rows: ScoreRows | None = None
) -> Callable[[Any, Any, Rollout, PRMTexts], Scores]:
  """Makes `score` with the sampler's old log-probs, unchecked.

  In the first update of a rollout, the updated policy is the one that sampled:
  the ratio of the clipped loss is 1, clipping changes nothing, and the gradient
  is that of advantage * log pi. If the sampler computes as the trainer does, a
  forward pass of the policy would only measure the rounding between
  `Rollout.full_logp` and the trainer's program. Without a KL penalty the
  reference is not read either.

  Args:
    spec: the step's specification.
    rows: as for `make_score`.

  Returns:
    A jitted function (reference params, PRM params, rollout, PRM texts) ->
    `Scores` with `Rollout.full_logp` and, without a KL penalty, no ref_logp.

  Raises:
    ValueError: if the sampler is greedy.
  """
  _check_explores(spec.sampler)

  def score(reference, prm_params, rollout, prm_texts):
    models = (None, reference if spec.penalizes_kl else None, prm_params)
    return _score(spec, rows, models, rollout, prm_texts)

  _, reference, prm_params = _weight_shardings(spec)
  batch = sharding.batch_sharding(spec.layouts.training)
  return jax.jit(
    score,
    in_shardings=(reference, prm_params, batch, batch),
    out_shardings=batch,
  )


def make_step_scores(
  spec: StepSpec, rows: ScoreRows | None = None
) -> Callable[[Any, Rollout, PRMTexts], StepScores]:
  """Makes a function that scores steps and reads no policy.

  Args:
    spec: the step's specification.
    rows: as for `make_score`.

  Returns:
    A jitted function (PRM params, rollout, PRM texts) -> `StepScores`.
  """

  def score(prm_params, *batch):
    scores = _score(spec, rows, (None, None, prm_params), *batch)
    return StepScores(scores.steps, scores.step_rewards)

  *_, prm_params = _weight_shardings(spec)
  batch = sharding.batch_sharding(spec.layouts.training)
  return jax.jit(
    score, in_shardings=(prm_params, batch, batch), out_shardings=batch
  )


def _score(spec: StepSpec, rows, models, rollout, prm_texts):
  """The scores of a rollout; without a policy its own old log-probs."""
  params, reference, prm_params = models
  layouts = spec.layouts.training, spec.layouts.reference
  policies = [
    (weights, layout.act_sharding)
    for weights, layout in zip((params, reference), layouts, strict=True)
    if weights is not None
  ]
  if rows is not None:
    boundaries, rewards = _step_rewards(
      spec, rows.prm, prm_params, rollout, prm_texts
    )
    logp = passes.packed_logp_of_each(
      policies, spec.model, spec.sampler, rollout, rows.policy
    )
  else:

    def score_micro_batch(batch):
      rollout, prm_texts = batch
      logp = [
        rollout_logp(params, spec.model, spec.sampler, rollout, act_sharding)[0]
        for params, act_sharding in policies
      ]
      return *_step_rewards(spec, None, prm_params, rollout, prm_texts), logp

    boundaries, rewards, logp = map_rows(
      score_micro_batch,
      (rollout, prm_texts),
      spec.micro_batch_rows,
      spec.layouts.row_shards,
    )
  old_logp = rollout.full_logp if params is None else logp[0]
  ref_logp = None if reference is None else logp[-1]
  return Scores(boundaries, rewards, old_logp, ref_logp)


def prm_batch(spec: StepSpec, rollout: Rollout, prm_texts: PRMTexts) -> Any:
  """Joins what the PRM reads of a rollout.

  Args:
    spec: the step's specification.
    rollout: B responses.
    prm_texts: as for `make_score`.

  Returns:
    The batch of `prm_inputs`: its inputs, or responses after its own prompts.
  """
  if spec.scoring.separator == "each":
    return prm_texts
  return rollout.replace(
    prompt_tokens=prm_texts.tokens, prompt_mask=prm_texts.mask
  )


def _step_rewards(spec: StepSpec, shape, prm_params, rollout, prm_texts):
  """Steps of responses and their rewards, 0 without a PRM."""
  config, table = spec.scoring, spec.table
  boundaries = _split_steps(config, table, rollout)
  if spec.prm_model is None:
    return boundaries, jnp.zeros(boundaries.mask.shape, jnp.float32)
  logits, inputs = prm_forward(
    prm_params,
    spec.prm_model,
    config,
    table,
    prm_batch(spec, rollout, prm_texts),
    spec.layouts.prm.act_sharding,
    shape,
  )
  rewards = steps.read_step_rewards(logits, inputs)
  if config.empty_step_reward is not None:
    rewards = steps.replace_empty_steps(
      rewards, boundaries, config.empty_step_reward
    )
  return boundaries, rewards


def _drift(rollout, scores, sampled):
  """The largest difference between old and sampled log-probs of a token."""
  return masked.masked_max(
    jnp.abs(scores.old_logp - sampled), rollout.completion_mask
  )


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
  """Compiles a `score` that reads all three models and returns the drift."""
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
