"""Files of which a reader sees the old content or the new, never a part."""

import json
import os
import pathlib
from typing import Any


def write_json_atomic(path: str | os.PathLike, data: Any) -> None:
  """Writes strict JSON so that a reader sees the old file or the new one.

  Args:
    path: the file; its folder must exist.
    data: what `json` can represent, without NaN or infinity.

  Raises:
    TypeError: for a value JSON does not know.
    ValueError: for NaN or infinity.
  """
  text = json.dumps(data, indent=2, allow_nan=False) + "\n"
  write_text_atomic(path, text)


def write_text_atomic(path: str | os.PathLike, text: str) -> None:
  """Writes text so that a reader sees the old file or the new one.

  Args:
    path: the file; its folder must exist.
    text: the new content, written as UTF-8.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
