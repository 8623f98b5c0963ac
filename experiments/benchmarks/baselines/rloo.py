"""The loss of RLOO and its gradient, as a reference for TRL's RLOOTrainer."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import batches
from benchmarks.cases import Case
from benchmarks.models import Options, init_policy
from pure_jax import masked
from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.training.micro_batches import count_micro_batches
from pure_jax.types import Rollout

# Log of the ratio of new to old probability, with the sign of the advantage.
# With ratios of 1 the loss would be the mean of the advantages, which is 0.
# No ratio is clipped.
LOG_RATIO = 0.1


@dataclasses.dataclass(frozen=True)
class RLOOBatch:
  """A batch of RLOO, and the result of its first step.

  Attributes:
    advantages: [B] float32, reward less the mean of the prompt's other
      responses.
    old_logp: [B] float32, log-probs of responses, nats.
    reference: [loss, norm of the gradient].
    rounding: relative error of the loss if float32 rounds a sum of log-probs.
  """

  advantages: np.ndarray
  old_logp: np.ndarray
  reference: np.ndarray
  rounding: float


def draw_rloo(case: Case, options: Options) -> RLOOBatch:
  """Draws random rewards for the responses of `batches.draw_rollout`.

  Args:
    case: sizes; at least two samples of each prompt.
    options: how the model runs.

  Returns:
    The batch with its reference.
  """
  model = options.model(case.model)
  rollout = batches.draw_rollout(case, model.vocab_size)
  rewards = np.random.default_rng(4).uniform(
    -1, 1, (case.prompts, case.samples)
  )
  others = rewards.sum(axis=1, keepdims=True) - rewards
  advantages = rewards - others / (case.samples - 1)
  advantages = advantages.reshape(-1).astype(np.float32)
  log_ratios = LOG_RATIO * np.sign(advantages)

  params = init_policy(case.model, options)
  gradient = jax.jit(
    jax.value_and_grad(
      functools.partial(_objective, model, case.rows), has_aux=True
    )
  )
  count = count_micro_batches(case.rows, options.rows_at_a_time)
  size, losses, logps = case.rows // count, [], []
  grads = jax.tree.map(jnp.zeros_like, params)
  for first in range(0, case.rows, size):
    micro_batch = jax.tree.map(
      lambda x, first=first: x[first : first + size],
      (rollout, advantages, log_ratios),
    )
    (loss, logp), more = gradient(params, *micro_batch)
    grads = jax.tree.map(jnp.add, grads, more)
    losses.append(float(loss))
    logps.append(np.asarray(logp))
  logp = np.concatenate(logps)
  return RLOOBatch(
    advantages,
    logp - log_ratios.astype(np.float32),
    np.array([sum(losses), float(optax.tree.norm(grads))]),
    float(np.spacing(np.abs(logp).max()) / LOG_RATIO),
  )


def _objective(
  model: ModelConfig,
  rows: int,
  params: Any,
  rollout: Rollout,
  advantages: jax.Array,
  log_ratios: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """A micro-batch's share of the loss, and the log-probs of its responses."""
  logp, _ = policy.token_logp(
    params,
    model,
    rollout.prompt_tokens,
    rollout.prompt_mask,
    rollout.tokens,
    rollout.completion_mask,
  )
  logp = masked.masked_sum(logp, rollout.completion_mask, axis=1)
  ratio = jnp.exp(logp - jax.lax.stop_gradient(logp) + log_ratios)
  return -jnp.sum(ratio * advantages) / rows, logp
