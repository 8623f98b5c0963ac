"""Kernels as models call them: each device with its own rows and heads.

XLA splits its own operations over devices, but not a kernel, which sees the
arrays of one device. Here each is called inside `jax.shard_map`, split as the
rules of a layout say, and refused where a layout splits what it needs whole.

On how many devices it runs changes a result by rounding, as a kernel does.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from pure_jax.models.activation_sharding import HIDDEN, KEYS, QUERIES
from pure_jax.models.kv_cache import Stored

CHOICES = {
  "attention": ("xla", "splash", "cudnn"),
  "decode_attention": ("xla", "pallas"),
  "logp": ("xla", "pallas"),
}
# Platforms that a kernel is compiled for.
PLATFORMS = {"splash": "tpu", "pallas": "tpu", "cudnn": "gpu"}


@dataclasses.dataclass(frozen=True)
class Kernels:
  """What models call in place of XLA's operations.

  Attributes:
    attention: of whole texts, in prefill, scores and updates: "xla", the
      model's own; "splash", for a TPU; "cudnn", for a GPU in 16 bits. The
      latter two hold no scores, and leave `ModelConfig.attention_chunk`
      without effect.
    decode_attention: of new tokens to what came before, in rollouts: "xla";
      "pallas", for a TPU, which skips blocks of the cache that no row reads,
      and for which samples of a prompt share its keys and values.
    logp: of the policy's head, in scores and updates: "xla"; "pallas", for a
      TPU, which holds no logits and leaves `ModelConfig.logits_chunk` without
      effect.
    interpret: True runs "splash" and "pallas" step by step on any device, to
      test them.
  """

  attention: str = "xla"
  decode_attention: str = "xla"
  logp: str = "xla"
  interpret: bool = False

  def __post_init__(self):
    """Refuses names of nothing, before any device is looked at."""
    for name, allowed in CHOICES.items():
      chosen = getattr(self, name)
      if chosen not in allowed:
        raise ValueError(
          f"kernels.{name} must be one of {allowed}, got {chosen!r}."
        )

  def check(self, mesh: Mesh) -> None:
    """Refuses devices that a kernel cannot run on.

    Args:
      mesh: of the layout.

    Raises:
      ValueError: naming the kernel, what is in its way and what to do.
    """
    platform = mesh.devices.flat[0].platform
    for name in CHOICES:
      chosen = getattr(self, name)
      if chosen == "xla":
        continue
      wanted, remedy = PLATFORMS[chosen], f"set kernels.{name} to 'xla'"
      interpreted = self.interpret and wanted == "tpu"
      if platform != wanted and not interpreted:
        raise ValueError(
          f"kernels.{name}={chosen!r} runs on a {wanted.upper()} only, and "
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

  def calls(self, constrainer: Any) -> dict[str, Any]:
    """What a `ActivationSharding` takes beside its constraints.

    Args:
      constrainer: the layout's `sharding.Constrainer`, None on one device.

    Returns:
      The functions, by field; none where XLA is chosen.
    """
    found: dict[str, Any] = {}
    if self.attention != "xla":
      found["attention"] = AttentionCall(self, constrainer)
    if self.decode_attention != "xla":
      found["decode_attention"] = DecodeCall(self, constrainer)
    if self.logp != "xla":
      found["head_logp"] = LogpCall(self, constrainer)
    return found


XLA = Kernels()


@dataclasses.dataclass(frozen=True)
class AttentionCall:
  """`kernels.segment_attention` on every device's rows and heads.

  Attributes:
    kernels: which of them.
    constrainer: `sharding.Constrainer`, None on one device.
  """

  kernels: Kernels
  constrainer: Any

  def __call__(
    self, q_BTNH: Array, k_BKTH: Array, v_BKTH: Array, segment_ids: Array
  ) -> Array:
    """Returns [B, T, N, H], see `activation_sharding.SegmentAttention`."""
    # Imported where it is asked for: Pallas takes a while, and runs that use
    # no kernel need none.
    from pure_jax.kernels.segment_attention import segment_attention

    chosen = self.kernels.attention
    run = functools.partial(
      segment_attention,
      implementation=chosen,
      interpret=self.kernels.interpret and chosen == "splash",
    )
    if self.constrainer is None:
      return run(q_BTNH, k_BKTH, v_BKTH, segment_ids)
    spec, mesh = self.constrainer.spec, self.constrainer.mesh
    queries, keys = spec(q_BTNH, QUERIES), spec(k_BKTH, KEYS)

    def run_on_shard(q, k, v, ids):
      k, v = _read_heads((k, v), keys[1], queries[2], mesh)
      return run(q, k, v, ids)

    return jax.shard_map(
      run_on_shard,
      mesh=mesh,
      in_specs=(queries, keys, keys, spec(segment_ids, ("rows", "tokens"))),
      out_specs=queries,
      check_vma=False,
    )(q_BTNH, k_BKTH, v_BKTH, segment_ids)


def _read_heads(arrays, key_axis, query_axis, mesh):
  """The key heads [B, K, ...] that the queries of this shard read.

  Where there are fewer key heads than shards, each shard has them all, and its
  queries read one.
  """
  if query_axis is None or key_axis is not None:
    return arrays

  def read(x):
    shards = mesh.shape[query_axis]
    head = jax.lax.axis_index(query_axis) * x.shape[1] // shards
    return jax.lax.dynamic_slice_in_dim(x, head, 1, axis=1)

  return jax.tree.map(read, arrays)


@dataclasses.dataclass(frozen=True)
class DecodeCall:
  """`kernels.decode_attention` on every device's rows and heads.

  Attributes:
    kernels: which of them.
    constrainer: `sharding.Constrainer`, None on one device.
  """

  kernels: Kernels
  constrainer: Any

  def __call__(
    self, q_BTNH: Array, parts: list[tuple[Stored, Stored, Array]]
  ) -> Array:
    """Returns [B, 1, N, H], see `decoding.attend_to_parts`."""
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
    given = tuple(
      SegmentArrays(k.data, v.data, mask, k.scale, v.scale)
      for k, v, mask in parts
    )
    if self.constrainer is None:
      return run(q_BNH, given)[:, None]
    spec, mesh = self.constrainer.spec, self.constrainer.mesh
    queries = spec(q_BNH, (QUERIES[0], *QUERIES[2:]))

    def specs(part):
      keys = spec(part.keys, KEYS)
      scale = None if part.key_scale is None else PartitionSpec(*keys[:3])
      mask = spec(part.mask, (KEYS[0], KEYS[2]))
      return SegmentArrays(keys, keys, mask, scale, scale)

    in_specs = queries, tuple(map(specs, given))
    key_axis = in_specs[1][0].keys[1]

    def run_on_shard(q, parts):
      def read(part):
        heads = part._replace(mask=None)
        heads = _read_heads(heads, key_axis, queries[1], mesh)
        return heads._replace(mask=part.mask)

      return run(q, tuple(map(read, parts)))

    return jax.shard_map(
      run_on_shard,
      mesh=mesh,
      in_specs=in_specs,
      out_specs=queries,
      check_vma=False,
    )(q_BNH, given)[:, None]


@dataclasses.dataclass(frozen=True)
class LogpCall:
  """`kernels.linear_logp` on every device's rows, the table whole.

  Attributes:
    kernels: which of them.
    constrainer: `sharding.Constrainer`, None on one device.
  """

  kernels: Kernels
  constrainer: Any

  def __call__(
    self, table: Array, hidden: Array, tokens: Array, mask: Array, **head: Any
  ) -> tuple[Array, Array]:
    """Returns (logp, entropy), both [B, C], see
    `activation_sharding.HeadLogp`."""
    from pure_jax.kernels.linear_logp import linear_logp

    run = functools.partial(
      linear_logp,
      implementation=self.kernels.logp,
      interpret=self.kernels.interpret,
      **head,
    )
    if self.constrainer is None:
      return run(table, hidden, tokens, mask)
    rows = self.constrainer.spec(tokens, ("rows", "tokens"))
    return jax.shard_map(
      run,
      mesh=self.constrainer.mesh,
      in_specs=(
        PartitionSpec(),
        self.constrainer.spec(hidden, HIDDEN),
        rows,
        rows,
      ),
      out_specs=(rows, rows),
      check_vma=False,
    )(table, hidden, tokens, mask)
