"""The TPU compiler accepts the kernels, where libtpu is installed.

Nothing runs here: values are tested on a CPU, by interpreting the kernels.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from checkout import EXPERIMENTS, ROOT, SUPPORT

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs the TPU compiler: pip install '.[plan]'",
)


def compile_kernels(topology, which):
  """Kernels in each program by name, or the error; in a process of its own."""
  path = [EXPERIMENTS, SUPPORT, ROOT]
  path += filter(None, [os.environ.get("PYTHONPATH")])
  done = subprocess.run(
    [sys.executable, SUPPORT / "kernels_for_tpu.py", topology, which],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))},
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def assert_all_compiled(results):
  """One kernel for decoding, and three for a value with two gradients."""
  kernels = {"decode": 1, "splash": 3, "logp": 3}
  assert {name.split()[0] for name in results} == kernels.keys()
  assert results == {name: kernels[name.split()[0]] for name in results}


@needs_libtpu
def test_unaligned_sizes_compile_for_a_tpu():
  assert_all_compiled(compile_kernels("v5e:2x2", "odd"))


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_a_7b_model_compiles_for_a_tpu(topology):
  """Tiles of 3,584 wide states fit into the memory of a core."""
  assert_all_compiled(compile_kernels(topology, "7B"))
