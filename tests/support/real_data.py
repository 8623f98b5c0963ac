"""Files of real data. A test that needs one is skipped if it is missing.

The environment variable PURE_SHARED_DATA names their folder, by default
`shared/data` next to the checkout. The files are not part of the project.
"""

import os
import pathlib

import pytest
from checkout import ROOT

DEFAULT = ROOT.parent / "shared" / "data"


def require(name: str) -> pathlib.Path:
  """Returns the path of a file, or skips the test if the file is missing."""
  path = pathlib.Path(os.environ.get("PURE_SHARED_DATA", DEFAULT)) / name
  if not path.exists():
    pytest.skip(f"{path} is missing (PURE_SHARED_DATA names its folder).")
  return path
