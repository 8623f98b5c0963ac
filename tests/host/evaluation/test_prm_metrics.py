"""ProcessBench, single steps and calibration, against loops."""

import numpy as np
import pytest

from pure_jax.host.evaluation.intervals import (
  Bootstrap,
  Statistic,
  estimate_statistic,
)
from pure_jax.host.evaluation.prm_metrics import (
  FirstErrors,
  accuracy,
  auc,
  balanced_accuracy,
  calibration_error,
  choose_threshold,
  labelled_errors,
  predicted_errors,
  process_bench,
  step_metrics,
)


def random_items(seed, items=60, steps=6):
  """Rewards on a coarse grid (for ties), a mask, and ProcessBench labels.

  Rewards correlate with the labels; masked entries are NaN.
  """
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, steps + 1, items)
  labels = np.where(rng.random(items) < 0.4, -1, rng.integers(0, lengths))
  mask = np.arange(steps) < lengths[:, None]
  level = np.where(np.arange(steps) == labels[:, None], -0.3, 0.3)
  rewards = np.round(np.clip(rng.normal(level, 0.5), -1, 1) * 10) / 10
  return np.where(mask, rewards, np.nan), mask, labels


def first_error(rewards, threshold):
  for index, reward in enumerate(rewards):
    if not reward > threshold:
      return index
  return -1


def benchmark(predictions, labels):
  """The three metrics by a loop over the items."""
  hits = {True: [], False: []}
  for prediction, label in zip(predictions, labels, strict=True):
    hits[label == -1].append(prediction == label)
  error = sum(hits[False]) / len(hits[False])
  correct = sum(hits[True]) / len(hits[True])
  f1 = 2 * error * correct / (error + correct) if error + correct else 0.0
  return {"error_accuracy": error, "correct_accuracy": correct, "f1": f1}


def predictions_of(rewards, mask, threshold):
  return [
    first_error(row[exists], threshold)
    for row, exists in zip(rewards, mask, strict=True)
  ]


# ===== ProcessBench =====


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.2])
def test_first_errors_agree_with_a_loop(threshold):
  rewards, mask, _ = random_items(0)
  predicted = predicted_errors(rewards, mask, threshold)
  expected = np.asarray(predictions_of(rewards, mask, threshold))
  np.testing.assert_array_equal(predicted.has_error, expected >= 0)
  np.testing.assert_array_equal(predicted.index, np.maximum(expected, 0))
  assert predicted.has_error.any() and not predicted.has_error.all()


def test_the_first_error_is_the_first_of_several():
  """Step 1 and step 3 are bad; the worst is step 3, the last one step 3."""
  rewards = np.array([[0.9, -0.1, 0.5, -0.9]])
  predicted = predicted_errors(rewards, np.ones((1, 4), bool))
  assert predicted.index.tolist() == [1]
  assert predicted.has_error.tolist() == [True]


def test_a_wrong_first_step_differs_from_no_wrong_step():
  """Both have index 0 and differ in `has_error`."""
  mask = np.array([[True], [True], [False]])
  predicted = predicted_errors(np.array([[-0.5], [0.5], [-0.5]]), mask)
  assert predicted.index.tolist() == [0, 0, 0]
  assert predicted.has_error.tolist() == [True, False, False]
  labelled = labelled_errors(np.array([-1, 0, -1]))
  assert labelled.has_error.tolist() == [False, True, False]
  # Compared by index alone all three would be right.
  assert process_bench(predicted, labelled) == {
    "error_accuracy": 0.0,
    "correct_accuracy": 0.5,
    "f1": 0.0,
  }


def test_a_reward_at_the_threshold_is_not_good():
  """Such as a reward of 0, where the two classes are equally likely."""
  rewards, mask = np.array([[0.25, 0.0]]), np.ones((1, 2), bool)
  assert predicted_errors(rewards, mask).index.tolist() == [1]
  assert predicted_errors(rewards, mask, 0.25).index.tolist() == [0]
  assert not predicted_errors(rewards, mask, -0.01).has_error.any()


