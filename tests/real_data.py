"""Real data to test against; a test without it is skipped, with the reason.

The folder is named by the environment variable PURE_SHARED_DATA, by default
`shared/data` beside the checkout. None of its files is part of the project.
"""

import os
import pathlib

import pytest

DEFAULT = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"


def require(name: str) -> pathlib.Path:
  """Path of a file of the folder; skips the test where it is missing."""
  path = pathlib.Path(os.environ.get("PURE_SHARED_DATA", DEFAULT)) / name
  if not path.exists():
    pytest.skip(f"{path} is missing (PURE_SHARED_DATA names its folder).")
  return path
