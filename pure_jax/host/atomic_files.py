"""Files that are replaced atomically: a reader sees the old or the new one."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from pure_jax.host import json_text


@contextlib.contextmanager
def replace_atomic(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a temporary file that replaces another one when it is complete.

  Args:
    path: the file to replace or create; its folder must exist.

  Yields:
    The temporary file, for writing. If the enclosed code raises, it is
    removed, and `path` stays as it was.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | os.PathLike, text: str) -> None:
  """Replaces a text file.

  Args:
    path: the file; its folder must exist.
    text: the new content, written as UTF-8; half of a surrogate pair, as the
      name of a file may have, as its escape sequence.
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
