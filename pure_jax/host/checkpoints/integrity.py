"""Whether the files of a folder are still those that were written."""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

from pure_jax.host.atomic_files import write_json_atomic

CHECKSUMS = "checksums.json"


def write(folder: str | os.PathLike, without: Sequence[str] = ()) -> None:
  """Lists the SHA-256 of every file below a folder, in `CHECKSUMS` there.

  Args:
    folder: the folder, complete.
    without: names of files that may still change.
  """
  folder = pathlib.Path(folder)
  digests = {
    name: digest
    for name, digest in _digests(folder).items()
    if name not in without
  }
  write_json_atomic(folder / CHECKSUMS, digests)


def fingerprint(
  path: str | os.PathLike, suffixes: Sequence[str] = (), *, deep: bool = False
) -> str:
  """A name for the contents of a file or a folder.

  Args:
    path: a file, or a folder.
    suffixes: of a folder, which files count, such as ".json"; none are all.
    deep: of a folder, whether files of the folders in it count.

  Returns:
    SHA-256, 64 hexadecimal digits; for a folder, of names and contents.

  Raises:
    OSError: if there is no such file or folder, or it cannot be read.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return _digest(path)
  whole = hashlib.sha256()
  for file in sorted(path.rglob("*") if deep else path.iterdir()):
    if file.is_file() and (not suffixes or file.suffix in suffixes):
      name = file.relative_to(path).as_posix()
      whole.update(json.dumps([name, _digest(file)]).encode())
  return whole.hexdigest()


def damage(folder: str | os.PathLike) -> str | None:
  """What became of the files since `write`.

  Args:
    folder: the folder.

  Returns:
    Which files are missing or altered, as text, the list of them included;
    None where all are as they were. Files added since are no damage.
  """
  folder = pathlib.Path(folder)
  try:
    expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
  except FileNotFoundError:
    return f"missing files: {CHECKSUMS}"
  except ValueError:
    expected = None
  if not isinstance(expected, dict):
    return f"altered files: {CHECKSUMS}"
  actual = _digests(folder)
  missing = sorted(expected.keys() - actual.keys())
  if missing:
    return f"missing files: {', '.join(missing)}"
  altered = sorted(name for name in expected if expected[name] != actual[name])
  if altered:
    return f"altered files: {', '.join(altered)}"
  return None


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 by relative name, without the list itself."""
  digests = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file() and path.name != CHECKSUMS:
      digests[path.relative_to(folder).as_posix()] = _digest(path)
  return digests


def _digest(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