@pytest.mark.parametrize("seed", range(4))
def test_process_bench_agrees_with_a_loop(seed):
  rewards, mask, labels = random_items(seed)
  metrics = process_bench(
    predicted_errors(rewards, mask), labelled_errors(labels)
  )
  expected = benchmark(predictions_of(rewards, mask, 0.0), labels)
  assert metrics == pytest.approx(expected, abs=1e-12)


def test_the_index_must_match_and_the_mean_is_harmonic():
  """Of four erroneous items one error is predicted at its step and two at
  others: .25, not the .75 of predicting any error. Of two correct items one is
  predicted correct: .5. The harmonic mean is 1/3; the arithmetic would be .375.
  """
  predicted = labelled_errors(np.array([2, 1, 0, -1, -1, 3]))
  labelled = labelled_errors(np.array([2, 2, 1, 0, -1, -1]))
  assert process_bench(predicted, labelled) == pytest.approx(
    {"error_accuracy": 0.25, "correct_accuracy": 0.5, "f1": 1 / 3}, abs=1e-12
  )


def test_predicting_the_labels_scores_1_and_predicting_no_error_scores_0():
  labelled = labelled_errors(np.array([0, 3, -1, 1, -1]))
  assert process_bench(labelled, labelled) == {
    "error_accuracy": 1.0,
    "correct_accuracy": 1.0,
    "f1": 1.0,
  }
  never = labelled_errors(np.full(5, -1))
  assert process_bench(never, labelled) == {
    "error_accuracy": 0.0,
    "correct_accuracy": 1.0,
    "f1": 0.0,
  }


def test_an_accuracy_over_no_items_is_absent():
  some = labelled_errors(np.array([0, 1]))
  none = labelled_errors(np.array([-1, -1]))
  assert process_bench(some, some) == {"error_accuracy": 1.0}
  assert process_bench(none, none) == {"correct_accuracy": 1.0}
  nothing = labelled_errors(np.array([], np.int64))
  assert process_bench(nothing, nothing) == {}
  both = labelled_errors(np.array([1, -1]))
  assert (
    process_bench(some, both)["f1"] == 0.0
  )  # Both accuracies are 0: not 0 / 0.


@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_threshold_is_the_best_of_a_fine_grid(seed):
  rewards, mask, labels = random_items(seed)
  chosen = choose_threshold(rewards, mask, labelled_errors(labels))
  f1 = {
    t: benchmark(predictions_of(rewards, mask, t), labels)["f1"]
    for t in np.arange(-105, 106) / 100  # Rewards are multiples of 0.1.
  }
  best = max(f1.values())
  assert best > max(f1[0.0], 0.1)  # The choice matters.
  reached = benchmark(predictions_of(rewards, mask, chosen), labels)["f1"]
  assert reached == pytest.approx(best, abs=1e-12)
  # The lowest of the best, up to its position between two scores.
  lowest = min(t for t, value in f1.items() if value == best)
  assert lowest <= chosen <= lowest + 0.1


def test_the_threshold_lies_halfway_between_two_scores():
  """.2 and .6 separate good from bad; a threshold at .2 or at .6 would be
  sensitive to small changes of a score.
  """
  rewards = np.array([[0.9, 0.2], [0.9, 0.6]])
  labelled = labelled_errors(np.array([1, -1]))
  threshold = choose_threshold(rewards, np.ones((2, 2), bool), labelled)
  assert threshold == pytest.approx(0.4, abs=1e-12)


def test_the_threshold_follows_the_scale_of_the_scores():
  """Scores of another PRM, such as logits, choose the same items."""
  rewards, mask, labels = random_items(2)
  labelled = labelled_errors(labels)
  chosen = choose_threshold(rewards, mask, labelled)
  logits = 30 * rewards + 5
  other = choose_threshold(logits, mask, labelled)
  assert other == pytest.approx(30 * chosen + 5, abs=1e-9)


def test_without_f1_there_is_no_threshold():
  rewards, mask = np.array([[0.1, 0.5]] * 2), np.ones((2, 2), bool)
  some, none = labelled_errors(np.array([0, 1])), labelled_errors([-1, -1])
  both = labelled_errors(np.array([0, -1]))
  assert choose_threshold(rewards, mask, some) is None
  assert choose_threshold(rewards, mask, none) is None
  assert choose_threshold(np.zeros((2, 2)), mask, both) is None
  assert choose_threshold(rewards, ~mask, both) is None
  assert choose_threshold(rewards, mask, both) == pytest.approx(0.3)


