"""Plugin of pytest that plants the fault in PURE_JAX_FAULT.

`tests/mutations.py` starts pytest with it.
"""

import json
import os

import faults


def pytest_sessionstart():
  """Plants it before tests are collected, after conftest.py configured jax."""
  faults.plant(faults.Fault(**json.loads(os.environ["PURE_JAX_FAULT"])))
