"""The timing times one and the same update."""

import re
import subprocess
import sys

import pytest
from checkout import EXPERIMENTS

SCRIPT = EXPERIMENTS / "time_packing.py"


@pytest.mark.slow
def test_the_three_ways_have_one_gradient():
  flags = ["--texts=16", "--longest=64", "--repeats=1", "--width=16"]
  done = subprocess.run(
    [sys.executable, SCRIPT, *flags], capture_output=True, text=True, check=True
  )
  fills = re.findall(r"row fill ([\d.]+)", done.stdout)
  gradients = re.findall(r"\|gradient\| ([\d.]+)", done.stdout)
  assert len(gradients) == 3 and len({*gradients}) == 1, done.stdout
  own, shorter, packed = map(float, fills)
  assert own < shorter < packed
