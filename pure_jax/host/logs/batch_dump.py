"""A batch as a file, for whoever looks for what went wrong with it."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pure_jax.host.checkpoints.record import named_leaves

FACTS = "facts"


def dump_batch(
  path: str | os.PathLike, batch: Any, facts: Mapping[str, Any]
) -> None:
  """Writes arrays as one ``.npz`` file, which holds no pickle.

  `numpy.load` reads it: each array is there under its path in the batch, such
  as ``rollout.tokens``. Where there are several processes they all must call
  it together; the first one writes.

  Args:
    path: the file; its folder is created if missing.
    batch: pytree of arrays; bfloat16, which numpy does not know, is written
      as float32.
    facts: JSON-like dict, kept as text under ``facts``.

  Raises:
    OSError: if the file cannot be written.
    ValueError: if the batch holds something else than arrays.
  """
  arrays = {n: _on_host(leaf) for n, leaf in named_leaves(batch).items()}
  arrays[FACTS] = np.asarray(json.dumps(facts))
  if jax.process_index():
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      np.savez(file, allow_pickle=False, **arrays)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def _on_host(leaf: Any) -> np.ndarray:
  """All of an array, wherever its parts are."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    leaf = multihost_utils.process_allgather(leaf, tiled=True)
  array = np.asarray(leaf)
  known = array.dtype.kind in "biufc"
  return array if known else array.astype(np.float32)
