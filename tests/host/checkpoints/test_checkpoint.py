"""A checkpoint is restored bit for bit, or an error says why it is not."""

import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pure_jax.host.checkpoints import integrity, weights
from pure_jax.host.checkpoints.checkpointer import CheckpointError, Checkpoints


@struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: tuple
  key: jax.Array


@pytest.fixture
def mesh():
  return Mesh(np.asarray(jax.devices()).reshape(2, 4), ("data", "fsdp"))


def make_state(seed: int) -> State:
  key = jax.random.key(seed)
  params = {
    "embed": jax.random.normal(key, (64, 32)),
    "half": jax.random.normal(key, (16,), jnp.bfloat16),
    "layers": [{"w": jnp.arange(6.0).reshape(2, 3) + seed}],
  }
  return State(
    step=jnp.int32(seed),
    params=params,
    opt_state=optax.adamw(1e-3).init(params),
    key=jax.random.split(key, 3),
  )


def abstract(state, sharding=None):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
  )


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save_steps(directory, *steps, **options):
  with Checkpoints(directory, **options) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), {"cursor": step * 10})


def restore(directory, **options):
  with Checkpoints(directory, **options) as checkpoints:
    return checkpoints.restore_latest(abstract(make_state(0)))


def array_files(checkpoint: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in (checkpoint / "state").rglob("*") if p.is_file())


def test_every_leaf_is_restored_bit_for_bit(tmp_path):
  save_steps(tmp_path, 3)
  restored = restore(tmp_path)
  assert restored.step == 3
  assert restored.extra == {"cursor": 30}
  assert_same(restored.state, make_state(3))
  # The PRNG keys are typed keys again, and draw the same numbers.
  np.testing.assert_array_equal(
    jax.random.normal(restored.state.key[1], (4,)),
    jax.random.normal(make_state(3).key[1], (4,)),
  )


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_key_keeps_its_generator(tmp_path, impl):
  key = jax.random.key(5, impl=impl)
  weights.save_tree(tmp_path, {"key": key})
  loaded = weights.load_tree(tmp_path, {"key": key})["key"]
  assert jax.random.key_impl(loaded) == jax.random.key_impl(key)
  assert jax.random.bits(loaded) == jax.random.bits(key)


def test_restores_to_the_requested_shardings(tmp_path, mesh):
  """Saved with one sharding and restored with another."""
  saved = NamedSharding(mesh, PartitionSpec("fsdp", None))
  requested = NamedSharding(mesh, PartitionSpec("data", "fsdp"))
  keys = NamedSharding(mesh, PartitionSpec("data"))
  tree = {
    "w": jax.device_put(jnp.arange(64.0).reshape(8, 8), saved),
    "keys": jax.random.split(jax.random.key(0), 4),
  }
  weights.save_tree(tmp_path, tree)
  loaded = weights.load_tree(
    tmp_path,
    {
      "w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=requested),
      "keys": jax.ShapeDtypeStruct((4,), tree["keys"].dtype, sharding=keys),
    },
  )
  assert loaded["w"].sharding == requested
  assert loaded["w"].addressable_shards[0].data.shape == (4, 2)
  assert loaded["keys"].sharding.is_equivalent_to(keys, 1)
  assert_same(loaded, tree)


def test_only_damaged_checkpoints_are_an_error(tmp_path):
  save_steps(tmp_path, 1, 2)
  for step in ("1", "2"):
    array_files(tmp_path / step)[-1].unlink()
  with pytest.raises(CheckpointError, match="No usable checkpoint") as caught:
    restore(tmp_path)
  assert str(tmp_path / "1") in str(caught.value)
  assert str(tmp_path / "2") in str(caught.value)


def test_a_save_removes_later_checkpoints(tmp_path):
  """Step 30 is damaged: the run goes on from 20 and saves 30 again."""
  save_steps(tmp_path, 10, 20, 30, keep_latest=3)
  array_files(tmp_path / "30")[0].unlink()
  assert restore(tmp_path, keep_latest=3).step == 20
  save_steps(tmp_path, 25, keep_latest=3)
  with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
    assert checkpoints.steps() == [10, 20, 25]


