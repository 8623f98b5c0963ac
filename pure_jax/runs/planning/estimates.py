"""Closed forms to compare the compiler's numbers with.

They count FLOPs, the KV cache, and the activations that a backward pass keeps.
A model FLOP is one that the method needs. Recomputation is not counted, nor is
a score of a key that a query cannot see. Every response has its full length.
"""

import dataclasses

import jax.numpy as jnp

from pure_jax.models.config import ModelConfig
from pure_jax.parallel.sharding import Layout
from pure_jax.runs.spec import RunSpec
from pure_jax.training.micro_batches import count_micro_batches


@dataclasses.dataclass(frozen=True)
class Estimates:
  """Closed-form estimates of a stage.

  Attributes:
    model_flops: FLOPs that the method needs, on all devices together.
    waiting_bytes: bytes on a device of weights and optimizer state that stay
      in memory while the stage runs though it does not read them.
    cache_bytes: bytes on a device of keys and values.
    kept_bytes: bytes on a device that the backward pass keeps.
  """

  model_flops: int
  waiting_bytes: int
  cache_bytes: int = 0
  kept_bytes: int = 0


def forward_flops(
  model: ModelConfig, tokens: int, pairs: int, logits: int
) -> int:
  """Counts the FLOPs of the matrix products of a forward pass.

  There are two FLOPs per multiply-add. A token takes 2 D N H + 2 D K H + 3 D F
  multiply-adds in a layer, a pair of a query and a key that it sees takes
  2 N H in a layer, and the logits of a token take D V.

  Args:
    model: the architecture.
    tokens: number of tokens that go through the layers.
    pairs: number of pairs of a query and a key that it sees.
    logits: number of tokens whose logits are computed.

  Returns:
    The FLOPs.
  """
  D, N = model.width, model.num_heads
  K, H = model.num_kv_heads, model.head_dim
  layer = 2 * D * N * H + 2 * D * K * H + 3 * D * model.mlp_width
  return (
    2 * model.num_layers * layer * tokens
    + 4 * model.num_layers * N * H * pairs
    + 2 * D * model.vocab_size * logits
  )


def model_flops(spec: RunSpec) -> tuple[int, int, int]:
  """Counts the FLOPs of one RL step that the method needs.

  Args:
    spec: the run's specification.

  Returns:
    FLOPs on all devices together of the rollout, of the scores (the PRM, and
    the log-probs of policy and reference), and of the updates (in each epoch
    a forward pass of all responses, and twice as many FLOPs of the backward
    pass).
  """
  P, B = spec.settings.rl.prompts, spec.responses
  L, C = spec.prompt_tokens, spec.sampler.max_new_tokens

  # A prompt is prefilled once for all of its samples. The token that is
  # sampled last is not read again.
  rollout = forward_flops(
    spec.model,
    P * L + B * (C - 1),
    P * L * (L + 1) // 2 + B * ((C - 1) * L + (C - 1) * C // 2),
    P + B * (C - 1),
  )
  policy = _read_flops(spec.model, B, L + C, C)
  prm = 0
  if spec.prm_model is not None:
    prm = _read_flops(spec.prm_model, B, spec.prm_columns, logits=0)
  return rollout, 2 * policy + prm, 3 * policy * spec.step.epochs


def _read_flops(model: ModelConfig, rows: int, length: int, logits: int) -> int:
  """FLOPs of reading rows of a length, each with logits of so many tokens."""
  pairs = rows * length * (length + 1) // 2
  return forward_flops(model, rows * length, pairs, rows * logits)


def critic_flops(spec: RunSpec) -> tuple[int, int]:
  """Counts the FLOPs of a critic in one RL step.

  Args:
    spec: the run's specification.

  Returns:
    FLOPs on all devices together of its values and of its updates, which go
    as often over the responses as the policy's. Those of the head are left
    out.
  """
  length = spec.prompt_tokens + spec.sampler.max_new_tokens
  values = _read_flops(spec.model, spec.responses, length, logits=0)
  return values, 3 * values * spec.step.epochs


def cache_bytes(spec: RunSpec, rows: int) -> int:
  """Counts the bytes of keys and values that one device holds in a rollout.

  Args:
    spec: the run's specification.
    rows: responses that are sampled together.

  Returns:
    The bytes at the end of the longest response.
  """
  layout = spec.layouts.rollout
  tokens = spec.prompt_tokens + spec.sampler.max_new_tokens - 1
  return kv_cache_bytes(spec.model, rows // layout.row_shards * tokens, layout)


def kv_cache_bytes(model: ModelConfig, tokens: int, layout: Layout) -> int:
  """Counts the bytes of the keys and values of tokens on one device.

  Args:
    model: the architecture, with the dtype of the cache.
    tokens: tokens of the rows of one device, all together.
    layout: devices and rules.

  Returns:
    The bytes, without the scales of int8.
  """
  heads, shards = model.num_kv_heads, layout.mesh.shape["tensor"]
  if heads % shards == 0:
    heads //= shards  # Fewer heads than shards are copied to each shard.
  elements = model.num_layers * tokens * heads * model.head_dim
  dtype = model.cache_dtype or model.compute_dtype
  return 2 * elements * jnp.dtype(dtype).itemsize


def kept_bytes(spec: RunSpec) -> int:
  """Counts the bytes of activations that the backward pass keeps on a device.

  Args:
    spec: the run's specification.

  Returns:
    The bytes of the layers' inputs if remat is "layer"; 0 for another remat,
    for which there is no closed form here.
  """
  model, layout = spec.model, spec.layouts.training
  if model.remat != "layer":
    return 0
  mini_batch = spec.responses // spec.step.mini_batches
  micro_batches = count_micro_batches(
    mini_batch, spec.step.micro_batch_rows, layout.row_shards
  )
  rows = mini_batch // micro_batches // layout.row_shards
  tokens = spec.prompt_tokens + spec.sampler.max_new_tokens
  return layer_input_bytes(model, rows, tokens, layout)


def layer_input_bytes(
  model: ModelConfig, rows: int, tokens: int, layout: Layout
) -> int:
  """Counts the bytes of the inputs of all layers on one device.

  Args:
    model: the architecture.
    rows: rows of one device.
    tokens: tokens of a row, which the mesh axis `sequence` splits.
    layout: devices and rules.

  Returns:
    The bytes; 0 if remat is "offload", which keeps them in the host's memory.
  """
  if model.remat == "offload":
    return 0
  tokens //= layout.mesh.shape["sequence"]
  elements = model.num_layers * rows * tokens * model.width
  return elements * jnp.dtype(model.compute_dtype).itemsize
