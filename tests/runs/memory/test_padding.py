"""Limits that no solution reaches cost no memory, and change no batch."""

import jax
import numpy as np
import pytest

from pure_jax.host.text.tokenization import PRMText
from pure_jax.runs.batches import take_rows
from pure_jax.runs.evaluation import labelled_solutions
from pure_jax.runs.evaluation.labelled_solutions import (
  EncodedSolution,
  SolutionLimits,
)

LENGTHS = ((10, 2), (9, 9), (2, 11), (2, 5))  # Ids of prompts and solutions.
WHOLE = [EncodedSolution([3] * n, [4] * m) for n, m in LENGTHS]
BY_STEP = [PRMText([3] * n, [[4] * m]) for n, m in LENGTHS]
NEAR = SolutionLimits(prompt_tokens=12, response_tokens=12, max_steps=2)
FAR = SolutionLimits(prompt_tokens=10**9, response_tokens=10**9, max_steps=2)


@pytest.mark.parametrize("multiple", [1, 4, 7, 100])
@pytest.mark.parametrize("texts", [WHOLE, BY_STEP], ids=["whole", "by step"])
def test_batches_are_those_of_texts_padded_to_the_limits(texts, multiple):
  padded = labelled_solutions.pad_solutions(texts, NEAR, 0)
  tight = labelled_solutions.pad_solutions(texts, NEAR, 0, multiple)
  for rows in ([0], [1, 2], [3], [0, 1, 2, 3]):
    expected, cropped = (
      labelled_solutions.crop(take_rows(x, np.asarray(rows)), multiple)
      for x in (padded, tight)
    )
    assert jax.tree.structure(expected) == jax.tree.structure(cropped)
    for x, y in zip(*map(jax.tree.leaves, (expected, cropped)), strict=True):
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("texts", [WHOLE, BY_STEP], ids=["whole", "by step"])
def test_a_billion_columns_are_not_made(texts):
  batch = labelled_solutions.pad_solutions(texts, FAR, 0, multiple=4)
  assert max(x.shape[1] for x in jax.tree.leaves(batch)) <= 20
  assert take_rows(batch, np.arange(2)).tokens.any()
