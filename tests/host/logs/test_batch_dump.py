"""A dumped batch can be read by numpy alone."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.host.logs.batch_dump import dump_batch


def test_a_batch_is_read_back_by_numpy_alone(tmp_path):
  batch = {
    "rollout": {"tokens": jnp.arange(6).reshape(2, 3)},
    "labels": (np.array([True, False]), jnp.ones(2, jnp.bfloat16) / 3),
  }
  path = tmp_path / "nonfinite" / "rl_7.npz"
  dump_batch(path, batch, {"step": 7, "problems": ["1 + 2"]})
  with np.load(path) as read:
    np.testing.assert_array_equal(
      read["rollout.tokens"], [[0, 1, 2], [3, 4, 5]]
    )
    assert read["labels.0"].tolist() == [True, False]
    # The bfloat16 next to 1/3, which is 0.333984375.
    assert read["labels.1"].dtype == np.float32
    assert read["labels.1"].tolist() == [0.333984375] * 2
    facts = json.loads(str(read["facts"]))
  assert facts == {"step": 7, "problems": ["1 + 2"]}
  assert [p.name for p in path.parent.iterdir()] == ["rl_7.npz"]


def test_numbers_that_are_not_finite_are_unchanged(tmp_path):
  path = tmp_path / "a.npz"
  rewards = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
  dump_batch(path, {"rewards": rewards}, {})
  with np.load(path) as read:
    np.testing.assert_array_equal(read["rewards"], rewards)


def test_a_leaf_that_is_no_array_is_an_error_and_leaves_no_file(tmp_path):
  with pytest.raises(ValueError, match="texts is not an array but str"):
    dump_batch(tmp_path / "a.npz", {"texts": "1 + 2"}, {})
  assert list(tmp_path.iterdir()) == []
