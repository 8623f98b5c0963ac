"""Closed forms beside what the compiler says: FLOPs, cache, kept activations.

A model FLOP is one that the method needs: no recomputation, no score of a key
that a query cannot see. Every response is taken at its full length.
"""

import jax.numpy as jnp

from pure_jax.models.config import ModelConfig
from pure_jax.parallel.sharding import Layout
from pure_jax.runs.planning.programs import Shapes
from pure_jax.runs.settings.run import Settings


def forward_flops(
  model: ModelConfig, tokens: int, pairs: int, logits: int
) -> int:
  """FLOPs of the products of a forward pass.

  Two for each multiply-add: 2 layers (2 D N H + 2 D K H + 3 D F) for a token,
  4 layers N H for a pair of a query and a key it sees, 2 D V for logits.

  Args:
    model: the architecture.
    tokens: that go through the layers.
    pairs: of a query and a key.
    logits: tokens whose logits are read.

  Returns:
    The number.
  """
  D, N, K, H = (
    model.width,
    model.num_heads,
    model.num_kv_heads,
    model.head_dim,
  )
  layer = 2 * D * N * H + 2 * D * K * H + 3 * D * model.mlp_width
  return (
    2 * model.num_layers * layer * tokens
    + 4 * model.num_layers * N * H * pairs
    + 2 * D * model.vocab_size * logits
  )


def model_flops(settings: Settings, shapes: Shapes) -> dict[str, int]:
  """FLOPs of one RL step that the method needs, on all devices together.

  Args:
    settings: the run's.
    shapes: its models and batches.

  Returns:
    For rollout, score, update (a forward pass and twice as much backward);
    none for the reshard.
  """
  rl = settings.rl
  rows = rl.prompts * rl.samples_per_prompt
  C = rl.sampler.max_new_tokens

  def read(model: ModelConfig, length: int, logits: int) -> int:
    pairs = rows * length * (length + 1) // 2
    return forward_flops(model, rows * length, pairs, rows * logits)

  L = shapes.prompt_tokens
  # A prompt is read once for all of its samples, and the last token drawn is
  # not read again.
  sampled = forward_flops(
    shapes.model,
    rl.prompts * L + rows * (C - 1),
    rl.prompts * L * (L + 1) // 2 + rows * ((C - 1) * L + (C - 1) * C // 2),
    rl.prompts + rows * (C - 1),
  )
  length = L + C
  policy = read(shapes.model, length, C)
  judge = 0
  if shapes.prm_model is not None:
    score = settings.prm.score
    inserted = score.max_steps if score.separator == "insert" else 0
    judge = read(
      shapes.prm_model, shapes.prm_prompt_tokens + C + inserted, logits=0
    )
  return {
    "reshard": 0,
    "rollout": sampled,
    "score": 2 * policy + judge,
    "update": 3 * policy,
  }


def cache_bytes(
  settings: Settings, shapes: Shapes, layout: Layout, rows: int
) -> int:
  """Keys and values of a rollout that one device holds.

  Args:
    settings: the run's.
    shapes: its models and batches.
    layout: devices and rules.
    rows: that are drawn together.

  Returns:
    Bytes.
  """
  rl, model = settings.rl, shapes.model
  rows //= layout.row_shards
  slots = shapes.prompt_tokens + rl.sampler.max_new_tokens - 1
  heads = model.num_kv_heads
  shards = layout.mesh.shape["tensor"]
  if heads % shards == 0:
    heads //= shards  # Fewer heads than shards are copies.
  return (
    2 * model.num_layers * rows * heads * slots * model.head_dim
  ) * _itemsize(model)


def kept_bytes(
  settings: Settings, shapes: Shapes, layout: Layout, micro_batches: int
) -> int:
  """What the backward pass keeps of layers, where remat is "layer": inputs.

  Args:
    settings: the run's.
    shapes: its models and batches.
    layout: devices and rules.
    micro_batches: parts of a batch.

  Returns:
    Bytes on one device; 0 for another remat, which no closed form here knows.
  """
  rl, model = settings.rl, shapes.model
  if model.remat != "layer":
    return 0
  rows = rl.prompts * rl.samples_per_prompt // micro_batches
  tokens = (
    shapes.prompt_tokens + rl.sampler.max_new_tokens
  ) // layout.mesh.shape["sequence"]
  return (
    model.num_layers * (rows // layout.row_shards) * tokens * model.width
  ) * _itemsize(model)


def _itemsize(model: ModelConfig) -> int:
  """Bytes of an element in the compute dtype."""
  return jnp.dtype(model.compute_dtype).itemsize
