"""Calls of kernels on arrays that are split over devices.

XLA splits its own operations over devices, but a kernel sees the arrays of one
device only. Each kernel is therefore called inside `jax.shard_map`, with arrays
split by the rules of a layout. A layout that splits an axis that a kernel
needs whole raises an error.

Kernels, and the number of devices that run them, change results only by
rounding.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from pure_jax.models.activation_sharding import (
  HIDDEN,
  KEYS,
  QUERIES,
  ActivationSharding,
)
from pure_jax.models.kv_cache import KVSegment
from pure_jax.parallel.rules import Constrainer

CHOICES = {
  "attention": ("xla", "splash", "cudnn"),
  "decode_attention": ("xla", "pallas"),
  "logp": ("xla", "pallas"),
}
# Platforms that a kernel is compiled for.
PLATFORMS = {"splash": "tpu", "pallas": "tpu", "cudnn": "gpu"}


@dataclasses.dataclass(frozen=True)
class Kernels:
  """Kernels that models call in place of XLA's operations.

  Attributes:
    attention: attention of whole texts, in prefill, scoring and updates:
      "xla", the model's own; "splash", for a TPU; "cudnn", for a GPU in 16
      bits. The two kernels store no scores, so `ModelConfig.attention_chunk`
      has no effect.
    decode_attention: attention of new tokens to the KV cache, in rollouts:
      "xla"; "pallas", for a TPU, which skips blocks of the cache that no row
      attends to. With it the samples of a prompt share its keys and values.
    logp: log-probs from the policy's head, in scoring and updates: "xla";
      "pallas", for a TPU, which stores no logits, so
      `ModelConfig.logits_chunk` has no effect.
    interpret: True interprets "splash" and "pallas" on any device, for tests.
  """

  attention: str = "xla"
  decode_attention: str = "xla"
  logp: str = "xla"
  interpret: bool = False

  def __post_init__(self):
    """Validates the names of the kernels."""
    for name, allowed in CHOICES.items():
      chosen = getattr(self, name)
      if chosen not in allowed:
        raise ValueError(
          f"kernels.{name} must be one of {allowed}, got {chosen!r}."
        )

  def check(self, mesh: Mesh) -> None:
    """Validates that the kernels can run on a mesh.

    Args:
      mesh: the devices of a layout.

    Raises:
      ValueError: if a kernel is for other devices, or if the mesh splits an
        axis that the kernel needs whole. The message says what to change.
    """
    platform = mesh.devices.flat[0].platform
    for name in CHOICES:
      chosen = getattr(self, name)
      if chosen == "xla":
        continue
      needed, remedy = PLATFORMS[chosen], f"set kernels.{name} to 'xla'"
      interpreted = self.interpret and needed == "tpu"
      if platform != needed and not interpreted:
        raise ValueError(
          f"kernels.{name}={chosen!r} runs on a {needed.upper()} only, and "
          f"these devices are of the platform {platform!r}: {remedy}."
        )
      if mesh.shape["sequence"] > 1:
        raise ValueError(
          f"kernels.{name}={chosen!r} needs whole rows, and the mesh splits "
          f"their tokens over sequence={mesh.shape['sequence']} devices: set "
          f"it to 1, or {remedy}."
        )
    if self.logp != "xla" and mesh.shape["tensor"] > 1:
      raise ValueError(
        f"kernels.logp={self.logp!r} needs the whole vocabulary, and the mesh "
        f"splits it over tensor={mesh.shape['tensor']} devices: set it to 1, "
        "or set kernels.logp to 'xla'."
      )

  def add_to(
    self, act_sharding: ActivationSharding, constrainer: Constrainer | None
  ) -> ActivationSharding:
    """Adds the calls of the chosen kernels.

    Args:
      act_sharding: how activations are sharded, without kernels.
      constrainer: how arrays are split over devices; None on one device.

    Returns:
      `act_sharding` with the chosen kernels in place of XLA's operations.
    """
    calls: dict[str, _KernelCall] = {}
    if self.attention != "xla":
      calls["attention"] = AttentionCall(self, constrainer)
    if self.decode_attention != "xla":
      calls["decode_attention"] = DecodeCall(self, constrainer)
    if self.logp != "xla":
      calls["head_logp"] = LogpCall(self, constrainer)
    return dataclasses.replace(act_sharding, **calls)


XLA = Kernels()


@dataclasses.dataclass(frozen=True)
class _KernelCall:
  """A kernel on every device's rows and heads.

  Attributes:
    kernels: the chosen kernels.
    constrainer: how arrays are split over devices; None on one device.
  """

  kernels: Kernels
  constrainer: Constrainer | None

  def _on_shards(self, run, in_specs, out_specs):
    """`run` on the shards of every device."""
    return jax.shard_map(
      run,
      mesh=self.constrainer.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )

  def _read_heads(self, arrays, key_axis, query_axis):
    """Selects the key heads [B, K, ...] that the queries of this shard read.

    If there are fewer key heads than shards, each shard has all of them and
    its queries read one.
    """
    if query_axis is None or key_axis is not None:
      return arrays

    def read(x):
      shards = self.constrainer.mesh.shape[query_axis]
      head = jax.lax.axis_index(query_axis) * x.shape[1] // shards
      return jax.lax.dynamic_slice_in_dim(x, head, 1, axis=1)

    return jax.tree.map(read, arrays)


class AttentionCall(_KernelCall):
  """Calls `kernels.segment_attention`."""

  def __call__(
    self, q_BTNH: Array, k_BKTH: Array, v_BKTH: Array, segment_ids: Array
  ) -> Array:
    """Returns [B, T, N, H], see `activation_sharding.SegmentAttention`."""
    # Importing Pallas takes a while, and most runs use no kernel.
    from pure_jax.kernels.segment_attention import segment_attention

    chosen = self.kernels.attention
    run = functools.partial(
      segment_attention,
      implementation=chosen,
      interpret=self.kernels.interpret and chosen == "splash",
    )
    if self.constrainer is None:
      return run(q_BTNH, k_BKTH, v_BKTH, segment_ids)
    spec = self.constrainer.spec
    queries, keys = spec(q_BTNH, QUERIES), spec(k_BKTH, KEYS)

    def run_on_shard(q, k, v, ids):
      k, v = self._read_heads((k, v), keys[1], queries[2])
      return run(q, k, v, ids)

    ids = spec(segment_ids, ("rows", "tokens"))
    call = self._on_shards(run_on_shard, (queries, keys, keys, ids), queries)
    return call(q_BTNH, k_BKTH, v_BKTH, segment_ids)


class DecodeCall(_KernelCall):
  """Calls `kernels.decode_attention`."""

  def __call__(self, q_BTNH: Array, segments: Sequence[KVSegment]) -> Array:
    """Returns [B, 1, N, H], see `decoding.attend_to_cache`."""
    from pure_jax.kernels.decode_attention import (
      SegmentArrays,
      decode_attention,
    )

    run = functools.partial(
      decode_attention,
      implementation=self.kernels.decode_attention,
      interpret=self.kernels.interpret,
    )
    q_BNH = q_BTNH[:, 0]
    parts = tuple(
      SegmentArrays(
        x.keys.data, x.values.data, x.mask, x.keys.scale, x.values.scale
      )
      for x in segments
    )
    if self.constrainer is None:
      return run(q_BNH, parts)[:, None]
    spec = self.constrainer.spec
    queries = spec(q_BNH, (QUERIES[0], *QUERIES[2:]))

    def specs(part):
      keys = spec(part.keys, KEYS)
      scale = None if part.key_scale is None else PartitionSpec(*keys[:3])
      mask = spec(part.mask, (KEYS[0], KEYS[2]))
      return SegmentArrays(keys, keys, mask, scale, scale)

    in_specs = queries, tuple(map(specs, parts))
    key_axis = in_specs[1][0].keys[1]

    def run_on_shard(q, parts):
      def read(part):
        heads = part._replace(mask=None)
        heads = self._read_heads(heads, key_axis, queries[1])
        return heads._replace(mask=part.mask)

      return run(q, tuple(map(read, parts)))

    call = self._on_shards(run_on_shard, in_specs, queries)
    return call(q_BNH, parts)[:, None]


class LogpCall(_KernelCall):
  """Calls `kernels.linear_logp`, which needs the whole table."""

  def __call__(
    self,
    table: Array,
    hidden: Array,
    tokens: Array,
    mask: Array,
    *,
    tied: bool,
    temperature: float,
    banned_ids: tuple[int, ...],
  ) -> tuple[Array, Array]:
    """Returns (logp, entropy) [B, C], see `activation_sharding.HeadLogp`."""
    from pure_jax.kernels.linear_logp import linear_logp

    run = functools.partial(
      linear_logp,
      implementation=self.kernels.logp,
      interpret=self.kernels.interpret,
      tied=tied,
      temperature=temperature,
      banned_ids=banned_ids,
    )
    if self.constrainer is None:
      return run(table, hidden, tokens, mask)
    rows = self.constrainer.spec(tokens, ("rows", "tokens"))
    states = self.constrainer.spec(hidden, HIDDEN)
    in_specs = (PartitionSpec(), states, rows, rows)
    call = self._on_shards(run, in_specs, (rows, rows))
    return call(table, hidden, tokens, mask)
