"""The allocator reuses freed memory, so the kernel clears no pages again."""

import subprocess
import sys

import pytest
from checkout import EXPERIMENTS

# Page faults while 64 MiB are filled and freed ten times, after a first time.
FAULTS = """
import resource, sys
import numpy as np
from pure_jax.runs import allocator

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

# Page faults of ten calls with a temporary buffer of 64 MiB, within a run.
FAULTS_OF_A_RUN = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion as config_conversion
import jax
import jax.numpy as jnp
from configs import arithmetic
from pure_jax.runs import allocator

settings = config_conversion.settings_from_config(
  arithmetic.get_config("smoke")
)
with open_run(settings, sys.argv[1]):
  if not allocator.keep_freed_memory():
    print("not glibc")
    sys.exit()
  largest = jax.jit(lambda x: jnp.max(x @ x.T))
  x = jnp.ones((4096, 16))
  largest(x).block_until_ready()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(10):
    largest(x).block_until_ready()
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments, script=FAULTS):
  """Page faults of a fresh process; skips without glibc."""
  done = subprocess.run(
    [sys.executable, "-c", script, *arguments],
    capture_output=True,
    text=True,
    check=True,
  )
  if done.stdout.strip() == "not glibc":
    pytest.skip("the C library is not glibc")
  return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_freed_memory_is_reused_without_page_faults():
  reusing = faults("keep")
  assert reusing < 100
  assert faults("leave") > 10 * max(reusing, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_a_run_of_the_world_reuses_the_buffers_of_compiled_functions(tmp_path):
  """Set after jax has started its threads, it would not affect them."""
  count = faults(
    str(tmp_path / "run"), str(EXPERIMENTS), script=FAULTS_OF_A_RUN
  )
  # Every call would fault its 16,384 pages. Another thread's block may take the
  # place of a buffer now and then, and the heap grows by one.
  assert count < 5 * 16_384
