"""Damaged files and full disks are noticed before they do harm."""

import errno
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.host.checkpoints import integrity
from pure_jax.host.checkpoints.checkpointer import CheckpointError, Checkpoints

DAMAGES = ["missing", "cut", "emptied", "flipped"]
# Orbax writes them after the checksums: times, which nothing reads.
STAMPS = ("_CHECKPOINT_METADATA", "commit_success.txt")


def make_state(seed):
  return {"w": jnp.arange(300.0) + seed, "half": jnp.ones(3, jnp.bfloat16)}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
  """A folder with steps 1 and 2, of which the second one is better."""
  folder = tmp_path_factory.mktemp("two") / "checkpoints"
  with Checkpoints(folder, best_metric="accuracy") as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(step), metrics={"accuracy": step / 4})
  return folder


@pytest.fixture
def folder(two_checkpoints, tmp_path):
  """A copy to damage."""
  return shutil.copytree(two_checkpoints, tmp_path / "checkpoints")


def checked_files(checkpoint):
  return sorted(
    path
    for path in checkpoint.rglob("*")
    if path.is_file() and path.name not in STAMPS
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


def restore(folder):
  """Restores the latest checkpoint, and checks its numbers."""
  with Checkpoints(folder) as checkpoints:
    restored = checkpoints.restore_latest(make_state(0))
  expected = make_state(restored.step)
  for name, array in restored.state.items():
    np.testing.assert_array_equal(array, expected[name])
  return restored


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damaged_file_is_noticed(folder, damage):
  """Orbax alone reads a flipped bit without an error."""
  checkpoint = folder / "2"
  assert integrity.find_damage(checkpoint) is None
  files = checked_files(checkpoint)
  assert len(files) > 5
  for file in files:
    content = file.read_bytes()
    damage_file(file, damage)
    message = integrity.find_damage(checkpoint)
    # A checksum with an altered digit looks as if its file were altered.
    assert file.name in message or (message and file.name.startswith("check"))
    file.write_bytes(content)
  assert integrity.find_damage(checkpoint) is None


BAD_JSON = {
  "deep": b"[" * 200_000,
  "empty": b"",
  "NUL": b"\0" * 9,
  "not UTF-8": b"\xff{",
  "list": b"[]",
  "null": b"null",
  "object": b"{}",
  "huge integer": b"1" * 5000,
  "text as metric": b'{"metrics": {"values": {"accuracy": "x"}}}',
  "list of metrics": b'{"metrics": {"values": ["accuracy"]}}',
  "NaN as metric": b'{"metrics": {"values": {"accuracy": NaN}}}',
  "folder": None,
}


@pytest.mark.parametrize("damage", BAD_JSON)
def test_any_json_is_damaged_and_the_one_before_restored(folder, damage):
  """Orbax would read the times of all steps, and raise for the whole folder."""
  names = ["checksums.json", "record/metadata", "state/_METADATA"]
  for name in [*names, "_CHECKPOINT_METADATA"]:
    file, content = folder / "2" / name, (folder / "2" / name).read_bytes()
    file.unlink()
    file.mkdir() if damage == "folder" else file.write_bytes(BAD_JSON[damage])
    # Nothing reads the times.
    assert restore(folder).step == (1 if name in names else 2)
    with Checkpoints(folder, best_metric="accuracy") as checkpoints:
      best = checkpoints.restore_best(make_state(0))
      assert best.step == (1 if name in names else 2)
    file.rmdir() if damage == "folder" else file.unlink()
    file.write_bytes(content)
  assert restore(folder).step == 2


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("item", ["state", "record"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
  folder, item, damage, caplog, capfd
):
  largest = max(
    checked_files(folder / "2" / item), key=lambda path: path.stat().st_size
  )
  damage_file(largest, damage)
  assert restore(folder).step == 1
  message = caplog.records[0].getMessage()
  assert str(folder / "2") in message and largest.name in message
  assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_with_a_damaged_record_stays_usable(folder, damage):
  """Its metrics are read before anything is checked."""
  damage_file(folder / "2" / "record" / "metadata", damage)
  with Checkpoints(folder, best_metric="accuracy") as checkpoints:
    assert checkpoints.restore_best(make_state(0)).step == 1
    checkpoints.save(2, make_state(2), metrics={"accuracy": 0.5})
    assert checkpoints.restore_best(make_state(0)).step == 2


def test_files_without_a_checksum_may_be_damaged(folder):
  # Orbax before 0.12.3 writes only the first one.
  stamps = [name for name in STAMPS if (folder / "2" / name).exists()]
  assert STAMPS[0] in stamps
  for name in stamps:
    content = (folder / "2" / name).read_bytes()
    for damage in DAMAGES:
      damage_file(folder / "2" / name, damage)
      assert restore(folder).step in (1, 2)
      (folder / "2" / name).write_bytes(content)
  assert restore(folder).step == 2


def test_a_checkpoint_without_checksums_is_damaged(folder, caplog):
  """They are written before the checkpoint appears under its step."""
  (folder / "2" / integrity.CHECKSUMS).unlink()
  assert restore(folder).step == 1
  assert "2: missing files: checksums.json" in caplog.text


@pytest.mark.parametrize("content", ["null", "[1]", "3", "{"])
def test_checksums_that_are_not_a_mapping_are_damage(folder, content):
  (folder / "2" / integrity.CHECKSUMS).write_text(content)
  damage = integrity.find_damage(folder / "2")
  assert damage == "altered files: checksums.json"


def test_missing_space_is_an_error_with_the_numbers(tmp_path):
  integrity.check_free_space(tmp_path, 1)
  with pytest.raises(
    OSError, match=r"1,000,000,000,000\.0 MB are needed"
  ) as no:
    integrity.check_free_space(tmp_path, 10**18)
  reason = integrity.disk_full_reason(no.value)
  assert reason.startswith("No space left on device: ")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_an_exceeded_quota_is_a_full_disk(number):
  """By its number, or by the system's message inside one of TensorStore."""
  assert integrity.disk_full_reason(OSError(number, "words")) == "words"
  system = str(OSError(number, os.strerror(number)))
  assert integrity.disk_full_reason(ValueError(f"Failed: {system} [file]"))
  other = OSError(errno.EIO, "Input/output error")
  assert integrity.disk_full_reason(other) is None


def test_a_folder_that_takes_no_file_is_an_error_before_orbax_saves(
  tmp_path, monkeypatch
):
  """Orbax's threads would wait ten minutes, at exit, for their files."""
  folder = tmp_path / "rl"
  with Checkpoints(folder) as checkpoints:
    folder.rmdir()
    folder.touch()  # Like a file system that has become read-only.

    def save(*args, **kwargs):
      raise AssertionError("Orbax began to save")

    monkeypatch.setattr(checkpoints._orbax, "save", save)
    message = "Not a directory.*can be created and written"
    with pytest.raises(CheckpointError, match=message):
      checkpoints.save(1, make_state(1))


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_fingerprint_of_what_is_no_file_does_not_wait(kind, tmp_path):
  path = tmp_path / "data.jsonl"
  if kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to("/dev/zero")
  with pytest.raises(OSError, match=f"not a regular file: '{path}'"):
    integrity.fingerprint(path)
  # Within a folder it does not count.
  nothing = tmp_path / "nothing"
  nothing.mkdir()
  assert integrity.fingerprint(tmp_path) == integrity.fingerprint(nothing)
