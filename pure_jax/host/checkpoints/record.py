"""The leaves of a checkpoint, and their JSON record with config and metrics."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pure_jax.host import json_text


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a pytree by dotted path, in flattening order.

  Args:
    tree: pytree of arrays or of `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: if there is no leaf, two have one name, or one is no array.

  >>> named_leaves({"a": [np.zeros(2)]})
  {'a.0': array([0., 0.])}
  """
  leaves = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator=".") or "leaf"
    if name in leaves:
      raise ValueError(f"Two leaves of the state are named {name!r}.")
    if not isinstance(
      leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic
    ):
      raise ValueError(f"{name} is not an array but {type(leaf).__name__}.")
    leaves[name] = leaf
  if not leaves:
    raise ValueError("The state has no arrays.")
  return leaves


def describe(leaf: Any) -> str:
  """Returns dtype and shape as text.

  Args:
    leaf: an array, or its shape and dtype.

  >>> describe(np.zeros((3, 4), np.float32))
  'float32[3,4]'
  """
  return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def stored_array(leaf: Any) -> Any:
  """Returns a leaf as it is stored: typed PRNG keys as their integers.

  Args:
    leaf: an array.
  """
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def stored_shape(leaf: Any) -> jax.ShapeDtypeStruct:
  """Returns shape, dtype and sharding of a leaf as it is stored.

  Args:
    leaf: an array or `jax.ShapeDtypeStruct`. Without a sharding it is placed
      on the default device.
  """
  stored = jax.eval_shape(
    stored_array, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  )
  if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and leaf.sharding:
    sharding = leaf.sharding
  else:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)


def find_not_finite(leaves: Mapping[str, Any]) -> str | None:
  """Finds values that are NaN or infinite; every array is read once.

  Every process of a cluster must call it, and all get the same answer.

  >>> find_not_finite({"a": np.array([1, np.nan]), "b": np.ones(2)})
  'not finite: a'

  Args:
    leaves: arrays by name, of any dtype.

  Returns:
    A text with the names of up to three such arrays; None if all are finite.
  """
  # One array at a time: processes that start programs in different orders wait
  # for each other for ever.
  bad = [
    name
    for name, x in leaves.items()
    if jax.dtypes.issubdtype(x.dtype, np.inexact)
    and not jax.device_get(
      _all_finite(x) if isinstance(x, jax.Array) else np.isfinite(x).all()
    )
  ]
  if not bad:
    return None
  more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
  return f"not finite: {', '.join(bad[:3])}{more}"


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
  return jnp.isfinite(array).all()


@dataclasses.dataclass(frozen=True)
class CheckpointMetrics:
  """Decides whether a checkpoint is preserved.

  Attributes:
    interim: whether the checkpoint was saved between two regular ones, as a
      preempted run does.
    values: finite metrics by name.
  """

  interim: bool = False
  values: Mapping[str, float] = dataclasses.field(default_factory=dict)


def read_metrics(folder: str | os.PathLike) -> CheckpointMetrics:
  """Reads the metrics of a checkpoint on disk.

  Args:
    folder: folder of the checkpoint. If its record cannot be read, its metrics
      are those of a regular checkpoint without any: a later restore reports the
      damage.
  """
  path = pathlib.Path(folder) / "record" / "metadata"
  try:
    record = json_text.parse(path.read_bytes(), finite=True)
    metrics = CheckpointMetrics(**record["metrics"])
    return checkpoint_metrics(metrics.values, interim=metrics.interim is True)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return CheckpointMetrics()


def checkpoint_metrics(
  values: Mapping[str, float | None], *, interim: bool
) -> CheckpointMetrics:
  """Makes the metrics of a checkpoint from the numbers that are finite.

  Args:
    values: metrics by name, scalars of any array library; None or NaN where a
      metric has no value.
    interim: whether the checkpoint was saved between two regular ones.
  """
  numbers = {
    name: float(value) for name, value in values.items() if value is not None
  }
  return CheckpointMetrics(
    interim, {name: x for name, x in numbers.items() if math.isfinite(x)}
  )


def make_record(
  leaves: Mapping[str, Any],
  extra: Mapping[str, Any] | None,
  config: Mapping[str, Any] | None,
  versions: Mapping[str, Any] | None,
  metrics: CheckpointMetrics,
) -> dict[str, Any]:
  """Makes the strictly JSON record that is stored with a state.

  Args:
    leaves: the state's arrays by name.
    extra: JSON-like dict, such as the data cursor.
    config: config of the run, JSON-like.
    versions: versions of Python, packages and devices, JSON-like.
    metrics: metrics of the checkpoint.

  Raises:
    TypeError: for a value that JSON does not know.
    ValueError: for NaN or infinity.
  """
  record = {
    "leaves": {name: describe(leaf) for name, leaf in leaves.items()},
    "key_impl": {
      name: str(jax.random.key_impl(leaf))
      for name, leaf in leaves.items()
      if _is_key(leaf)
    },
    "config": config,
    "versions": versions,
    "extra": dict(extra or {}),
    "metrics": dataclasses.asdict(metrics),
  }
  return json.loads(json.dumps(record, allow_nan=False))


def find_mismatch(
  record: Mapping[str, Any],
  leaves: Mapping[str, Any],
  config: Mapping[str, Any] | None,
  may_differ: Sequence[str],
) -> str | None:
  """Compares a checkpoint with the state and config of the present run.

  Args:
    record: the checkpoint's.
    leaves: arrays to restore, or their shapes and dtypes, by name.
    config: the present one; None skips the comparison.
    may_differ: dotted names of the config that are not compared.

  Returns:
    The differences, one per line; None if the checkpoint fits.
  """
  if config is not None and record["config"] is not None:
    differences = config_differences(record["config"], config, may_differ)
    if differences:
      return "was made with another config:\n  " + "\n  ".join(differences)
  differences = config_differences(
    {"leaves": record["leaves"]},
    {"leaves": {name: describe(leaf) for name, leaf in leaves.items()}},
  )
  if differences:
    return "does not fit the state to restore:\n  " + "\n  ".join(differences)
  return None


def config_differences(
  stored: Mapping[str, Any],
  current: Mapping[str, Any],
  may_differ: Sequence[str] = (),
) -> list[str]:
  """Lists the fields in which two nested configs differ.

  Args:
    stored: the earlier config, JSON-like.
    current: the present config, JSON-like; tuples equal lists.
    may_differ: dotted names to skip; a group's name covers its fields.

  Returns:
    One line for each differing field, sorted; empty if the configs agree.

  >>> config_differences({"rl": {"k": 8}}, {"rl": {"k": 4}})
  ['rl.k: was 8, is now 4']
  """
  before, after = _flatten(stored), _flatten(current)
  lines = []
  for name in sorted({*before, *after}):
    skipped = any(name == n or name.startswith(f"{n}.") for n in may_differ)
    if skipped or before.get(name, _ABSENT) == after.get(name, _ABSENT):
      continue
    was = repr(before[name]) if name in before else "absent"
    now = repr(after[name]) if name in after else "absent"
    lines.append(f"{name}: was {was}, is now {now}")
  return lines


_ABSENT = object()


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  """Returns a nested mapping by dotted names, with values as JSON has them."""
  if not isinstance(config, Mapping) or (prefix and not config):
    return {prefix: json.loads(json.dumps(config))}
  flat = {}
  for name, value in config.items():
    flat |= _flatten(value, f"{prefix}.{name}" if prefix else str(name))
  return flat
