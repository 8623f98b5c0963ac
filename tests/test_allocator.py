"""Freed memory is kept: the kernel does not clear the same pages again."""

import subprocess
import sys

import pytest

# Page faults while 64 MiB are filled and freed ten times, after a first time.
FAULTS = """
import resource, sys
import numpy as np
from pure_jax.host import allocator

if sys.argv[1] == "keep" and not allocator.keep_freed_memory():
  print("not glibc")
  sys.exit()

def fill():
  block = np.empty(2**26, np.uint8)
  block[:] = 1

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
  fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
  """Page faults of a fresh process, or a skip where nothing is promised."""
  done = subprocess.run(
    [sys.executable, "-c", FAULTS, mode],
    capture_output=True,
    text=True,
    check=True,
  )
  if done.stdout.strip() == "not glibc":
    pytest.skip("the C library is not glibc")
  return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_freed_memory_is_not_cleared_by_the_kernel_again():
  kept = faults("keep")
  assert kept < 100
  assert faults("leave") > 10 * max(kept, 1)