def test_masked_steps_have_no_effect():
  rewards, mask, labels = random_items(5)
  labelled = labelled_errors(labels)
  wider = np.concatenate([rewards, np.full((60, 2), -1.0)], 1)
  wider_mask = np.concatenate([mask, np.zeros((60, 2), bool)], 1)
  predicted = predicted_errors(wider, wider_mask)
  expected = predicted_errors(rewards, mask)
  np.testing.assert_array_equal(predicted.index, expected.index)
  np.testing.assert_array_equal(predicted.has_error, expected.has_error)
  assert choose_threshold(wider, wider_mask, labelled) == choose_threshold(
    rewards, mask, labelled
  )
  for function in (accuracy, balanced_accuracy, auc, calibration_error):
    good = np.arange(mask.shape[1]) != labels[:, None]
    wider_good = np.concatenate([good, np.ones((60, 2), bool)], 1)
    assert function(wider, wider_good, wider_mask) == pytest.approx(
      function(rewards, good, mask), abs=1e-12
    )


def test_f1_has_a_bootstrap_interval():
  """Items are drawn, their predictions and labels with them."""
  rewards, mask, labels = random_items(1)
  predicted, labelled = predicted_errors(rewards, mask), labelled_errors(labels)

  def f1(rows):
    return process_bench(predicted.take(rows), labelled.take(rows)).get("f1")

  metrics = estimate_statistic([Statistic(f1, len(labels))], Bootstrap(seed=0))
  assert metrics["value"] == process_bench(predicted, labelled)["f1"]
  low, high = metrics["interval"]
  assert low < metrics["value"] < high
  shuffled = FirstErrors(predicted.index[::-1], predicted.has_error[::-1])
  assert process_bench(shuffled, labelled)["f1"] < low  # Above chance.


# ===== Single steps =====


def random_labels(seed, shape=(30, 5)):
  rng = np.random.default_rng(seed)
  rewards = np.round(rng.uniform(-1, 1, shape), 1)
  good = rng.random(shape) < (rewards + 1) / 2
  mask = rng.random(shape) < 0.7
  return np.where(mask, rewards, np.nan), good, mask


def labelled_pairs(rewards, good, mask):
  return list(zip(rewards[mask].tolist(), good[mask].tolist(), strict=True))


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_accuracies_agree_with_a_loop(threshold):
  rewards, good, mask = random_labels(0)
  hits = {True: [], False: []}
  for reward, label in labelled_pairs(rewards, good, mask):
    hits[label].append((reward > threshold) == label)
  both = hits[True] + hits[False]
  recalls = [sum(h) / len(h) for h in hits.values()]
  arguments = (rewards, good, mask, threshold)
  expected = sum(both) / len(both)
  assert accuracy(*arguments) == pytest.approx(expected, abs=1e-12)
  expected = sum(recalls) / 2
  assert balanced_accuracy(*arguments) == pytest.approx(expected, abs=1e-12)


def test_balanced_accuracy_is_not_fooled_by_many_good_steps():
  """Everything good where nine of ten are: accuracy .9, balanced .5."""
  rewards, good, mask = np.full(10, 0.9), np.arange(10) > 0, np.ones(10, bool)
  assert accuracy(rewards, good, mask) == 0.9
  assert balanced_accuracy(rewards, good, mask) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_auc_agrees_with_all_pairs(seed):
  rewards, good, mask = random_labels(seed)
  pairs = labelled_pairs(rewards, good, mask)
  wins = [
    (a > b) + (a == b) / 2
    for a, a_good in pairs
    for b, b_good in pairs
    if a_good and not b_good
  ]
  assert 0.5 in wins
  assert auc(rewards, good, mask) == pytest.approx(np.mean(wins), abs=1e-12)


def test_auc_counts_a_tie_as_half():
  """Good .5, bad .5: ordered ranks would give 0 or 1 by chance of the sort."""
  rewards, good = np.array([0.5, 0.5]), np.array([True, False])
  mask = np.ones(2, bool)
  assert auc(rewards, good, mask) == auc(rewards, ~good, mask) == 0.5
  constant = np.zeros(9)
  assert auc(constant, np.arange(9) < 4, np.ones(9, bool)) == 0.5


