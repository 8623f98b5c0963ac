"""A checkpoint comes back bit for bit, or is refused with a reason."""

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
from pure_jax.host.checkpoints.manager import CheckpointError, Checkpoints


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


# Written when all else is whole: times, which nothing reads.
STAMPS = ("_CHECKPOINT_METADATA", "commit_success.txt")


def data_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    p for p in folder.rglob("*") if p.is_file() and p.name not in STAMPS
  )


def damage_file(file: pathlib.Path, damage: str) -> None:
  content = file.read_bytes()
  if damage == "missing":
    file.unlink()
  elif damage == "flipped":
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
  else:
    file.write_bytes(content[: len(content) // 2 * (damage == "cut")])


def test_everything_comes_back_exactly(tmp_path):
  save_steps(tmp_path, 3)
  restored = restore(tmp_path)
  assert restored.step == 3
  assert restored.extra == {"cursor": 30}
  assert_same(restored.state, make_state(3))
  # The keys are keys again, and draw what they drew before.
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


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
  assert restore(tmp_path) is None
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    assert checkpoints.restore_best(abstract(make_state(0))) is None


def test_restores_onto_the_shardings_asked_for(tmp_path, mesh):
  """Saved on one layout, restored on another, values unchanged."""
  saved = NamedSharding(mesh, PartitionSpec("fsdp", None))
  wanted = NamedSharding(mesh, PartitionSpec("data", "fsdp"))
  keys = NamedSharding(mesh, PartitionSpec("data"))
  tree = {
    "w": jax.device_put(jnp.arange(64.0).reshape(8, 8), saved),
    "keys": jax.random.split(jax.random.key(0), 4),
  }
  weights.save_tree(tmp_path, tree)
  loaded = weights.load_tree(
    tmp_path,
    {
      "w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=wanted),
      "keys": jax.ShapeDtypeStruct((4,), tree["keys"].dtype, sharding=keys),
    },
  )
  assert loaded["w"].sharding == wanted
  assert loaded["w"].addressable_shards[0].data.shape == (4, 2)
  assert loaded["keys"].sharding.is_equivalent_to(keys, 1)
  assert_same(loaded, tree)


def test_keeps_the_latest_and_the_best(tmp_path):
  """Steps 1..6; the best accuracy is at 2, the two latest are 5 and 6."""
  scores = {1: 0.3, 2: 0.9, 3: 0.8, 4: 0.1, 5: 0.2, 6: 0.4}
  for chunk in ([1, 2, 3], [4, 5, 6]):  # Reopened in between, as by a resume.
    with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
      for step in chunk:
        checkpoints.save(
          step, make_state(step), metrics={"accuracy": scores[step]}
        )
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    assert checkpoints.steps() == [2, 5, 6]
    best = checkpoints.restore_best(abstract(make_state(0)))
    assert best.step == 2
    assert_same(best.state, make_state(2))
    assert checkpoints.restore_latest(abstract(make_state(0))).step == 6


def test_lower_can_be_better(tmp_path):
  options = {"best_metric": "loss", "lower_is_better": True, "keep_latest": 1}
  with Checkpoints(tmp_path, **options) as checkpoints:
    for step, loss in enumerate([3.0, 1.0, 2.0]):
      checkpoints.save(step, make_state(step), metrics={"loss": loss})
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.restore_best(abstract(make_state(0))).step == 1


def test_saves_without_the_metric_never_count_as_best(tmp_path):
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    checkpoints.save(1, make_state(1), metrics={"accuracy": 0.5})
    for step in (2, 3, 4):
      checkpoints.save(step, make_state(step))
    assert checkpoints.steps() == [1, 3, 4]
    assert checkpoints.restore_best(abstract(make_state(0))).step == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_never_the_best(tmp_path, value):
  """No comparison with NaN is true, and the save is worth keeping anyway."""
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    for step, accuracy in ((1, 0.5), (2, value), (3, 0.1), (4, 0.2)):
      checkpoints.save(step, make_state(step), metrics={"accuracy": accuracy})
    assert checkpoints.steps() == [1, 3, 4]
    assert checkpoints.restore_best(abstract(make_state(0))).step == 1


DAMAGES = ["missing", "cut", "emptied", "flipped"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damaged_file_is_noticed(tmp_path, damage, caplog, capfd):
  """Each file in turn; Orbax alone reads a flipped bit without complaint."""
  save_steps(tmp_path, 1, 2)
  files = data_files(tmp_path / "2")
  assert len(files) > 5
  for file in files:
    content = file.read_bytes()
    damage_file(file, damage)
    caplog.clear()
    restored = restore(tmp_path)
    assert restored.step == 1, file
    assert_same(restored.state, make_state(1))
    message = caplog.records[0].getMessage()
    assert str(tmp_path / "2") in message
    # A digit of a sum altered looks like the file it belongs to altered.
    assert file.name in message or file.name == integrity.CHECKSUMS
    file.write_bytes(content)
  assert restore(tmp_path).step == 2
  assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", STAMPS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_stamp_spoils_nothing(tmp_path, damage, name):
  """The two files without checksum: what is restored is none of theirs."""
  save_steps(tmp_path, 1, 2)
  damage_file(tmp_path / "2" / name, damage)
  restored = restore(tmp_path)
  assert restored.step in (1, 2)
  assert_same(restored.state, make_state(restored.step))


def test_a_checkpoint_without_checksums_is_damaged(tmp_path, caplog):
  """They are there before it is: nothing that ran here left it so."""
  save_steps(tmp_path, 1, 2)
  (tmp_path / "2" / integrity.CHECKSUMS).unlink()
  assert restore(tmp_path).step == 1
  assert "2: missing files: checksums.json" in caplog.text


@pytest.mark.parametrize("content", ["null", "[1]", "3"])
def test_checksums_of_another_kind_are_damage(tmp_path, content, caplog):
  """JSON as good as any, but no list of files: it must not end the run."""
  save_steps(tmp_path, 1, 2)
  (tmp_path / "2" / integrity.CHECKSUMS).write_text(content)
  assert restore(tmp_path).step == 1
  assert "2: altered files: checksums.json" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_does_not_end_the_run(tmp_path, damage):
  """Its metrics are read before anything is checked."""
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(step), metrics={"accuracy": step / 4})
  damage_file(tmp_path / "2" / "record" / "metadata", damage)
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    wanted = abstract(make_state(0))
    assert checkpoints.restore_latest(wanted).step == 1
    assert checkpoints.restore_best(wanted).step == 1
    checkpoints.save(2, make_state(2), metrics={"accuracy": 0.5})
    assert checkpoints.restore_best(wanted).step == 2


def test_no_usable_checkpoint_left_is_an_error(tmp_path):
  save_steps(tmp_path, 1, 2)
  for step in ("1", "2"):
    data_files(tmp_path / step)[-1].unlink()
  with pytest.raises(CheckpointError, match="No usable checkpoint") as caught:
    restore(tmp_path)
  assert str(tmp_path / "1") in str(caught.value)
  assert str(tmp_path / "2") in str(caught.value)


def test_a_damaged_best_gives_way_to_the_next_best(tmp_path, caplog):
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    for step, accuracy in ((1, 0.9), (2, 0.1), (3, 0.2)):
      checkpoints.save(step, make_state(step), metrics={"accuracy": accuracy})
  data_files(tmp_path / "1" / "state")[0].unlink()
  with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
    assert checkpoints.restore_best(abstract(make_state(0))).step == 3
  assert str(tmp_path / "1") in caplog.text


def test_a_save_replaces_the_future_it_abandons(tmp_path):
  """Step 30 is damaged: the run goes on from 20 and saves 30 again."""
  save_steps(tmp_path, 10, 20, 30, keep_latest=3)
  data_files(tmp_path / "30")[0].unlink()
  assert restore(tmp_path, keep_latest=3).step == 20
  save_steps(tmp_path, 25, keep_latest=3)
  with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
    assert checkpoints.steps() == [10, 20, 25]


def test_another_state_is_refused_not_cast(tmp_path, caplog):
  save_steps(tmp_path, 1, 2)
  wanted = abstract(make_state(0))
  wanted.params["half"] = jax.ShapeDtypeStruct((16,), jnp.float32)
  wanted.params["embed"] = jax.ShapeDtypeStruct((65, 32), jnp.float32)
  wanted.params["new"] = jax.ShapeDtypeStruct((1,), jnp.float32)
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(CheckpointError, match="does not fit") as caught,
  ):
    checkpoints.restore_latest(wanted)
  message = str(caught.value)
  assert "params.half: was 'bfloat16[16]', is now 'float32[16]'" in message
  assert "params.embed: was 'float32[64,32]'" in message
  assert "params.new: was absent" in message
  assert "layers" not in message
  assert "Damaged" not in caplog.text  # Not a reason to try an older one.


def test_another_config_is_refused_by_field(tmp_path):
  config = {"seed": 1, "rl": {"credit": "min", "iterations": 10}}
  save_steps(tmp_path, 1, config=config)
  assert restore(tmp_path, config=config).step == 1
  assert restore(tmp_path).step == 1
  changed = {"seed": 1, "rl": {"credit": "sum", "iterations": 20}}
  with pytest.raises(CheckpointError) as caught:
    restore(tmp_path, config=changed, may_differ=["rl.iterations"])
  assert "rl.credit: was 'min', is now 'sum'" in str(caught.value)
  assert "iterations" not in str(caught.value)


def test_an_unwritable_folder_is_an_error_with_its_name(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(CheckpointError, match=r"Cannot write.*file/below"):
    Checkpoints(tmp_path / "file" / "below")


def test_a_state_that_is_not_arrays_is_refused(tmp_path):
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


def test_says_nothing_when_all_is_well(tmp_path, caplog, capfd):
  with caplog.at_level(logging.INFO):
    save_steps(tmp_path, 1, 2, 3)
    restore(tmp_path)
  assert not [r for r in caplog.records if r.name in ("absl", "pure_jax")]
  assert capfd.readouterr().err == ""


def test_the_record_is_readable_without_this_code(tmp_path):
  save_steps(tmp_path, 7, config={"seed": 3})
  record = json.loads((tmp_path / "7" / "record" / "metadata").read_text())
  assert record["config"] == {"seed": 3}
  assert record["extra"] == {"cursor": 70}
  assert record["leaves"]["params.embed"] == "float32[64,32]"
