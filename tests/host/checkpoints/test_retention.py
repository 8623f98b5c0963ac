"""Which checkpoints stay, by hand."""

import types

import pytest

from pure_jax.host.checkpoints.record import Standing
from pure_jax.host.checkpoints.retention import Retention


def kept(keep_latest, scores, interim=()):
  """Steps that stay of {step: score or None}, in the order given."""

  def standing(step):
    score = scores[step]
    metrics = {} if score is None else {"accuracy": score}
    return Standing(step in interim, metrics)

  policy = Retention(
    keep_latest, standing, lambda standing: standing.metrics.get("accuracy")
  )
  infos = [types.SimpleNamespace(step=step) for step in scores]
  stay = policy.should_preserve(infos, context=None)
  return [s for s, keep in zip(scores, stay, strict=True) if keep]


@pytest.mark.parametrize(
  ("keep_latest", "scores", "interim", "expected"),
  [
    (2, {1: None, 2: None, 3: None}, (), [2, 3]),
    (5, {1: None, 2: None}, (), [1, 2]),
    (1, {1: 0.9, 2: 0.1, 3: 0.2}, (), [1, 3]),
    # Of equals the later one, which is what a run restores as its best.
    (1, {1: 0.9, 2: 0.9, 3: 0.2}, (), [2, 3]),
    (1, {1: None, 2: 0.1, 3: None, 4: None}, (), [2, 4]),
    (1, {}, (), []),
  ],
)
def test_the_latest_and_the_best_stay(keep_latest, scores, interim, expected):
  assert kept(keep_latest, scores, interim) == expected


def test_an_interim_checkpoint_takes_no_place_of_a_regular_one():
  """Counted, it would push step 10 out: less to fall back on by a stop."""
  scores = dict.fromkeys((10, 20, 25))
  assert kept(2, scores, interim=[25]) == [10, 20, 25]
  # Two stops in a row, then the next regular one: as if there were none.
  assert kept(2, scores | {27: None}, interim=[25, 27]) == [10, 20, 27]
  scores = dict.fromkeys((10, 20, 27, 30))
  assert kept(2, scores, interim=[27]) == [20, 30]
