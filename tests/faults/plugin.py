"""Plants the fault that PURE_JAX_FAULT holds before tests are collected.

`tests/mutations.py` starts pytest with this plugin.
"""

import json
import os

import faults


def pytest_sessionstart():
  """Runs after conftest.py has set jax up."""
  faults.plant(faults.Fault(**json.loads(os.environ["PURE_JAX_FAULT"])))
