"""Roofline bounds: the least time of a program, from measured rates.

A program is a sequence of phases, each of which needs the result of the one
before. A phase takes at least the time of its products at the rate at which
this machine multiplies large matrices, and at least the time of its memory
traffic at the rate at which the machine streams an array as large as the
weights. Only the work that the method needs is counted: no padding, no
recomputation, a prompt read once for all its samples, a weight read once a
phase.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.cases import Case
from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import count_params
from pure_jax.runs.planning.estimates import forward_flops

# Bytes of a weight, moment or gradient in float32.
_STORED = 4


@dataclasses.dataclass(frozen=True)
class Rates:
  """Measured rates of a machine.

  Attributes:
    flops_per_second: FLOPs per second of a product of large matrices in the
      compute dtype.
    bytes_per_second: bytes per second of reading an array as large as the
      weights.
  """

  flops_per_second: float
  bytes_per_second: float


@dataclasses.dataclass(frozen=True)
class Phase:
  """Work that begins when the phase before it has ended.

  Attributes:
    flops: FLOPs of its products.
    bytes: read and written at least.
  """

  flops: float
  bytes: float


def least_time(phases: Sequence[Phase], rates: Rates) -> tuple[float, str]:
  """Bounds the time of a sequence of phases.

  The result is in seconds, with the one of "compute" and "memory" that makes up
  more of them.
  """
  shares = {"compute": 0.0, "memory": 0.0}
  for phase in phases:
    compute = phase.flops / rates.flops_per_second
    memory = phase.bytes / rates.bytes_per_second
    shares["compute" if compute >= memory else "memory"] += max(compute, memory)
  return sum(shares.values()), max(shares, key=shares.get)


@functools.cache
def count_weights(model: ModelConfig) -> int:
  """Counts the weights of a policy."""
  return count_params(policy.declare_policy(model))


def weight_bytes(case: Case, tokens: int) -> int:
  """Counts the bytes of weights that a pass over some tokens reads.

  The pass reads all matrices and norms. An embedding that is not also the head
  is read only in the rows of the tokens.
  """
  model, unread = case.model_config, 0
  if not model.tied_embeddings:
    unread = max(0, model.vocab_size - tokens) * model.width
  return case.itemsize * (count_weights(model) - unread)


def rollout_phases(case: Case, lengths: ArrayLike) -> list[Phase]:
  """Lists a prefill, then a step for every token of the longest response.

  The prefill draws the first token, and no step reads the last one. A step
  reads the weights once, the keys and values of each prompt once for all its
  samples, and the keys and values of each unfinished response. `lengths` [B]
  are the tokens of responses, at least 1.
  """
  model, lengths = case.model_config, np.asarray(lengths)
  P, L = case.prompts, case.prompt_tokens
  slot_bytes = (
    2 * model.num_layers * model.num_kv_heads * model.head_dim * case.itemsize
  )
  phases = [
    Phase(
      forward_flops(model, P * L, P * L * (L + 1) // 2, P),
      weight_bytes(case, P * L) + slot_bytes * P * L,
    )
  ]
  by_prompt = lengths.reshape(P, -1)
  for step in range(1, int(lengths.max())):
    # Rows that draw token `step` and therefore read token `step - 1`.
    alive = int((lengths > step).sum())
    live_prompts = int((by_prompt > step).any(axis=1).sum())
    slots = live_prompts * L + alive * step
    phases.append(
      Phase(
        forward_flops(model, alive, alive * (L + step), alive),
        weight_bytes(case, alive) + slot_bytes * slots,
      )
    )
  return phases


def read_phase(
  case: Case,
  lengths: ArrayLike,
  prompts: ArrayLike | None = None,
  logits: bool = True,
) -> Phase:
  """Counts a forward pass over prompts and their responses of `lengths` [B].

  `prompts` [B] are the tokens of each prompt, None for L. The logits are those
  of response tokens; without them the head is left out.
  """
  lengths = np.asarray(lengths, np.int64)
  texts = lengths + (case.prompt_tokens if prompts is None else prompts)
  tokens, pairs = int(texts.sum()), int((texts * (texts + 1) // 2).sum())
  predicted = int(lengths.sum()) if logits else 0
  return Phase(
    forward_flops(case.model_config, tokens, pairs, predicted),
    weight_bytes(case, tokens),
  )


def score_phases(
  case: Case, lengths: ArrayLike, inserted: ArrayLike
) -> list[Phase]:
  """Lists the passes of the policy, the reference and a PRM of one shape.

  `lengths` [B] are the tokens of each response, `inserted` [B] the score tokens
  that the PRM reads in each.
  """
  policy_phase = read_phase(case, lengths)
  scored = np.asarray(lengths) + np.asarray(inserted)
  return [policy_phase, policy_phase, read_phase(case, scored, logits=False)]


def gradient_phases(
  forward: Phase, weights: int, adapters: bool = False
) -> list[Phase]:
  """Lists forward and backward pass, then AdamW, which needs the global norm.

  A backward pass has twice the products of the forward pass, half of them for
  the gradients of matrices, and writes the gradient. AdamW reads gradient,
  weights and two moments, and writes weights and moments. The `weights` are
  trained, and stored in float32. With `adapters` they are those of adapters:
  the matrices get no gradient, and the adapters' own products do not count.
  """
  passes = 2 if adapters else 3
  return [
    Phase(passes * forward.flops, 2 * forward.bytes + _STORED * weights),
    Phase(0.0, 7.0 * _STORED * weights),
  ]
