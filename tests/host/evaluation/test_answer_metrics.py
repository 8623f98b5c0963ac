"""pass@k, maj@k, best-of-k and the weighted vote, by enumerating subsets."""

import fractions
import itertools
import json
import math

import numpy as np
import pytest
import real_data

from pure_jax.host.evaluation.answer_metrics import (
  answer_ids,
  best_of_k,
  majority_at_k,
  pass_at_k,
  weighted_majority,
)

KINDS = ("pass", "majority", "best", "weighted")


def random_batch(seed, problems=25, responses=7, classes=4):
  """Responses with ties, without answers, or with a score of NaN, unscored."""
  rng = np.random.default_rng(seed)
  shape = (problems, responses)
  batch = {
    "correct": rng.random(shape) < 0.5,
    "ids": rng.integers(0, classes, shape),
    "has_answer": rng.random(shape) < rng.uniform(0.3, 1, (problems, 1)),
    # Few values, so that there are ties.
    "scores": rng.integers(0, 5, shape) / 4,
    "has_score": rng.random(shape) < rng.uniform(0.3, 1, (problems, 1)),
  }
  batch["has_answer"][2] = batch["has_score"][2] = False
  batch["scores"][~batch["has_score"]] = np.nan
  return batch


def compute(kind, batch, k):
  correct = batch["correct"]
  answers = (batch["ids"], batch["has_answer"])
  scores = (batch["scores"], batch["has_score"])
  match kind:
    case "pass":
      return pass_at_k(correct, k)
    case "majority":
      return majority_at_k(correct, *answers, k)
    case "best":
      return best_of_k(correct, *scores, k)
    case "weighted":
      return weighted_majority(correct, *answers, *scores)


def mean(numbers):
  numbers = list(numbers)
  return sum(numbers, fractions.Fraction(0)) / len(numbers)


def winners_share(responses, key):
  """Probability of a correct pick: a best key, then one of its responses."""
  if not responses:
    return fractions.Fraction(0)
  groups = {}
  for response in responses:
    groups.setdefault(response[key], []).append(response)
  strength = {name: sum(r["vote"] for r in g) for name, g in groups.items()}
  best = [n for n, s in strength.items() if s == max(strength.values())]
  return mean(mean(int(r["right"]) for r in groups[name]) for name in best)


def outcome(kind, drawn):
  """The value of a set of responses, by definition."""
  if kind == "pass":
    return fractions.Fraction(any(r["right"] for r in drawn))
  if kind == "majority":
    voters = [r | {"vote": 1} for r in drawn if r["answered"]]
    return winners_share(voters, "id")
  if kind == "weighted":
    voters = [
      r | {"vote": fractions.Fraction(r["score"])}
      for r in drawn
      if r["answered"] and r["scored"]
    ]
    return winners_share(voters, "id")
  scored = [r for r in drawn if r["scored"]]
  top = [r for r in scored if r["score"] == max(s["score"] for s in scored)]
  return mean(int(r["right"]) for r in top) if top else fractions.Fraction(0)


def over_all_subsets(kind, batch, row, k):
  """The mean outcome of the subsets of k responses."""
  responses = [
    {
      "right": bool(batch["correct"][row, c]),
      "id": int(batch["ids"][row, c]),
      "answered": bool(batch["has_answer"][row, c]),
      "score": float(batch["scores"][row, c]),
      "scored": bool(batch["has_score"][row, c]),
    }
    for c in range(batch["correct"].shape[1])
  ]
  size = len(responses) if kind == "weighted" else k
  return mean(
    outcome(kind, drawn) for drawn in itertools.combinations(responses, size)
  )


