"""Files and folders that appear when they are complete, or not at all.

Until then they have a temporary name in the same folder, with the id of the
process that writes them and a number for its machine:
``.config.json.4711.1a2b3c4d.pure_jax.tmp``. A killed process leaves its
temporary files behind.
"""

import contextlib
import os
import pathlib
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from pure_jax.host import json_text

# Several machines, or containers, may share a folder.
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_SUFFIX = f".{_MACHINE}.pure_jax.tmp"
_TEMPORARY = re.compile(
  r"\.(.+)\.([1-9][0-9]{0,8})\.([0-9a-f]{8})\.pure_jax\.tmp"
)
_ELSEWHERE_SECONDS = 24 * 3600  # What nobody writes to for a day is left over.


@contextlib.contextmanager
def replace_atomic(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a temporary file that replaces another one when it is complete.

  Args:
    path: the file to replace or create; its folder must exist. Its temporary
      files of killed processes are removed.

  Yields:
    The temporary file, for writing. If the enclosed code raises, it is
    removed, and `path` stays as it was.
  """
  path = pathlib.Path(path)
  temporary = _temporary(path)
  try:
    with temporary.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  except OSError as error:
    if error.filename == str(temporary):
      error.filename = str(path)  # The user knows no other name.
    raise
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def create_folder_atomic(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Makes a temporary folder that gets its name when it is complete.

  Args:
    path: the new folder, which must be empty if it exists; parents are
      created. Its temporary folders of killed processes are removed.

  Yields:
    The temporary folder. If the enclosed code raises, it is removed.
  """
  path = pathlib.Path(path).absolute()
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = _temporary(path)
  temporary.mkdir()
  try:
    yield temporary
    temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def write_text_atomic(path: str | os.PathLike, text: str) -> None:
  """Replaces a text file.

  Args:
    path: the file; its folder must exist.
    text: the new content, written as UTF-8. A lone surrogate, as names of
      files may have, is written as its escape sequence.
  """
  with replace_atomic(path) as file:
    file.write(text.encode("utf-8", "backslashreplace"))


def write_json_atomic(path: str | os.PathLike, data: Any) -> None:
  """Replaces a file of strict JSON; a number that is not finite is null.

  Args:
    path: the file; its folder must exist.
    data: as `json_text.to_json` takes it.

  Raises:
    TypeError: for a value that JSON does not know.
  """
  write_text_atomic(path, json_text.dump(data, indent=2) + "\n")


def check_writable(folder: str | os.PathLike) -> None:
  """Raises an OSError unless a file can be created in a folder.

  Args:
    folder: the folder.
  """
  # On systems without unnamed files it has this name for a moment.
  suffix = f".{os.getpid()}{_SUFFIX}"
  with tempfile.TemporaryFile(dir=folder, prefix=".check.", suffix=suffix):
    pass


def is_left_over(path: pathlib.Path) -> bool:
  """Whether a file or folder is temporary and its writer has ended.

  Whether a process of another machine runs is not known here: what it writes
  counts as left over a day after the last change.

  Args:
    path: the file or folder. One of this process counts as left over, so do
      not pass what is being written.
  """
  match = _TEMPORARY.fullmatch(path.name)
  if match is None:
    return False
  if match[3] != _MACHINE:
    return _unchanged_seconds(path) > _ELSEWHERE_SECONDS
  pid = int(match[2])
  return pid == os.getpid() or not _is_running(pid)


def remove(path: pathlib.Path) -> None:
  """Removes a file or a folder with its contents, as far as that is possible.

  Args:
    path: the file or folder. A link is removed, not what it points to.
  """
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      path.unlink()


def _temporary(path: pathlib.Path) -> pathlib.Path:
  """Returns the temporary name of a path, after removing those left over."""
  with contextlib.suppress(OSError):  # The folder cannot be listed.
    for name in os.listdir(path.parent):
      other = path.with_name(name)
      if _completed_name(name) == path.name and is_left_over(other):
        remove(other)
  return path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")


def _completed_name(name: str) -> str:
  """Returns the name that a temporary file or folder gets when complete.

  That of a temporary folder may be a temporary name itself.
  """
  while match := _TEMPORARY.fullmatch(name):
    name = match[1]
  return name


def _unchanged_seconds(path: pathlib.Path) -> float:
  """How long nothing of a file or folder has changed; 0 if it is gone."""
  try:
    changes = [child.lstat().st_mtime for child in (path, *path.rglob("*"))]
  except OSError:
    return 0.0
  return time.time() - max(changes)


def _is_running(pid: int) -> bool:
  """Whether this machine has a process with an id."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except OSError:  # The process is another user's.
    return True
  return True