def test_auc_depends_on_the_order_alone():
  rewards, good, mask = random_labels(1)
  value = auc(rewards, good, mask)
  for image in (rewards**3, np.exp(5 * rewards), 100 * rewards - 3):
    assert auc(image, good, mask) == pytest.approx(value, abs=1e-12)
  assert auc(-rewards, good, mask) == pytest.approx(1 - value, abs=1e-12)
  perfect = np.where(good, 0.2, 0.1)
  assert auc(perfect, good, mask) == 1.0


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_calibration_error_agrees_with_a_loop(bins):
  rewards, good, mask = random_labels(3)
  members = [[] for _ in range(bins)]
  for reward, label in labelled_pairs(rewards, good, mask):
    p = (reward + 1) / 2
    edges = [(m + 1) / bins for m in range(bins)]
    members[next(m for m in range(bins) if p <= edges[m] or m == bins - 1)] += [
      (p, label)
    ]
  expected = sum(
    len(m)
    / mask.sum()
    * abs(np.mean([label for _, label in m]) - np.mean([p for p, _ in m]))
    for m in members
    if m
  )
  metrics = calibration_error(rewards, good, mask, bins)
  assert metrics == pytest.approx(expected, abs=1e-12)


def test_perfect_calibration_gives_0_and_confident_errors_give_1():
  p = np.repeat([0.2, 0.4, 0.6, 1.0], 5)
  good = np.tile(np.arange(5), 4) < p * 5 - 1e-9
  mask = np.ones(20, bool)
  # p is (r + 1) / 2 in floats.
  assert calibration_error(2 * p - 1, good, mask) == pytest.approx(0, abs=1e-12)
  confident = np.where(good, -1.0, 1.0)  # The ends of the scale have bins.
  assert calibration_error(confident, good, mask) == 1.0


def test_an_edge_belongs_to_the_bin_below_it():
  """.3 is in (.2, .3] with .25, where their errors cancel: .25 is never and
  .3 always good, |(0 - .25) + (1 - .3)| / 2 = .225. In bins of their own they
  would give (.25 + .7) / 2 = .475.
  """
  rewards, good = 2 * np.array([0.25, 0.3]) - 1, np.array([False, True])
  metrics = calibration_error(rewards, good, np.ones(2, bool))
  assert metrics == pytest.approx(0.225, abs=1e-12)


def test_metrics_without_a_value_are_absent():
  rewards, all_true = np.array([[0.5, -0.5]]), np.ones((1, 2), bool)
  metrics = step_metrics(rewards, all_true, all_true)
  assert metrics == {
    "step_accuracy": 0.5,
    "calibration_error": 0.5,
    "good_share": 1.0,
  }
  assert step_metrics(rewards, all_true, ~all_true) == {}
  for function in (accuracy, balanced_accuracy, auc, calibration_error):
    assert function(rewards, all_true, ~all_true) is None


def test_step_metrics_has_each_metric_under_its_name():
  rewards, good, mask = random_labels(2)
  metrics = step_metrics(rewards, good, mask)
  assert metrics == {
    "step_accuracy": accuracy(rewards, good, mask),
    "balanced_accuracy": balanced_accuracy(rewards, good, mask),
    "auc": auc(rewards, good, mask),
    "calibration_error": calibration_error(rewards, good, mask),
    "good_share": good[mask].sum() / mask.sum(),
  }
  assert len(set(metrics.values())) == 5
  assert all(type(value) is float for value in metrics.values())


def test_scores_that_are_not_finite_raise_with_their_index():
  rewards, mask = np.array([[0.5, np.nan]]), np.ones((1, 2), bool)
  labelled = labelled_errors(np.array([1]))
  for function, arguments in (
    (predicted_errors, (mask,)),
    (choose_threshold, (mask, labelled)),
    (auc, (mask, mask)),
    (accuracy, (mask, mask)),
  ):
    with pytest.raises(ValueError, match=r"row \[0\], step 1 is nan"):
      function(rewards, *arguments)