def test_another_state_is_an_error_and_is_not_cast(tmp_path, caplog):
  save_steps(tmp_path, 1, 2)
  other = abstract(make_state(0))
  other.params["half"] = jax.ShapeDtypeStruct((16,), jnp.float32)
  other.params["embed"] = jax.ShapeDtypeStruct((65, 32), jnp.float32)
  other.params["new"] = jax.ShapeDtypeStruct((1,), jnp.float32)
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(CheckpointError, match="does not fit") as caught,
  ):
    checkpoints.restore_latest(other)
  message = str(caught.value)
  assert "params.half: was 'bfloat16[16]', is now 'float32[16]'" in message
  assert "params.embed: was 'float32[64,32]'" in message
  assert "params.new: was absent" in message
  assert "layers" not in message
  assert "Damaged" not in caplog.text  # No older one was tried.


def test_another_config_is_an_error_that_names_the_field(tmp_path):
  config = {"seed": 1, "rl": {"credit": "min", "iterations": 10}}
  save_steps(tmp_path, 1, config=config)
  assert restore(tmp_path, config=config).step == 1
  assert restore(tmp_path).step == 1
  changed = {"seed": 1, "rl": {"credit": "sum", "iterations": 20}}
  with pytest.raises(CheckpointError) as caught:
    restore(tmp_path, config=changed, may_differ=["rl.iterations"])
  assert "rl.credit: was 'min', is now 'sum'" in str(caught.value)
  assert "iterations" not in str(caught.value)


def test_an_unwritable_folder_is_an_error_that_names_it(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(CheckpointError, match=r"Cannot write.*file/below"):
    Checkpoints(tmp_path / "file" / "below")


def test_a_state_that_is_not_arrays_is_an_error(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match="cursor is not an array but int"):
      checkpoints.save(0, {"cursor": 3})
    with pytest.raises(ValueError, match="no arrays"):
      checkpoints.save(0, {})
    with pytest.raises(ValueError, match=r"named 'a\.b'"):
      checkpoints.save(0, {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)})
    assert checkpoints.steps() == []
  with pytest.raises(ValueError, match="keep_latest"):
    Checkpoints(tmp_path, keep_latest=0)


def test_a_save_and_a_restore_log_nothing(tmp_path, caplog, capfd):
  with caplog.at_level(logging.INFO):
    save_steps(tmp_path, 1, 2, 3)
    restore(tmp_path)
  assert not [r for r in caplog.records if r.name in ("absl", "pure_jax")]
  assert capfd.readouterr().err == ""


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
  assert restore(tmp_path) is None


def test_the_record_is_plain_json_with_config_and_versions(tmp_path):
  versions = {"packages": {"jax": "0.0"}, "commit": None}
  save_steps(tmp_path, 7, config={"seed": 3}, versions=versions)
  record = json.loads((tmp_path / "7" / "record" / "metadata").read_text())
  assert record["config"] == {"seed": 3}
  assert record["versions"] == versions
  assert record["extra"] == {"cursor": 70}
  assert record["leaves"]["params.embed"] == "float32[64,32]"
  # Versions are not compared.
  other = versions | {"commit": "abc"}
  assert restore(tmp_path, config={"seed": 3}, versions=other).step == 7


def small_tree(seed):
  return {"embed": jnp.arange(6.0) + seed, "half": jnp.ones(3, jnp.bfloat16)}


def test_a_saved_tree_replaces_the_one_before(tmp_path):
  path = tmp_path / "sft"
  with pytest.raises(CheckpointError, match="no saved tree"):
    weights.load_tree(path, small_tree(0))
  assert not path.exists()
  for seed in (1, 2):
    weights.save_tree(path, small_tree(seed))
  assert_same(weights.load_tree(path, small_tree(0)), small_tree(2))
  assert len([p for p in path.iterdir() if p.name.isdigit()]) == 1


def test_a_tree_that_could_not_be_replaced_is_the_old_one(
  tmp_path, monkeypatch
):
  """If it was removed before the new one is complete, a kill would lose it."""

  def fail(folder, exclude=()):
    raise OSError(5, "Input/output error")

  path = tmp_path / "sft"
  weights.save_tree(path, small_tree(1))
  with monkeypatch.context() as patched:
    patched.setattr(integrity, "write_checksums", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
      weights.save_tree(path, small_tree(2))
  assert [child.name for child in path.iterdir()] == ["0"]
  assert_same(weights.load_tree(path, small_tree(0)), small_tree(1))
