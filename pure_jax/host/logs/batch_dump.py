"""A batch as an .npz file, to find out why its update was not finite."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pure_jax.host import json_text
from pure_jax.host.atomic_files import replace_atomic
from pure_jax.host.checkpoints.record import named_leaves
from pure_jax.host.distributed import global_batch

FACTS = "facts"


def dump_batch(
  path: str | os.PathLike, batch: Any, facts: Mapping[str, Any]
) -> None:
  """Writes the arrays of a batch to an ``.npz`` file, for `numpy.load`.

  Each array is stored under its path in the batch, such as ``rollout.tokens``.
  Every process must call it; process 0 writes.

  Args:
    path: the file; its folder is created if missing.
    batch: pytree of arrays. bfloat16, which numpy does not know, is written as
      float32.
    facts: JSON-like dict, stored as text under ``facts``.

  Raises:
    OSError: if the file cannot be written.
    ValueError: if a leaf of the batch is not an array.
  """
  leaves = global_batch.read_everywhere(named_leaves(batch))
  arrays = {FACTS: np.asarray(json_text.dump(facts))}
  for name, leaf in leaves.items():
    array = np.asarray(leaf)
    is_known = array.dtype.kind in "biufc"  # To numpy; bfloat16 is not.
    arrays[name] = array if is_known else array.astype(np.float32)
  if jax.process_index() != 0:
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with replace_atomic(path) as file:
    np.savez(file, **arrays)
