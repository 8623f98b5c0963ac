"""A pytree as named leaves: what a checkpoint stores and compares."""

from typing import Any

import jax
import numpy as np


def named_leaves(tree: Any) -> dict[str, Any]:
  """Leaves by dotted path, in flattening order.

  Args:
    tree: pytree of arrays or of `jax.ShapeDtypeStruct`.

  Returns:
    Leaf by name, such as ``params.layers.0.w``.

  Raises:
    ValueError: if there is no leaf, two have one name, or one is no array.

  >>> named_leaves({"a": [np.zeros(2)]})
  {'a.0': array([0., 0.])}
  """
  named = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator=".") or "leaf"
    if name in named:
      raise ValueError(f"Two leaves of the state are named {name!r}.")
    if not isinstance(
      leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic
    ):
      raise ValueError(f"{name} is not an array but {type(leaf).__name__}.")
    named[name] = leaf
  if not named:
    raise ValueError("The state has no arrays.")
  return named


def is_key(leaf: Any) -> bool:
  """Whether a leaf holds typed jax PRNG keys.

  Args:
    leaf: an array, or its shape and dtype.
  """
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_data(leaf: Any) -> Any:
  """The integers of PRNG keys; another leaf as it is.

  Args:
    leaf: an array.
  """
  return jax.random.key_data(leaf) if is_key(leaf) else leaf


def describe(leaf: Any) -> str:
  """Dtype and shape as text.

  Args:
    leaf: an array, or its shape and dtype.

  >>> describe(np.zeros((3, 4), np.float32))
  'float32[3,4]'
  """
  return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """Shape, dtype and sharding of a leaf as stored: keys as their integers.

  Args:
    leaf: an array or `jax.ShapeDtypeStruct`; without sharding it goes to the
      default device.

  Returns:
    The same, without values.
  """
  stored = jax.eval_shape(
    key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  )
  if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and leaf.sharding:
    sharding = leaf.sharding
  else:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)
