"""The least time of what is measured, in closed form, from measured rates.

A program is a few phases that need each other's results, so they come one
after the other; a phase takes at least its products at the rate at which this
machine multiplies matrices, and at least its traffic at the rate at which it
streams an array as large as the weights. Counted is what the method needs: no
padding, no recomputation, a prompt read once for all its samples, a weight
read once a phase.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pure_jax.models.config import ModelConfig
from pure_jax.runs.planning.estimates import forward_flops
from pure_jax.runs.planning.hlo.costs import Costs
from pure_jax.runs.planning.roofline import Bound, Chip, bound

# Of float32 weights, moments and gradients.
_STORED = 4


@dataclasses.dataclass(frozen=True)
class Rates:
  """What a machine was measured to do.

  Attributes:
    flops_per_second: of a product of large matrices in the compute dtype.
    bytes_per_second: read from an array as large as the weights.
  """

  flops_per_second: float
  bytes_per_second: float


@dataclasses.dataclass(frozen=True)
class Phase:
  """Work that cannot begin before the phase before it has ended.

  Attributes:
    flops: of its products.
    bytes: that it reads and writes at least.
  """

  flops: float
  bytes: float


def least_time(phases: Sequence[Phase], rates: Rates) -> tuple[float, str]:
  """The roofline bound of phases that follow each other.

  Args:
    phases: of the program.
    rates: of the machine.

  Returns:
    Seconds, and which of "compute" and "memory" makes up more of them.
  """
  chip = Chip(
    flops_per_second=rates.flops_per_second,
    hbm_bytes_per_second=rates.bytes_per_second,
    link_bytes_per_second=1.0,  # Nothing is sent.
    hbm_bytes=0.0,
  )
  bounds: list[Bound] = [
    bound(Costs(phase.flops, phase.bytes, {}, ()), chip) for phase in phases
  ]
  shares = {"compute": 0.0, "memory": 0.0}
  for found in bounds:
    shares[found.name] += found.seconds
  return sum(shares.values()), max(shares, key=shares.get)


def weight_bytes(model: ModelConfig, rows: int, itemsize: int) -> int:
  """Bytes of weights that a pass over a few tokens reads.

  All matrices and norms, of an embedding that is not the head as well only
  the rows of the tokens.

  Args:
    model: the architecture.
    rows: tokens that are read.
    itemsize: bytes of a weight.

  Returns:
    The number.
  """
  D, N, K, H, F, V = (
    model.width,
    model.num_heads,
    model.num_kv_heads,
    model.head_dim,
    model.mlp_width,
    model.vocab_size,
  )
  layer = 2 * D * N * H + 2 * D * K * H + 3 * D * F + 2 * D
  if model.attention_bias:
    layer += N * H + 2 * K * H
  if model.qk_norm:
    layer += 2 * H
  table = V * D if model.tied_embeddings else V * D + min(rows, V) * D
  return itemsize * (model.num_layers * layer + D + table)


def rollout_phases(
  model: ModelConfig,
  prompts: int,
  prompt_tokens: int,
  lengths: Sequence[int],
  itemsize: int,
) -> list[Phase]:
  """A prefill, then a step for every token of the longest response.

  The first token comes from the prefill; the last one is not read. A step
  reads the weights once, the keys and values of each prompt once for all its
  samples, and those that each unfinished row has made.

  Args:
    model: the architecture.
    prompts: P.
    prompt_tokens: L.
    lengths: [B] tokens of the responses, each at least 1.
    itemsize: bytes of a weight, a key or a value in the compute dtype.

  Returns:
    The phases.
  """
  lengths, L = np.asarray(lengths), prompt_tokens
  pairs = prompts * L * (L + 1) // 2
  slot = 2 * model.num_layers * model.num_kv_heads * model.head_dim * itemsize
  read = prompts * L
  phases = [
    Phase(
      forward_flops(model, read, pairs, prompts),
      weight_bytes(model, read, itemsize) + slot * read,
    )
  ]
  by_prompt = lengths.reshape(prompts, -1)
  for step in range(1, int(lengths.max())):
    # Rows that draw token `step`, for which they read token `step - 1`.
    alive = int((lengths > step).sum())
    asked = int((by_prompt > step).any(axis=1).sum())
    phases.append(
      Phase(
        forward_flops(model, alive, alive * (L + step), alive),
        weight_bytes(model, alive, itemsize)
        + slot * (asked * L + alive * step),
      )
    )
  return phases


def read_phase(
  model: ModelConfig,
  prompt_tokens: int,
  lengths: Sequence[int],
  itemsize: int,
  logits: bool = True,
) -> Phase:
  """A forward pass over whole texts.

  Args:
    model: the architecture.
    prompt_tokens: L, of each text.
    lengths: [B] tokens of each text behind its prompt.
    itemsize: bytes of a weight in the compute dtype.
    logits: whether those of the tokens behind the prompt are read; False
      leaves out the head.

  Returns:
    The phase.
  """
  texts = prompt_tokens + np.asarray(lengths, np.int64)
  tokens, pairs = int(texts.sum()), int((texts * (texts + 1) // 2).sum())
  read = int(np.sum(lengths)) if logits else 0
  return Phase(
    forward_flops(model, tokens, pairs, read),
    weight_bytes(model, tokens, itemsize),
  )


def score_phases(
  model: ModelConfig,
  prompt_tokens: int,
  lengths: Sequence[int],
  inserted: Sequence[int],
  itemsize: int,
) -> list[Phase]:
  """The policy, the reference and a PRM of the same shape read a batch.

  Args:
    model: the architecture of all three.
    prompt_tokens: L.
    lengths: [B] tokens of the responses.
    inserted: [B] score tokens that the PRM reads beside each.
    itemsize: bytes of a weight in the compute dtype.

  Returns:
    The phases.
  """
  policy = read_phase(model, prompt_tokens, lengths, itemsize)
  asked = np.asarray(lengths) + np.asarray(inserted)
  judge = read_phase(model, prompt_tokens, asked, itemsize, logits=False)
  return [policy, policy, judge]


def gradient_phases(read: Phase, parameters: int) -> list[Phase]:
  """Forward and backward, then AdamW, which waits for the global norm.

  A backward pass has twice the products of the forward pass. The gradient is
  written; AdamW reads it, the weights and two moments, and writes three.

  Args:
    read: the forward pass.
    parameters: weights that are trained, stored in float32.

  Returns:
    The phases.
  """
  return [
    Phase(3 * read.flops, 2 * read.bytes + _STORED * parameters),
    Phase(0.0, 7.0 * _STORED * parameters),
  ]
