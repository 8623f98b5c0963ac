"""Architectures of decoders as frozen, validated records."""

import dataclasses
import math

from pure_jax.ranges import ALPHA, within

COMPUTE_DTYPES = ("float32", "bfloat16")
CACHE_DTYPES = (*COMPUTE_DTYPES, "int8")

# Activations of a layer that are saved for the backward pass, from most memory
# and least time to least memory and most time:
# * none: all of them;
# * attention: all except attention's scores and weights, [B, N, T, T], which
#   attention in chunks never saves;
# * dots: the products with weights and the output of attention; norms,
#   rotations, scores and the MLP's nonlinearity are computed again;
# * layer: the layer's input, [B, T, D];
# * offload: the same, in the host's memory.
# Compiled for one TPU v5p, a gradient through 28 layers (D 1536, F 8960, N 12,
# K 2, H 128, bfloat16) of a row of 4,096 tokens takes 55.0, 22.0, 10.0, 4.9
# and 4.2 GB of temporary memory in this order, the last with 0.35 GB of the
# host's. On a CPU, layers that are not scanned save everything in any case.
REMAT = ("none", "attention", "dots", "layer", "offload")

# Matrices of a layer, by the names of `params.declare_layers`.
MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters of a layer's matrices, see `models/lora.py`.

  Attributes:
    rank: r, at least 1.
    alpha: the product of the two factors is scaled by alpha / r; in
      `ranges.ALPHA`.
    targets: which of `MATRICES` have adapters.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...] = MATRICES

  def __post_init__(self):
    """Validates rank, scale and targets."""
    if self.rank < 1:
      raise ValueError(f"rank must be at least 1, got {self.rank}.")
    within(*ALPHA, self, "alpha")
    unknown = [name for name in self.targets if name not in MATRICES]
    if unknown or not self.targets:
      raise ValueError(
        f"targets must be some of {MATRICES}, got {self.targets}."
      )

  @property
  def scale(self) -> float:
    """Scale of the product of the two factors, alpha / r."""
    return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Reduction of rotary frequencies for longer texts, as in Llama 3.

  With wavelength λ = 2π / frequency and L = original_length: a frequency with
  λ < L / high_frequency_factor stays, one with λ > L / low_frequency_factor is
  divided by `factor`, those between are interpolated
  (`rotary.rotary_frequencies`).

  Attributes:
    factor: divides low frequencies, at least 1.
    low_frequency_factor: turns within L below which a frequency is low,
      positive.
    high_frequency_factor: turns within L above which a frequency is high;
      greater than low_frequency_factor.
    original_length: L, tokens of the longest text before the extension.
  """

  factor: float
  low_frequency_factor: float
  high_frequency_factor: float
  original_length: int

  def __post_init__(self):
    """Validates that frequencies can be interpolated."""
    low, high = self.low_frequency_factor, self.high_frequency_factor
    if not 0 < low < high < math.inf:
      raise ValueError(
        "low_frequency_factor must be positive and below "
        f"high_frequency_factor, both finite, got {low} and {high}."
      )
    if not 1 <= self.factor < math.inf or self.original_length < 1:
      raise ValueError(
        f"factor={self.factor} and original_length={self.original_length} "
        "must be at least 1 and finite."
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture of a Qwen2, Qwen3 or Llama decoder.

  Qwen2 has `attention_bias=True`, Qwen3 has `qk_norm=True`, Llama has
  neither; all come with tied or untied embeddings. Hashable, so it can be a
  static argument of a jitted function.

  >>> ModelConfig(vocab_size=80, width=64, num_layers=3, num_heads=4,
  ...             num_kv_heads=2, head_dim=16, mlp_width=192).group_size
  2

  Attributes:
    vocab_size: V, rows of the embedding.
    width: D, size of the residual stream.
    num_layers: decoder layers.
    num_heads: N, query heads.
    num_kv_heads: K, key and value heads; divides num_heads.
    head_dim: H, size of a head; even, because RoPE rotates pairs. N H may
      differ from D.
    mlp_width: F, hidden size of the gated MLP.
    rope_theta: base of the rotary frequencies.
    norm_eps: added to the mean square in RMSNorm.
    attention_bias: True adds a bias to queries, keys and values (Qwen2).
    qk_norm: True puts an RMSNorm over H on every query and key head, before
      they are rotated (Qwen3).
    rope_scaling: slower rotary frequencies (Llama 3), or None.
    tied_embeddings: True reads logits with the embedding matrix.
    compute_dtype: "float32" or "bfloat16", of matrix products; norms,
      softmax and logits are float32 either way.
    param_dtype: "float32" or "bfloat16", in which weights are stored.
    remat: activations of each layer that are saved for the backward pass, a
      name in `REMAT`; the rest is computed again.
    logits_chunk: tokens of a row whose logits exist at one time, see
      `token_logp.chunked_logp`; None computes all at once. Changes the memory
      and not the result.
    attention_chunk: queries whose attention scores exist at one time, see
      `attention.attend_in_chunks`; None computes all at once. Changes the
      memory, and the result by rounding only.
    cache_dtype: dtype of keys and values in the cache, a name in
      `CACHE_DTYPES`; None takes the compute dtype. A shorter dtype rounds
      them, so the sampler's log-probs drift from the trainer's.
    lora: adapters of the matrices of every layer; only the adapters are
      trained. None trains all weights.
    int8_matrices: True stores the matrices of every layer in int8, for
      sampling only, see `models/int8.py`.
  """

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float = 1e4
  norm_eps: float = 1e-6
  attention_bias: bool = True
  qk_norm: bool = False
  rope_scaling: RopeScaling | None = None
  tied_embeddings: bool = True
  compute_dtype: str = "float32"
  param_dtype: str = "float32"
  remat: str = "none"
  logits_chunk: int | None = None
  attention_chunk: int | None = None
  cache_dtype: str | None = None
  lora: LoraConfig | None = None
  int8_matrices: bool = False

  def __post_init__(self):
    """Validates sizes and names."""
    for name in (
      "vocab_size",
      "width",
      "num_layers",
      "num_heads",
      "num_kv_heads",
      "head_dim",
      "mlp_width",
    ):
      size = getattr(self, name)
      if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}.")
    for name, whole in (("attention", "queries"), ("logits", "logits")):
      chunk = getattr(self, f"{name}_chunk")
      if chunk is not None and chunk < 1:
        raise ValueError(
          f"{name}_chunk must be at least 1, or None for all {whole} at once, "
          f"got {chunk}."
        )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_kv_heads={self.num_kv_heads} does not divide "
        f"num_heads={self.num_heads}: each key head serves a whole group of "
        "query heads."
      )
    if self.head_dim % 2:
      raise ValueError(
        f"head_dim={self.head_dim} must be even: RoPE rotates pairs of entries."
      )
    if not (0 < self.rope_theta < math.inf and 0 < self.norm_eps < math.inf):
      raise ValueError(
        f"rope_theta={self.rope_theta} and norm_eps={self.norm_eps} must be "
        "positive and finite."
      )
    if self.remat not in REMAT:
      raise ValueError(f"remat must be one of {REMAT}, got {self.remat!r}.")
    if self.cache_dtype not in (None, *CACHE_DTYPES):
      raise ValueError(
        f"cache_dtype must be one of {CACHE_DTYPES}, or None for the compute "
        f"dtype, got {self.cache_dtype!r}."
      )
    for name in ("compute_dtype", "param_dtype"):
      dtype = getattr(self, name)
      if dtype not in COMPUTE_DTYPES:
        raise ValueError(
          f"{name} must be one of {COMPUTE_DTYPES}, got {dtype!r}."
        )

  @property
  def group_size(self) -> int:
    """Query heads served by one key head, N / K."""
    return self.num_heads // self.num_kv_heads
