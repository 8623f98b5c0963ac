"""Weights are declared once; everything else is derived from the declaration.

`declare_decoder` returns a nested dict of `Weight`: shape, dtype, logical axes
and initialiser of every array. Values (`init_params`), abstract values
(`abstract_params`), logical axes (`logical_axes`, for sharding) and the number
of parameters (`count_params`) follow from it. `check_params` names every weight
that differs from its declaration.

The legend of axes is in `pure_jax.types`. Layers are stacked on a leading axis.
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
  """Declares one array.

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
    """Validates that every dimension has a logical axis."""
    if len(self.shape) != len(self.logical_axes):
      raise ValueError(
        f"A weight of shape {self.shape} needs {len(self.shape)} logical "
        f"axes, got {self.logical_axes}."
      )


@dataclasses.dataclass(frozen=True)
class Normal:
  """Initialises with independent normal entries.

  Attributes:
    stddev: standard deviation of an entry.
  """

  stddev: float

  def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draws an array; the key is consumed."""
    values = self.stddev * jax.random.normal(key, shape, jnp.float32)
    return values.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Constant:
  """Initialises with one value.

  Attributes:
    value: every entry.
  """

  value: float

  def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns an array filled with the value; the key is not used."""
    del key
    return jnp.full(shape, self.value, dtype)


ZEROS = Constant(0.0)
ONES = Constant(1.0)


def fan_in(size: int) -> Normal:
  """Makes the initialiser that keeps the scale of a matrix's input.

  Args:
    size: entries summed for one output.

  Returns:
    A normal initialiser of variance 1 / size.
  """
  return Normal(1.0 / math.sqrt(size))


def declare_layers(config: ModelConfig, num_layers: int) -> dict[str, Weight]:
  """Declares a stack of decoder layers.

  Args:
    config: the architecture. Its num_layers only scales the projections that
      write to the residual stream, by 1 / sqrt(2 num_layers).
    num_layers: layers in the stack.

  Returns:
    One `Weight` per kind of array, [num_layers, ...]. With `config.lora` the
    adapters are included; with `config.int8_matrices` a matrix is an
    `Int8Matrix` of two declarations.
  """
  axes = {
    "D": ("width", config.width),
    "N": ("heads", config.num_heads),
    "K": ("kv_heads", config.num_kv_heads),
    "H": ("head_dim", config.head_dim),
    "F": ("mlp", config.mlp_width),
  }

  def weight(letters, initializer, keep_dtype=False):
    names, sizes = zip(*(axes[letter] for letter in letters), strict=True)
    return Weight(
      (num_layers, *sizes),
      config.param_dtype,
      ("layers", *names),
      initializer,
      keep_dtype,
    )

  def norm(letter):
    return weight(letter, ONES, keep_dtype=True)

  inputs = fan_in(config.width)
  residual = 1.0 / math.sqrt(2 * config.num_layers)
  heads = config.num_heads * config.head_dim
  layers = {
    "attention_norm": norm("D"),
    "query": weight("DNH", inputs),
    "key": weight("DKH", inputs),
    "value": weight("DKH", inputs),
    "output": weight("NHD", Normal(residual / math.sqrt(heads))),
    "mlp_norm": norm("D"),
    "gate": weight("DF", inputs),
    "up": weight("DF", inputs),
    "down": weight("FD", Normal(residual / math.sqrt(config.mlp_width))),
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
  """Declares two factors per matrix: [in, r], and [r, out], initially zero.

  They are float32 for a matrix of any dtype, because small updates would
  vanish in bfloat16.
  """
  adapters = {}
  for name in lora.targets:
    shape, axes = layers[name].shape, layers[name].logical_axes
    inputs = 3 if name == "output" else 2  # Layers, then [N, H] or [D].
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
  return {
    "embedding": Weight(
      (config.vocab_size, config.width),
      config.param_dtype,
      ("vocab", "width"),
      Normal(EMBEDDING_STDDEV),
    ),
    "layers": declare_layers(config, config.num_layers),
    "final_norm": Weight(
      (config.width,), config.param_dtype, ("width",), ONES, keep_dtype=True
    ),
  }


def declare_head(
  width: int,
  outputs: int,
  dtype: str,
  initializer: Initializer,
  keep_dtype: bool = False,
) -> dict[str, Weight]:
  """Declares a head of n numbers per token: a kernel [D, n] and a bias [n].

  `transformer.read_head` applies it.

  Args:
    width: D, size of the hidden states.
    outputs: n, numbers per token.
    dtype: numpy dtype name of the stored weights.
    initializer: of the kernel; the bias starts at 0.
    keep_dtype: whether the head is applied in its own dtype.

  Returns:
    A dict of `Weight`.
  """
  return {
    "kernel": Weight(
      (width, outputs), dtype, ("width", "classes"), initializer, keep_dtype
    ),
    "bias": Weight((outputs,), dtype, ("classes",), ZEROS, keep_dtype),
  }


def is_weight(node: Any) -> bool:
  """Whether a node of a tree is a declaration, as `is_leaf` asks.

  Args:
    node: any node.

  Returns:
    True for a `Weight`.
  """
  return isinstance(node, Weight)


def init_params(key: Array, declared: Any) -> Any:
  """Draws the declared weights.

  The key of a weight is the given key folded with a checksum of the weight's
  name, so adding or removing a weight does not change the others.

  Args:
    key: typed PRNG key; consumed.
    declared: pytree of `Weight`.

  Returns:
    The same tree with arrays. The function is traceable: jitted with output
    shardings it creates every array in its sharding.
  """

  def draw(path, weight):
    name = jax.tree_util.keystr(path)
    weight_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return weight.initializer(weight_key, weight.shape, jnp.dtype(weight.dtype))

  return jax.tree_util.tree_map_with_path(draw, declared, is_leaf=is_weight)


def abstract_params(declared: Any) -> Any:
  """Returns shapes and dtypes of the declared weights, without values.

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
  """Returns the logical axes of the declared weights.

  Args:
    declared: pytree of `Weight`.

  Returns:
    The same tree with a tuple of names (or None) for each weight.
  """
  return jax.tree.map(
    lambda weight: weight.logical_axes, declared, is_leaf=is_weight
  )


def count_params(declared: Any) -> int:
  """Counts the scalars in the declared weights.

  Args:
    declared: pytree of `Weight`.

  Returns:
    The sum of sizes; 0 for an empty tree.
  """
  leaves = jax.tree.leaves(declared, is_leaf=is_weight)
  return sum(math.prod(weight.shape) for weight in leaves)


def check_params(params: Any, declared: Any) -> None:
  """Validates names, shapes and dtypes of arrays against their declaration.

  Args:
    params: pytree of arrays, from a checkpoint or a conversion.
    declared: pytree of `Weight`.

  Raises:
    ValueError: if a weight is missing, unknown or different; names all of them.
  """
  expected, arrays = _by_name(declared), _by_name(params)
  faults = [f"{name} is missing" for name in expected if name not in arrays]
  faults += [
    f"{name} is not declared" for name in arrays if name not in expected
  ]
  for name in expected.keys() & arrays.keys():
    weight, array = expected[name], arrays[name]
    declaration = (weight.shape, str(jnp.dtype(weight.dtype)))
    actual = (tuple(array.shape), str(array.dtype))
    if actual != declaration:
      faults.append(f"{name} is {actual}, declared {declaration}")
  if faults:
    raise ValueError("Weights do not fit: " + "; ".join(sorted(faults)) + ".")


def _by_name(tree: Any) -> dict[str, Any]:
  """Maps the paths of a tree to its leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_weight)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
