"""What a stage leaves behind is the old tree or the new one, whole."""

import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.host.checkpoints import integrity, weights
from pure_jax.host.checkpoints.manager import CheckpointError


def make_tree(seed):
  return {"embed": jnp.arange(6.0) + seed, "half": jnp.ones(3, jnp.bfloat16)}


def test_a_saved_tree_is_replaced_whole(tmp_path):
  path = tmp_path / "sft"
  with pytest.raises(CheckpointError, match="no saved tree"):
    weights.load_tree(path, make_tree(0))
  assert not path.exists()
  for seed in (1, 2):
    weights.save_tree(path, make_tree(seed))
  loaded = weights.load_tree(path, make_tree(0))
  np.testing.assert_array_equal(loaded["embed"], np.arange(6.0) + 2)
  assert loaded["half"].dtype == jnp.bfloat16
  assert len([p for p in path.iterdir() if p.name.isdigit()]) == 1


def test_a_tree_that_could_not_be_replaced_is_the_old_one(
  tmp_path, monkeypatch
):
  """Removed before the new one is whole, it would be lost in a kill."""

  def fail(folder, without=()):
    raise OSError(5, "Input/output error")

  path = tmp_path / "sft"
  weights.save_tree(path, make_tree(1))
  with monkeypatch.context() as patched:
    patched.setattr(integrity, "write", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
      weights.save_tree(path, make_tree(2))
  assert [child.name for child in path.iterdir()] == ["0"]
  loaded = weights.load_tree(path, make_tree(0))
  np.testing.assert_array_equal(loaded["embed"], np.arange(6.0) + 1)
