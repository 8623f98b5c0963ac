"""No value that is not finite is saved, or restored, as good."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pure_jax.host.checkpoints import record, weights
from pure_jax.host.checkpoints.checkpointer import CheckpointError, Checkpoints


def state(value=1.0, dtype="float32", devices=1):
  """A state with one value, on the last of some devices, among others."""
  mesh = Mesh(np.asarray(jax.devices()[:devices]), "fsdp")
  split = NamedSharding(mesh, PartitionSpec("fsdp"))
  array = jnp.ones(8, dtype).at[7].set(value)
  return {
    "key": jax.random.key(0),
    "params": {"bias": jnp.ones(2), "up": jax.device_put(array, split)},
    "step": jnp.int32(7),
  }


def save_anyway(checkpoints, step, bad):
  """Saves as versions did that did not look at the values."""
  with mock.patch.object(record, "find_not_finite", lambda leaves: None):
    checkpoints.save(step, bad)


@pytest.mark.parametrize(
  ("value", "dtype", "devices"),
  [(np.nan, "float32", 1), (-np.inf, "float32", 8), (np.inf, "bfloat16", 1)],
)
def test_a_state_that_is_not_finite_is_refused_and_the_one_before_stays(
  tmp_path, value, dtype, devices
):
  good = state(2.0, dtype, devices)
  with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
    checkpoints.save(3, good)
    with pytest.raises(CheckpointError, match=r"not finite: params\.up\."):
      checkpoints.save(4, state(value, dtype, devices))
    restored = checkpoints.restore_latest(good)
    assert restored.step == 3
    checkpoints.save(5, good)  # The run may go on.
    assert checkpoints.steps() == [5]
  np.testing.assert_array_equal(
    restored.state["params"]["up"], good["params"]["up"]
  )


def test_a_checkpoint_that_is_not_finite_counts_as_damaged(tmp_path):
  with Checkpoints(tmp_path / "two") as checkpoints:
    checkpoints.save(1, state(1.5))
    save_anyway(checkpoints, 2, state(np.nan))
    restored = checkpoints.restore_latest(state())
  assert restored.step == 1 and restored.state["params"]["up"][7] == 1.5
  with Checkpoints(tmp_path / "one") as checkpoints:
    save_anyway(checkpoints, 2, state(np.nan))
    with pytest.raises(CheckpointError, match=r"2: not finite: params\.up\n"):
      checkpoints.restore_latest(state())


def test_weights_that_are_not_finite_are_neither_left_nor_loaded(tmp_path):
  """What a stage leaves, and what --start takes from another workdir."""
  with pytest.raises(CheckpointError, match=r"not finite: params\.up"):
    weights.save_tree(tmp_path / "new", state(np.inf))
  with mock.patch.object(record, "find_not_finite", lambda leaves: None):
    weights.save_tree(tmp_path / "old", state(np.inf))
  with pytest.raises(CheckpointError, match=r"not finite: params\.up"):
    weights.load_tree(tmp_path / "old", state())


def test_arrays_that_are_not_finite_are_named():
  """A float64 beyond float32 is finite, as it is on disk."""
  fine = {"large": np.full(2, 1e300), "count": np.int64(3), "empty": np.ones(0)}
  assert record.find_not_finite(fine) is None
  bad = {f"w{i}": jnp.full(2, np.nan) for i in range(5)}
  message = "not finite: w0, w1, w2"
  assert record.find_not_finite(fine | bad) == f"{message} and 2 more"
  del bad["w3"], bad["w4"]
  assert record.find_not_finite(bad | fine) == message
