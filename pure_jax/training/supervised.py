"""Steps of the two supervised stages before RL: demonstrations and the PRM."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from pure_jax import losses, masked, steps
from pure_jax.models import lora, policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.models.transformer import read_head
from pure_jax.parallel import sharding
from pure_jax.settings import ScoreConfig
from pure_jax.training.micro_batches import map_rows
from pure_jax.training.score import prm_forward
from pure_jax.training.train import (
  Metrics,
  TrainState,
  apply_gradients,
  state_shardings,
)
from pure_jax.types import PRMInputs, SeparatorTable


@struct.dataclass
class Demonstrations:
  """Prompts with responses: demonstrations, or responses to be scored.

  Attributes:
    prompt_tokens: [B, L] int32, left-padded.
    prompt_mask: [B, L] bool.
    tokens: [B, C] int32, right-padded; EOS is inside.
    completion_mask: [B, C] bool.
  """

  prompt_tokens: Array
  prompt_mask: Array
  tokens: Array
  completion_mask: Array


@struct.dataclass
class StepStates:
  """States of a PRM's frozen trunk at the scores of responses.

  They are all that the PRM's head reads.

  Attributes:
    hidden: [B, S, D] float32, after the final norm; 0 where there is no step.
    step_mask: [B, S] bool, True where the step exists.
  """

  hidden: Array
  step_mask: Array


def make_supervised_step(
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  banned_ids: tuple[int, ...],
  layout: sharding.Layout,
) -> Callable[[TrainState, Demonstrations], tuple[TrainState, Metrics]]:
  """Makes one update of maximum likelihood on the responses' tokens.

  Args:
    model: the policy's architecture.
    optimizer: the optax transformation.
    banned_ids: ids without probability, as in the sampler.
    layout: mesh and rules.

  Returns:
    A jitted function (state, demonstrations) -> (state, metrics) with
    ``loss`` in nats per token; the state given is donated.
  """

  def step(state, batch):
    def objective(params):
      logp, _ = policy.token_logp(
        params,
        model,
        batch.prompt_tokens,
        batch.prompt_mask,
        batch.tokens,
        batch.completion_mask,
        banned_ids=banned_ids,
        act_sharding=layout.act_sharding,
      )
      return -masked.masked_mean(logp, batch.completion_mask)

    loss, grads = jax.value_and_grad(objective)(state.params)
    state, metrics = apply_gradients(state, grads, loss, optimizer)
    return state, metrics | {"loss": loss}

  states = state_shardings(policy.declare_policy(model), optimizer, layout)
  return jax.jit(
    step,
    in_shardings=(states, sharding.batch_sharding(layout)),
    out_shardings=(states, sharding.replicated(layout)),
    donate_argnums=0,
  )


def make_prm_step(
  model: ModelConfig,
  config: ScoreConfig,
  optimizer: optax.GradientTransformation,
  table: SeparatorTable,
  layout: sharding.Layout,
  head_only: bool,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Makes one PRM update: cross-entropy of the step labels at score tokens.

  The paper (arXiv 2504.15275) trains in two stages: first only the head, then
  all parameters. Frozen weights are a separate argument, without gradient and
  optimizer state.

  Args:
    model: the PRM's architecture, extra layers included.
    config: how responses are split into steps.
    optimizer: the optax transformation.
    table: which token ids end a step.
    layout: mesh and rules.
    head_only: True trains only ``score``; False trains all weights, or
      ``score`` and the adapters if `model.lora` is set.

  Returns:
    A jitted function (state, frozen, batch, labels [B, S], label_mask
    [B, S]) -> (state, metrics of `losses.prm_loss`). The batch is as for
    `score.prm_forward`. ``state.params`` and ``frozen`` are as
    `split_prm_params` gives them; the state is donated.
  """

  def step(state, frozen, batch, labels, label_mask):
    def objective(params):
      logits, inputs = prm_forward(
        lora.join_params(frozen, params),
        model,
        config,
        table,
        batch,
        layout.act_sharding,
      )
      return losses.prm_loss(logits, inputs, labels, label_mask)

    (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(
      state.params
    )
    state, applied = apply_gradients(state, grads, loss, optimizer)
    return state, metrics | applied | {"loss": loss}

  trained, frozen = split_prm_params(prm.declare_prm(model), head_only)
  states = state_shardings(trained, optimizer, layout)
  frozen = sharding.weight_shardings(frozen, layout)
  rows = sharding.batch_sharding(layout)
  return jax.jit(
    step,
    in_shardings=(states, frozen, rows, rows, rows),
    out_shardings=(states, sharding.replicated(layout)),
    donate_argnums=0,
  )


def make_trunk_forward(
  model: ModelConfig, layout: sharding.Layout
) -> Callable[[Any, PRMInputs], Array]:
  """Makes the function that computes what a PRM's head reads.

  Args:
    model: the PRM's architecture, extra layers included.
    layout: mesh and rules.

  Returns:
    A jitted function (trunk, inputs [B, T]) -> hidden states [B, S, D] float32
    at the scores, 0 where there is none. The trunk is the frozen part that
    `split_prm_params` gives with head_only.
  """

  def compute(trunk, inputs):
    return prm.states_at_scores(trunk, model, inputs, layout.act_sharding)

  _, trunk = split_prm_params(prm.declare_prm(model), head_only=True)
  rows = sharding.batch_sharding(layout)
  return jax.jit(
    compute,
    in_shardings=(sharding.weight_shardings(trunk, layout), rows),
    out_shardings=rows,
  )


def make_head_step(
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  layout: sharding.Layout,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Makes one update of the head from states of the trunk.

  The gradient is that of `make_prm_step` with head_only, up to rounding.

  Args:
    model: the PRM's architecture.
    optimizer: the optax transformation.
    layout: mesh and rules.

  Returns:
    A jitted function (state, states, labels [B, S], label_mask [B, S]) ->
    (state, metrics of `losses.prm_loss`). The states are `StepStates`,
    ``state.params`` has ``score`` only; the state is donated.
  """

  def step(state, states, labels, label_mask):
    def objective(params):
      logits, inputs = _logits_of_states(params, model, states)
      return losses.prm_loss(logits, inputs, labels, label_mask)

    (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(
      state.params
    )
    state, applied = apply_gradients(state, grads, loss, optimizer)
    return state, metrics | applied | {"loss": loss}

  head, _ = split_prm_params(prm.declare_prm(model), head_only=True)
  states = state_shardings(head, optimizer, layout)
  rows = sharding.batch_sharding(layout)
  return jax.jit(
    step,
    in_shardings=(states, rows, rows, rows),
    out_shardings=(states, sharding.replicated(layout)),
    donate_argnums=0,
  )


def split_prm_params(
  params: dict[str, Any], head_only: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Separates the PRM's trained weights from the frozen ones.

  Args:
    params: PRM weights, or a tree with one entry per weight.
    head_only: True trains only ``score``; False trains ``score`` and the
      adapters if there are any, else all weights.

  Returns:
    (trained, frozen): two dicts that `lora.join_params` joins to `params`.
  """
  score = {"score": params["score"]}
  trunk = {k: v for k, v in params.items() if k != "score"}
  if head_only:
    return score, trunk
  adapters, base = lora.split_adapters(trunk)
  return (adapters | score, base) if adapters["layers"] else (params, {})


def make_prm_evaluation(
  model: ModelConfig,
  config: ScoreConfig,
  table: SeparatorTable,
  layout: sharding.Layout,
  rows_at_a_time: int | None = None,
) -> Callable[..., Array]:
  """Makes the function that computes step rewards of given responses.

  Args:
    model: the PRM's architecture, extra layers included.
    config: how responses are split into steps and scored.
    table: which token ids end a step.
    layout: mesh and rules.
    rows_at_a_time: most rows of a micro-batch; None takes all rows.

  Returns:
    A jitted function (params, batch) -> step rewards [B, S] in [-1, 1]. The
    batch is as for `score.prm_forward`.
  """

  def evaluate(params, batch):
    def score(micro_batch):
      logits, inputs = prm_forward(
        params, model, config, table, micro_batch, layout.act_sharding
      )
      return steps.read_step_rewards(logits, inputs)

    return map_rows(score, batch, rows_at_a_time, layout.row_shards)

  params = sharding.weight_shardings(prm.declare_prm(model), layout)
  rows = sharding.batch_sharding(layout)
  return jax.jit(evaluate, in_shardings=(params, rows), out_shardings=rows)


def make_head_evaluation(
  model: ModelConfig, layout: sharding.Layout
) -> Callable[[Any, StepStates], Array]:
  """Makes the function that computes step rewards from states of the trunk.

  Args:
    model: the PRM's architecture, extra layers included.
    layout: mesh and rules.

  Returns:
    A jitted function (head, states) -> step rewards [B, S] in [-1, 1], as
    `make_prm_evaluation` up to rounding. The head is ``{"score": ...}``.
  """

  def evaluate(head, states):
    logits, inputs = _logits_of_states(head, model, states)
    return steps.read_step_rewards(logits, inputs)

  head, _ = split_prm_params(prm.declare_prm(model), head_only=True)
  rows = sharding.batch_sharding(layout)
  return jax.jit(
    evaluate,
    in_shardings=(sharding.weight_shardings(head, layout), rows),
    out_shardings=rows,
  )


def _logits_of_states(head, model, states):
  """Logits [B, S, 2], and inputs in which each state is a token of its own."""
  mask = states.step_mask
  position = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
  logits = read_head(
    head["score"], states.hidden, jnp.dtype(model.compute_dtype)
  )
  return logits, PRMInputs(jnp.zeros_like(position), mask, position, mask)
