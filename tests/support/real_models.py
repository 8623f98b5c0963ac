"""Real models. A test that needs one is skipped if it is missing.

The environment variable PURE_REAL_MODELS names a folder of GGUF files and of
folders that `experiments/unpack_gguf.py` wrote; its docstring says where a
small model comes from. The files are not part of the project.
"""

import os
import pathlib

import pytest

VARIABLE = "PURE_REAL_MODELS"
SMOLLM2 = "smollm2"


def require(path: str) -> pathlib.Path:
  """Returns a file or folder of the models, or skips the test without it."""
  root = os.environ.get(VARIABLE)
  if root is None:
    pytest.skip(f"{VARIABLE} names no folder of models.")
  if not (pathlib.Path(root) / path).exists():
    pytest.skip(f"{VARIABLE}={root} has no {path}.")
  return pathlib.Path(root) / path


def names(pattern: str) -> list[str]:
  """Paths of models to parametrise tests with; without any, the pattern."""
  root = pathlib.Path(os.environ.get(VARIABLE, os.devnull))
  paths = sorted(path.relative_to(root) for path in root.glob(pattern))
  return [str(path) for path in paths] or [pattern]
