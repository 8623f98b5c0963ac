"""The tests can fail: each fault of `mutations.py` is caught by one of them."""

import ast
import dataclasses
import subprocess
import sys

import mutations
import pytest
from mutations import MUTATIONS, ROOT, MutationError


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_each_fault_can_still_be_put_in(mutation):
  """Code that was rewritten must not leave its mutation behind."""
  text = (ROOT / mutation.file).read_text()
  changed = mutations.mutated(text, mutation)
  assert changed != text
  ast.parse(changed)
  for test in mutation.tests:
    file, name = test.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in {getattr(node, "name", None) for node in tree.body}


def test_a_text_that_is_gone_or_ambiguous_is_an_error():
  mutation = dataclasses.replace(MUTATIONS[0], old="x = 1", new="x = 2")
  assert mutations.mutated("y\nx = 1\n", mutation) == "y\nx = 2\n"
  with pytest.raises(MutationError, match="occurs 0 times"):
    mutations.mutated("x = 3", mutation)
  with pytest.raises(MutationError, match="occurs 2 times"):
    mutations.mutated("x = 1\nx = 1", mutation)


@pytest.mark.slow
def test_a_harmless_change_is_reported_as_surviving():
  harmless = dataclasses.replace(
    MUTATIONS[0],
    old="jnp.where(step_mask, step_rewards, jnp.inf)",
    new="jnp.where(step_mask, step_rewards, float('inf'))",
  )
  with pytest.raises(MutationError, match="survives"):
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
  assert done.stdout.count("| `test_") == len(MUTATIONS)
