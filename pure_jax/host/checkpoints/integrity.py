"""Files of a checkpoint: free space, checksums, damage, fingerprints."""

import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

from pure_jax.host import json_text
from pure_jax.host.atomic_files import check_writable, write_json_atomic

CHECKSUMS = "checksums.json"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_full_reason(error: BaseException) -> str | None:
  """Returns the system's message if an error says that the disk is full.

  Args:
    error: error raised by a write. TensorStore quotes the system's message
      inside its own.

  >>> disk_full_reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file"))
  'No space left on device'
  """
  for number in _DISK_FULL:
    message = os.strerror(number)
    if isinstance(error, OSError) and error.errno == number:
      return error.strerror or message
    if message in str(error):
      return message
  return None


def check_free_space(folder: str | os.PathLike, num_bytes: int) -> None:
  """Raises before a write that would fail.

  Orbax's threads wait ten minutes for a file that cannot be created.

  Args:
    folder: to write to.
    num_bytes: how much will be written.

  Raises:
    OSError: if no file can be created, or less space is free.
  """
  check_writable(folder)
  free = shutil.disk_usage(folder).free
  if free < num_bytes:
    raise OSError(
      errno.ENOSPC,
      f"{os.strerror(errno.ENOSPC)}: {num_bytes / 1e6:,.1f} MB are needed, "
      f"{free / 1e6:,.1f} MB are free",
      os.fspath(folder),
    )


def write_checksums(
  folder: str | os.PathLike, exclude: Sequence[str] = ()
) -> None:
  """Writes the SHA-256 of every file below a folder to its `CHECKSUMS`.

  Args:
    folder: the folder, complete.
    exclude: relative names of files that may still change.
  """
  folder = pathlib.Path(folder)
  digests = {
    name: digest
    for name, digest in _checksums(folder).items()
    if name not in exclude
  }
  write_json_atomic(folder / CHECKSUMS, digests)


def find_damage(folder: str | os.PathLike) -> str | None:
  """Compares the files of a folder with its checksums.

  Args:
    folder: the folder.

  Returns:
    A text that names the missing or altered files, including the checksums
    themselves; None if all files are as written. Added files are no damage.
  """
  folder = pathlib.Path(folder)
  try:
    expected = json_text.parse((folder / CHECKSUMS).read_bytes())
  except (FileNotFoundError, IsADirectoryError):
    return f"missing files: {CHECKSUMS}"
  except ValueError:
    expected = None
  # An empty record would accept any files.
  if not isinstance(expected, dict) or not expected:
    return f"altered files: {CHECKSUMS}"
  actual = _checksums(folder)
  missing = sorted(expected.keys() - actual.keys())
  if missing:
    return f"missing files: {', '.join(missing)}"
  altered = sorted(name for name in expected if expected[name] != actual[name])
  if altered:
    return f"altered files: {', '.join(altered)}"
  return None


def fingerprint(
  path: str | os.PathLike, suffixes: Sequence[str] = (), *, deep: bool = False
) -> str:
  """The SHA-256 of a file, or of names and contents of a folder's files.

  Args:
    path: a file, or a folder.
    suffixes: suffixes of the files of a folder that count, such as ".json";
      empty means all files.
    deep: whether files in the subfolders of a folder count.

  Raises:
    OSError: if the file or folder does not exist, is neither (a pipe, a
      device), or cannot be read.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    if path.exists() and not path.is_file():
      # Opening a pipe waits for a writer, and some devices never end.
      raise OSError(errno.EINVAL, "not a regular file", str(path))
    return _sha256(path)
  digest = hashlib.sha256()
  for name, file in _files(path, deep=deep):
    if not suffixes or file.suffix in suffixes:
      digest.update(json.dumps([name, _sha256(file)]).encode())
  return digest.hexdigest()


def _files(
  folder: pathlib.Path, *, deep: bool
) -> Iterator[tuple[str, pathlib.Path]]:
  """Yields relative names and paths of a folder's files, sorted."""
  for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
    if path.is_file():
      yield path.relative_to(folder).as_posix(), path


def _checksums(folder: pathlib.Path) -> dict[str, str]:
  """Returns SHA-256 by relative name, of all files but the checksums."""
  return {
    name: _sha256(path)
    for name, path in _files(folder, deep=True)
    if path.name != CHECKSUMS
  }


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
