"""plan.py as a process, with four CPU devices of its own."""

import os
import subprocess
import sys

from checkout import EXPERIMENTS

CONFIGS = EXPERIMENTS / "configs"


def run(*options):
  """Runs it to its end, well or not."""
  return subprocess.run(
    [sys.executable, str(EXPERIMENTS / "plan.py"), *options],
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
  )