def assert_equals_enumeration(kind, batch, k):
  expected = [
    float(over_all_subsets(kind, batch, row, k))
    for row in range(len(batch["correct"]))
  ]
  np.testing.assert_allclose(compute(kind, batch, k), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", range(1, 8))
def test_each_metric_equals_the_mean_over_all_subsets(kind, k):
  """With ties, responses without answer or score, and equal answers that the
  grader graded differently.
  """
  assert_equals_enumeration(kind, random_batch(k), k)


@pytest.mark.parametrize("k", [2, 5, 8])
def test_majority_with_many_answers_and_with_one_equals_enumeration(k):
  """Up to k answers tie; a single answer wins every subset."""
  for classes in (1, 40):
    batch = random_batch(k, problems=4, responses=9, classes=classes)
    assert_equals_enumeration("majority", batch, k)


def test_metrics_of_real_responses_equal_enumeration():
  """Eight responses to each of 50 MATH problems, graded by the reference."""
  path = real_data.require("graders/math_cot_even.jsonl")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  ids, has_answer = answer_ids([row["reference_extracted"] for row in rows])
  scores = np.asarray([row["outcome_rm_score"] for row in rows])
  batch = {
    "correct": np.asarray([row["reference_correct"] for row in rows]),
    "ids": ids,
    "has_answer": has_answer,
    "scores": scores - scores.min(),  # Weights of votes, not logits.
    "has_score": np.ones_like(has_answer),
  }
  for kind, k in itertools.product(KINDS, (1, 3, 8)):
    assert_equals_enumeration(kind, batch, k)


def row(*values, dtype=None):
  return np.asarray([values], dtype)


ALL = np.ones((1, 4), bool)


def test_pass_at_k_draws_without_replacement():
  """One of four is right: 1/2 of the pairs contain it. With replacement it
  would be 1 - (3/4)² = 7/16.
  """
  correct = row(False, True, False, False)
  assert pass_at_k(correct, 2).tolist() == [0.5]
  assert pass_at_k(correct, 4).tolist() == [1.0]


def test_pass_at_k_is_certain_when_too_few_are_wrong():
  """Two are wrong, three are drawn; C(2, 3) is 0, not an error."""
  correct = row(True, True, False, False)
  assert pass_at_k(correct, 3).tolist() == [1.0]


def test_pass_at_k_of_a_thousand_responses():
  """C(1024, 512) is above 10³⁰⁶; its quotient is still (1024-512)/1024."""
  correct = np.arange(1024)[None] == 7
  assert pass_at_k(correct, 512).tolist() == [0.5]


def test_majority_of_a_thousand_responses():
  """Two classes of 700 and 500, an odd draw: the hypergeometric tail."""
  size, k = (700, 500), 41
  ids = np.repeat([0, 1], size)[None]
  result = majority_at_k(ids == 0, ids, np.ones_like(ids, bool), k)
  won = sum(math.comb(700, v) * math.comb(500, k - v) for v in range(21, k + 1))
  # Logarithms of numbers of a thousand digits.
  assert result[0] == pytest.approx(won / math.comb(1200, k), abs=1e-11)


def test_ties_of_the_majority_are_expectations():
  """A against B, B: of the pairs AB, AB, BB the first two are ties. Giving a
  tie to the first response or to the smallest id would give 2/3, counting it
  as wrong 0.
  """
  ids = row(0, 1, 1)
  result = majority_at_k(ids == 0, ids, np.ones((1, 3), bool), 2)
  assert result[0] == pytest.approx(1 / 3, abs=1e-12)


def test_a_response_without_answer_does_not_vote():
  """One right answer, three responses without one: "no answer" would win."""
  ids, has_answer = row(5, 0, 0, 0), row(True, False, False, False)
  result = majority_at_k(ids == 5, ids, has_answer, 4)
  assert result[0] == pytest.approx(1.0, abs=1e-12)
  # It is drawn all the same: three of the four draws of one have no answer.
  result = majority_at_k(ids == 5, ids, has_answer, 1)
  assert result[0] == pytest.approx(0.25, abs=1e-12)


def test_without_votes_or_scores_the_result_is_wrong():
  nothing = np.zeros((1, 4), bool)
  ids = row(0, 0, 0, 0)
  for result in (
    majority_at_k(~nothing, ids, nothing, 2),
    best_of_k(~nothing, ids, nothing, 2),
    weighted_majority(~nothing, ids, ALL, ids, nothing),
  ):
    assert result.tolist() == [0.0]


def test_ties_of_the_best_score_are_expectations():
  """Two of the three best are right; taking the first would give 0."""
  correct = row(False, True, True, True)
  scores = row(0.9, 0.9, 0.9, 0.1)
  result = best_of_k(correct, scores, ALL, 4)
  assert result[0] == pytest.approx(2 / 3, abs=1e-12)


def test_a_response_without_score_is_never_chosen():
  """Its score, say 0 for an empty response, is above all others here."""
  correct = row(True, False, False, False)
  scores = row(0.0, -0.3, -0.2, -0.1)
  has_score = row(False, True, True, True)
  result = best_of_k(correct, scores, has_score, 4)
  assert result.tolist() == [0.0]


def test_the_weights_of_equal_answers_add_up():
  """Twice 0.5 beats 0.9 once; the largest or the mean weight would not."""
  ids, weights = row(1, 0, 0, 2), row(0.9, 0.5, 0.5, 0.05)
  result = weighted_majority(ids == 0, ids, ALL, weights, ALL)
  assert result.tolist() == [1.0]


def test_summing_in_another_order_does_not_break_a_tie():
  """In floats, 0.2 + 0.7 + 0.1 in this order is below 0.1 + 0.7 + 0.2."""
  ids, weights = row(0, 0, 0, 1, 1, 1), row(0.2, 0.7, 0.1, 0.1, 0.7, 0.2)
  assert weights[0, :3].cumsum()[-1] < weights[0, 3:].cumsum()[-1]
  mask = np.ones((1, 6), bool)
  result = weighted_majority(ids == 0, ids, mask, weights, mask)
  assert result.tolist() == [0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_responses_has_no_effect(kind):
  batch = random_batch(4)
  order = np.random.default_rng(0).permutation(batch["correct"].shape[1])
  shuffled = {name: array[:, order] for name, array in batch.items()}
  for k in (1, 3):
    np.testing.assert_allclose(
      compute(kind, shuffled, k), compute(kind, batch, k), atol=1e-12
    )


def test_with_k_of_one_every_metric_is_the_average():
  batch = random_batch(0)
  batch["has_answer"][:] = batch["has_score"][:] = True
  batch["scores"] = np.nan_to_num(batch["scores"])
  for kind in ("pass", "majority", "best"):
    np.testing.assert_allclose(
      compute(kind, batch, 1), batch["correct"].mean(1), atol=1e-12
    )


def test_pass_at_n_is_whether_any_response_is_correct():
  correct = random_batch(9)["correct"]
  result = pass_at_k(correct, correct.shape[1])
  assert result.tolist() == correct.any(1).astype(float).tolist()


def test_equal_weights_give_the_majority():
  batch = random_batch(6)
  batch["has_score"][:] = True
  batch["scores"] = np.full_like(batch["scores"], 0.25)
  np.testing.assert_allclose(
    compute("weighted", batch, None), compute("majority", batch, 7), atol=1e-12
  )


def test_best_of_k_by_perfect_scores_is_pass_at_k():
  batch = random_batch(3)
  batch["has_score"][:] = True
  batch["scores"] = batch["correct"].astype(float)
  for k in (1, 2, 4):
    np.testing.assert_allclose(
      compute("best", batch, k), compute("pass", batch, k), atol=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_problems_have_no_values(kind):
  batch = {name: array[:0] for name, array in random_batch(0).items()}
  assert compute(kind, batch, 1).shape == (0,)


def test_answers_are_numbered_within_their_problem():
  ids, has_answer = answer_ids([["b", "a", None, "b"], [], ["a", "B"]])
  assert ids[0, [0, 1, 3]].tolist() == [0, 1, 0]
  assert ids[2, :2].tolist() == [0, 1]
  assert has_answer.tolist() == [
    [True, True, False, True],
    [False] * 4,
    [True, True, False, False],
  ]
  same, _ = answer_ids([["a", "A", "b"]], key=str.lower)
  assert same.tolist() == [[0, 0, 1]]
  ids, has_answer = answer_ids([])
  assert ids.shape == has_answer.shape == (0, 0)


def test_invalid_input_is_reported():
  ids, scores = row(0, 1, 1, 1), row(0.1, 0.2, np.inf, -0.4)
  with pytest.raises(ValueError, match="correct must be bool, not int64"):
    pass_at_k(ids, 1)
  with pytest.raises(ValueError, match=r"has_answer has shape \(1, 3\)"):
    majority_at_k(ALL, ids, ALL[:, :3], 1)
  with pytest.raises(ValueError, match=r"got 1 and \(4,\)"):
    pass_at_k(ALL[0], 1)
  for k in (0, 5):  # Four responses do not determine pass@5.
    with pytest.raises(ValueError, match="k must be at least 1"):
      pass_at_k(ALL, k)
  with pytest.raises(ValueError, match="problem 0, response 2 is inf"):
    best_of_k(ALL, scores, ALL, 1)
  scores = row(0.1, 0.2, 0.3, -0.4)
  with pytest.raises(ValueError, match=r"problem 0, response 3 is -0\.4"):
    weighted_majority(ALL, ids, ALL, scores, ALL)
