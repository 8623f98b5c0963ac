"""Faults can be planted, and each one is caught by a test."""

import ast
import dataclasses
import inspect
import subprocess
import sys
import textwrap

import faults
import mutations
import pytest
from checkout import ROOT
from faults.tables import FAULTS

FAULT = faults.Fault("an example", "credit:min_returns", "x = 1", "x = 2", ())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_can_still_be_planted(fault):
  """A fault has to follow the code when the code is rewritten."""
  source = textwrap.dedent(inspect.getsource(faults._find_function(fault)))
  changed = faults.faulty_source(fault, source)
  assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
  for test in fault.tests:
    file, name = mutations.node_id(test).split("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in {getattr(node, "name", None) for node in tree.body}


def test_names_of_faults_are_unique():
  assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_piece_of_source_is_compared_without_its_layout():
  source = "def f():\n  y = 0\n  x  =  (  # Why.\n    1)\n"
  fault = dataclasses.replace(FAULT, old="x = (1)", new="x = 2")
  assert faults.faulty_source(fault, source) == "def f():\n  y = 0\n  x = 2\n"
  with pytest.raises(faults.FaultError, match="occurs 0 times"):
    faults.faulty_source(FAULT, source)
  with pytest.raises(faults.FaultError, match="occurs 2 times"):
    faults.faulty_source(FAULT, "def f():\n  x = 1\n  x = 1\n")


def test_a_missing_function_raises():
  missing = dataclasses.replace(FAULT, function="credit:no_returns")
  with pytest.raises(faults.FaultError, match="there is no credit:no_returns"):
    faults.plant(missing)


@pytest.mark.slow
def test_a_harmless_change_is_reported_as_surviving():
  first = FAULTS[0]
  harmless = dataclasses.replace(first, new=first.old.replace("inf", "inf + 0"))
  with pytest.raises(faults.FaultError, match="survives"):
    mutations.caught_by(harmless)


@pytest.mark.slow
def test_every_fault_is_caught():
  done = subprocess.run(
    [sys.executable, mutations.__file__],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("| `test_") == len(FAULTS)
