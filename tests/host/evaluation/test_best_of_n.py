"""Best-of-n of a PRM among given solutions, computed by hand."""

import numpy as np
import pytest

from pure_jax.host.evaluation.prm_metrics import best_of_n_metrics

# Three solutions of each of two problems, interleaved; a third problem has
# two. Masked steps hold rewards that would win or lose every comparison.
PROBLEMS = ["a", "b", "a", "c", "b", "a", "b", "c"]
CORRECT = [True, False, False, True, False, False, True, True]
ANSWERS = ["4", "7", "5", "1", "7", "5", "9", "1"]
REWARDS = np.array(
  [
    [0.6, 0.2, 9.0],  # a, right: minimum .6, last .6, product .48.
    [0.9, -0.8, 0.8],  # b, wrong: minimum .1, last .9, product .0855.
    [0.0, 0.8, 9.0],  # a, wrong: minimum .5, last .9, product .45.
    [1.0, 1.0, 1.0],
    [0.4, -9.0, -9.0],  # b, wrong: minimum .7, last .7, product .7.
    [0.2, 0.2, 0.2],  # a, wrong: minimum .6, last .6, product .216.
    [0.8, 0.6, 0.4],  # b, right: minimum .7, last .7, product .504.
    [1.0, 1.0, 1.0],
  ]
)
LENGTHS = np.array([2, 3, 2, 3, 1, 3, 3, 3])
MASK = np.arange(3) < LENGTHS[:, None]


def metrics():
  return best_of_n_metrics(PROBLEMS, CORRECT, ANSWERS, REWARDS, MASK)


@pytest.mark.parametrize(
  ("metric", "a", "b"),
  [
    ("mean_of_3", 1 / 3, 1 / 3),
    # 5 and 5 outvote 4; 7 and 7 outvote 9.
    ("majority_of_3", 0.0, 0.0),
    # The right solution shares the best minimum with a wrong one: a half.
    ("best_of_3_minimum", 0.5, 0.5),
    # Reading masked columns, 9.0 or -9.0, would raise.
    ("best_of_3_last", 0.0, 0.0),
    ("best_of_3_product", 1.0, 0.0),
    # a: (.8 + .6)/2 = .7 ties with (.5 + .9)/2 = .7; b: .8 is the best.
    ("best_of_3_mean", 0.5, 1.0),
  ],
)
def test_each_metric_by_hand(metric, a, b):
  values = metrics()[metric]
  # c has two solutions: with it there would be three problems.
  np.testing.assert_allclose(values, [a, b], rtol=1e-12)


def test_the_order_of_rows_has_no_effect():
  order = [6, 2, 7, 4, 0, 3, 5, 1]
  shuffled = best_of_n_metrics(
    [PROBLEMS[i] for i in order],
    [CORRECT[i] for i in order],
    [ANSWERS[i] for i in order],
    REWARDS[order],
    MASK[order],
  )
  for name, values in metrics().items():
    # b comes first now.
    np.testing.assert_allclose(shuffled[name], values[::-1])


def test_solutions_of_unknown_outcome_are_ignored():
  """Counted as wrong, the pair would have a mean of a half."""
  rewards, mask = np.ones((3, 1)), np.ones((3, 1), bool)
  values = best_of_n_metrics(
    ["a", "a", "a"], [True, None, True], ["1", "2", None], rewards, mask
  )
  assert values["mean_of_2"].tolist() == [1.0]
  # One vote, for 1; a solution without an answer does not vote.
  assert values["majority_of_2"] == pytest.approx([1.0])


def test_without_several_solutions_of_a_problem_there_are_no_metrics():
  rewards, mask = np.ones((2, 1)), np.ones((2, 1), bool)
  assert best_of_n_metrics([], [], [], rewards[:0], mask[:0]) == {}
  alone = best_of_n_metrics(
    ["a", "b"], [True, False], ["1", "2"], rewards, mask
  )
  assert alone == {}
  with pytest.raises(ValueError, match="2 problems, 1 outcomes"):
    best_of_n_metrics(["a", "b"], [True], ["1", "2"], rewards, mask)
