"""Weights are declared once; everything else is derived from the declaration.

`declare_decoder` gives a nested dict of `Weight`: shape, dtype, logical axes
and initialiser of every array. Values (`init_params`), shapes without values
(`abstract_params`), logical axes (`logical_axes`, for sharding) and the count
(`count_params`) follow from it. A weight that is not declared does not exist:
`check_params` says by name where given arrays and declaration differ.

Letters: V vocabulary, D width, N query heads, K key heads, H head dimension,
F MLP width. Layers are stacked on a leading axis.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax.models.config import LoraConfig, ModelConfig
from pure_jax.models.int8 import declare_quantized

Initializer = Callable[[Array, tuple[int, ...], jnp.dtype], Array]

EMBEDDING_STDDEV = 0.02


@dataclasses.dataclass(frozen=True)
class Weight:
  """Declaration of one array.

  Attributes:
    shape: sizes, one per dimension.
    dtype: numpy dtype name of the stored array.
    logical_axes: one name per dimension, or None for a dimension that is
      never split over devices.
    initializer: (key, shape, dtype) -> array.
    keep_dtype: True if the weight is applied in its own dtype and must not be
      cast to the compute dtype, as a norm's scale.
  """

  shape: tuple[int, ...]
  dtype: str
  logical_axes: tuple[str | None, ...]
  initializer: Initializer
  keep_dtype: bool = False

  def __post_init__(self):
    """Refuses a declaration that disagrees with itself."""
    if len(self.shape) != len(self.logical_axes):
      raise ValueError(
        f"A weight of shape {self.shape} needs {len(self.shape)} logical "
        f"axes, got {self.logical_axes}."
      )


@dataclasses.dataclass(frozen=True)
class Normal:
  """Initialiser: independent normal entries.

  Attributes:
    stddev: standard deviation of an entry.
  """

  stddev: float

  def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draws an array of `shape`; the key is consumed."""
    values = self.stddev * jax.random.normal(key, shape, jnp.float32)
    return values.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Constant:
  """Initialiser: every entry the same.

  Attributes:
    value: that entry.
  """

  value: float

  def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns an array filled with the value; the key is not used."""
    del key
    return jnp.full(shape, self.value, dtype)


ZEROS = Constant(0.0)
ONES = Constant(1.0)


def fan_in(size: int) -> Normal:
  """Initialiser of a matrix whose output has the scale of its input.

  Args:
    size: number of entries summed for one output.

  Returns:
    A normal initialiser of variance 1 / size.
  """
  return Normal(1.0 / math.sqrt(size))


def declare_layers(config: ModelConfig, num_layers: int) -> dict[str, Weight]:
  """Declares a stack of decoder layers.

  Args:
    config: the architecture; its own num_layers sets only the scale of the
      projections that write to the residual stream, 1 / sqrt(2 num_layers)
      of the usual one.
    num_layers: layers in the stack.

  Returns:
    One `Weight` per kind of array, [num_layers, ...]; with `config.lora`
    those of the adapters too, with `config.int8_matrices` two for a matrix.
  """
  D, N, K, H, F = (
    config.width,
    config.num_heads,
    config.num_kv_heads,
    config.head_dim,
    config.mlp_width,
  )
  residual = 1.0 / math.sqrt(2 * config.num_layers)
  axes = {
    "D": "width",
    "N": "heads",
    "K": "kv_heads",
    "H": "head_dim",
    "F": "mlp",
  }
  sizes = {"D": D, "N": N, "K": K, "H": H, "F": F}

  def weight(
    letters: str, initializer: Initializer, keep_dtype: bool = False
  ) -> Weight:
    return Weight(
      (num_layers, *(sizes[letter] for letter in letters)),
      config.param_dtype,
      ("layers", *(axes[letter] for letter in letters)),
      initializer,
      keep_dtype,
    )

  def norm(letter: str) -> Weight:
    return weight(letter, ONES, keep_dtype=True)

  layers = {
    "attention_norm": norm("D"),
    "query": weight("DNH", fan_in(D)),
    "key": weight("DKH", fan_in(D)),
    "value": weight("DKH", fan_in(D)),
    "output": weight("NHD", Normal(residual / math.sqrt(N * H))),
    "mlp_norm": norm("D"),
    "gate": weight("DF", fan_in(D)),
    "up": weight("DF", fan_in(D)),
    "down": weight("FD", Normal(residual / math.sqrt(F))),
  }
  if config.attention_bias:
    layers["query_bias"] = weight("NH", ZEROS)
    layers["key_bias"] = weight("KH", ZEROS)
    layers["value_bias"] = weight("KH", ZEROS)
  if config.qk_norm:
    layers["query_norm"] = norm("H")
    layers["key_norm"] = norm("H")
  adapters = {}
  if config.lora is not None:
    adapters = _declare_adapters(layers, config.lora)
  if config.int8_matrices:
    layers = declare_quantized(layers)
  return layers | adapters


def _declare_adapters(
  layers: dict[str, Weight], lora: LoraConfig
) -> dict[str, Weight]:
  """Two factors for each matrix: [in, r], and [r, out] that starts at zero.

  They are float32 whatever their matrix is stored in: small steps would vanish
  in bfloat16.
  """
  adapters = {}
  for name in lora.targets:
    shape, axes = layers[name].shape, layers[name].logical_axes
    inputs = 3 if name == "output" else 2  # Layers, then [N, H] or one axis.
    rank = lora.rank
    adapters[f"{name}_lora_a"] = Weight(
      (*shape[:inputs], rank),
      "float32",
      (*axes[:inputs], None),
      fan_in(math.prod(shape[1:inputs])),
    )
    adapters[f"{name}_lora_b"] = Weight(
      (shape[0], rank, *shape[inputs:]),
      "float32",
      (axes[0], None, *axes[inputs:]),
      ZEROS,
    )
  return adapters


def declare_decoder(config: ModelConfig) -> dict[str, Any]:
  """Declares the trunk: embedding, layers, final norm; no head.

  Args:
    config: the architecture.

  Returns:
    A nested dict of `Weight`.
  """
  D = config.width
  return {
    "embedding": Weight(
      (config.vocab_size, D),
      config.param_dtype,
      ("vocab", "width"),
      Normal(EMBEDDING_STDDEV),
    ),
    "layers": declare_layers(config, config.num_layers),
    "final_norm": Weight(
      (D,), config.param_dtype, ("width",), ONES, keep_dtype=True
    ),
  }


def is_weight(node: Any) -> bool:
  """True for a declaration, so that tree functions stop there.

  Args:
    node: any node of a tree.

  Returns:
    Whether it is a `Weight`.
  """
  return isinstance(node, Weight)


def init_params(key: Array, declared: Any) -> Any:
  """Draws the declared weights.

  Each weight's key is the given key folded with a checksum of the weight's
  name: adding or removing a weight leaves the others as they were.

  Args:
    key: typed PRNG key; consumed.
    declared: pytree of `Weight`.

  Returns:
    The same tree with arrays. Traceable: under jit with output shardings
    every array is born where it belongs.
  """

  def draw(path, weight):
    name = jax.tree_util.keystr(path)
    weight_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return weight.initializer(weight_key, weight.shape, jnp.dtype(weight.dtype))

  return jax.tree_util.tree_map_with_path(draw, declared, is_leaf=is_weight)


def abstract_params(declared: Any) -> Any:
  """Shapes and dtypes of the declared weights, without values.

  Args:
    declared: pytree of `Weight`.

  Returns:
    The same tree with `jax.ShapeDtypeStruct`.
  """
  return jax.tree.map(
    lambda weight: jax.ShapeDtypeStruct(weight.shape, jnp.dtype(weight.dtype)),
    declared,
    is_leaf=is_weight,
  )


def logical_axes(declared: Any) -> Any:
  """Logical axes of the declared weights.

  Args:
    declared: pytree of `Weight`.

  Returns:
    The same tree with a tuple of names (or None) for each weight.
  """
  return jax.tree.map(
    lambda weight: weight.logical_axes, declared, is_leaf=is_weight
  )


def count_params(declared: Any) -> int:
  """Number of scalars in the declared weights.

  Args:
    declared: pytree of `Weight`.

  Returns:
    The sum of sizes; 0 for an empty tree.
  """
  leaves = jax.tree.leaves(declared, is_leaf=is_weight)
  return sum(math.prod(weight.shape) for weight in leaves)


def check_params(params: Any, declared: Any) -> None:
  """Raises unless arrays and declaration agree in names, shapes and dtypes.

  Args:
    params: pytree of arrays, from a checkpoint or a conversion.
    declared: pytree of `Weight`.

  Raises:
    ValueError: naming every missing, unknown or differing weight.
  """
  wanted = _by_name(declared, is_weight)
  given = _by_name(params, None)
  faults = [f"{name} is missing" for name in wanted if name not in given]
  faults += [f"{name} is not declared" for name in given if name not in wanted]
  for name in wanted.keys() & given.keys():
    want = (wanted[name].shape, str(jnp.dtype(wanted[name].dtype)))
    have = (tuple(given[name].shape), str(given[name].dtype))
    if want != have:
      faults.append(f"{name} is {have}, declared {want}")
  if faults:
    raise ValueError("Weights do not fit: " + "; ".join(sorted(faults)) + ".")


def _by_name(
  tree: Any, is_leaf: Callable[[Any], bool] | None
) -> dict[str, Any]:
  """Leaves of a tree under their paths."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
