"""Weights that a finished stage leaves behind, saved as one pytree.

Apart from the checkpoints of a training loop: there is one tree in a folder,
and no step, metric or config to compare.
"""

import os
import pathlib
from typing import Any

from pure_jax.host.checkpoints.checkpointer import CheckpointError, Checkpoints


def save_tree(path: str | os.PathLike, tree: Any) -> None:
  """Saves a pytree, such as the weights that a finished stage leaves behind.

  Args:
    path: a folder. A tree saved there before is removed once this one is
      complete.
    tree: pytree of arrays.

  Raises:
    CheckpointError: if the folder cannot be written.
  """
  with Checkpoints(path, keep_latest=1) as checkpoints:
    step = max(checkpoints.steps(), default=-1) + 1
    checkpoints.save(step, tree)


def load_tree(path: str | os.PathLike, abstract_tree: Any) -> Any:
  """Loads a tree that `save_tree` saved, bit for bit.

  Args:
    path: the folder.
    abstract_tree: pytree of arrays or of `jax.ShapeDtypeStruct` with the
      shardings to restore to.

  Raises:
    CheckpointError: if the folder holds no such tree, or a damaged one.
  """
  missing = f"There is no saved tree in {os.fspath(path)}."
  if not pathlib.Path(path).is_dir():
    raise CheckpointError(missing)
  with Checkpoints(path, keep_latest=1) as checkpoints:
    restored = checkpoints.restore_latest(abstract_tree)
  if restored is None:
    raise CheckpointError(missing)
  return restored.state
