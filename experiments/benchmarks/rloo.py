"""The loss of RLOO and its gradient: what TRL's RLOOTrainer is held to."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import batches
from benchmarks.cases import Case
from benchmarks.programs import Options, init_policy
from pure_jax import masked
from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.types import Rollout

# Of a response, up where its advantage is good and down where it is not: the
# loss would else be a mean of advantages, which is 0. No ratio is clipped.
LOG_RATIO = 0.1


@dataclasses.dataclass(frozen=True)
class Given:
  """A batch of RLOO, and what its first step has to find.

  Attributes:
    advantages: [B] float32 of responses, against the mean of the others to
      the same prompt.
    old_logp: [B] float32 of responses, nats.
    answer: the loss and the norm of its gradient, [2].
    rounded: the share of the loss that float32 may round a sum of log-probs
      by.
  """

  advantages: np.ndarray
  old_logp: np.ndarray
  answer: np.ndarray
  rounded: float


def draw_rloo(case: Case, options: Options) -> Given:
  """Random rewards of the responses of `batches.draw_rollout`.

  Args:
    case: sizes; at least two samples of each prompt.
    options: how the model runs.

  Returns:
    The batch with its answer.
  """
  model = options.model(case.model)
  prompts = batches.draw_prompts(case, model.vocab_size)
  drawn = batches.draw_rollout(case, prompts, model.vocab_size)
  rewards = np.random.default_rng(4).uniform(
    -1, 1, (case.prompts, case.samples)
  )
  others = rewards.sum(axis=1, keepdims=True) - rewards
  advantages = rewards - others / (case.samples - 1)
  advantages = advantages.reshape(-1).astype(np.float32)
  wanted = LOG_RATIO * np.sign(advantages)

  params = init_policy(case.model, options)
  step = jax.jit(
    jax.value_and_grad(
      functools.partial(_objective, model, case.rows), has_aux=True
    )
  )
  count = batches.micro_batches(case.rows, options.rows_at_a_time)
  size, found = case.rows // count, []
  grads = jax.tree.map(jnp.zeros_like, params)
  for first in range(0, case.rows, size):
    part = jax.tree.map(
      lambda x, first=first: x[first : first + size],
      (drawn, advantages, wanted),
    )
    values, more = step(params, *part)
    grads = jax.tree.map(jnp.add, grads, more)
    found.append(values)
  logp = np.concatenate([np.asarray(logp) for _, logp in found])
  loss = sum(float(value) for value, _ in found)
  return Given(
    advantages,
    logp - wanted.astype(np.float32),
    np.array([loss, float(optax.global_norm(grads))]),
    float(np.spacing(np.abs(logp).max()) / LOG_RATIO),
  )


def _objective(
  model: ModelConfig,
  rows: int,
  params: Any,
  drawn: Rollout,
  advantages: jax.Array,
  wanted: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The share of some rows in the loss, and the log-probs of responses."""
  logp, _ = policy.token_logp(
    params,
    model,
    drawn.prompt_tokens,
    drawn.prompt_mask,
    drawn.tokens,
    drawn.completion_mask,
  )
  logp = masked.masked_sum(logp, drawn.completion_mask, axis=1)
  ratio = jnp.exp(logp - jax.lax.stop_gradient(logp) + wanted)
  return -jnp.sum(ratio * advantages) / rows, logp
