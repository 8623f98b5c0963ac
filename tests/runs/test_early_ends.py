"""Responses that end too early, by hand.

The vocabulary: merged ".\n\n" has the stem ".", "!\n\n" has none but itself.
"""

import types

import numpy as np
import pytest
import train_prm

from pure_jax.runs.early_ends import cut_early
from pure_jax.runs.tasks.task import LabelledResponses
from pure_jax.training.supervised import Demonstrations
from pure_jax.types import SeparatorTable

PAD, EOS, SEP, MERGED, DOT, A, B, HALF, WHOLE = range(9)
TABLE = SeparatorTable(
  ends_step=np.isin(np.arange(9), [SEP, MERGED, WHOLE]),
  half=np.arange(9) == HALF,
  stem=np.array([0, 0, 0, DOT, 0, 0, 0, 0, WHOLE], np.int32),
  has_stem=np.isin(np.arange(9), [MERGED, WHOLE]),
  score_id=np.int32(HALF),
  eos_ids=np.array([EOS], np.int32),
  pad_id=np.int32(PAD),
)
C, S = 8, 4


def cut(rows, labels, share=1.0, seed=0):
  """(ids, labels) of the cut responses; None for no label."""
  tokens, mask = (
    np.full((len(rows), C), PAD, np.int32),
    np.zeros((len(rows), C)),
  )
  values = np.zeros((len(rows), S), np.int32)
  known = np.zeros((len(rows), S), bool)
  for index, (row, of_row) in enumerate(zip(rows, labels, strict=True)):
    tokens[index, : len(row)], mask[index, : len(row)] = row, 1
    for step, label in enumerate(of_row):
      values[index, step], known[index, step] = label or 0, label is not None
  prompts = np.arange(len(rows), dtype=np.int32)[:, None]
  responses = Demonstrations(prompts, prompts >= 0, tokens, mask > 0)
  made, values, known = cut_early(
    *(responses, values, known, TABLE, share, np.random.default_rng(seed))
  )
  assert values.dtype == np.int32 and made.tokens.dtype == np.int32
  assert not values[~known].any()
  ids = [
    tuple(ids[kept].tolist())
    for ids, kept in zip(made.tokens, made.completion_mask, strict=True)
  ]
  labels = [
    tuple(int(v) if k else None for v, k in zip(of_row, kept, strict=True))
    for of_row, kept in zip(values, known, strict=True)
  ]
  return made.prompt_tokens[:, 0].tolist(), ids, labels


def choices(row, labels):
  """All ways in which a response is cut."""
  ways = set()
  for seed in range(30):
    _, ids, cut_labels = cut([row], [labels], seed=seed)
    ways.add((ids[0], cut_labels[0]))
  return ways


NOTHING = ((EOS,), (0, None, None, None))


@pytest.mark.parametrize(
  ("row", "labels", "ways"),
  [
    # After no step or the first of two; never after the last.
    ([A, SEP, B, EOS], [1, 1], {((A, EOS), (0, None, None, None))}),
    ([A, B, EOS], [1], set()),
    # After the second step the first keeps its label, or its lack of one.
    (
      [A, SEP, B, MERGED, A, EOS],
      [None, 1, 1],
      {
        ((A, EOS), (0, None, None, None)),
        ((A, SEP, B, DOT, EOS), (None, 0, None, None)),
      },
    ),
    # Never after a bad step.
    ([A, SEP, B, SEP, A, EOS], [0, None, 1], set()),
    (
      [A, SEP, B, SEP, A, EOS],
      [1, 0, None],
      {((A, EOS), (0, None, None, None))},
    ),
    # Halves, and a merged separator whose content is no id.
    ([A, HALF, HALF, B, EOS], [1, 1], {((A, EOS), (0, None, None, None))}),
    ([A, WHOLE, B, EOS], [1, 1], {((A, EOS), (0, None, None, None))}),
  ],
)
def test_where_a_response_is_cut(row, labels, ways):
  assert choices(row, labels) == ways | {NOTHING}


def test_a_share_of_the_responses_is_cut_each_at_most_once():
  rows = [[A, SEP, B, EOS]] * 7 + [[]]
  labels = [[1, 1]] * 7 + [[]]
  prompts, ids, _ = cut(rows, labels, share=0.5)
  assert len(ids) == len(set(prompts)) == 4
  prompts, _, _ = cut(rows, labels, share=1.0)
  assert sorted(prompts) == list(range(7))  # One without tokens is not cut.
  assert cut(rows, labels, share=0.0)[1] == []
  assert cut(rows, labels, 0.5, seed=3) == cut(rows, labels, 0.5, seed=3)


def test_a_run_adds_those_without_an_answer(monkeypatch):
  tokens = np.array([[A, SEP, B, EOS]] * 4, np.int32)
  prompts = np.arange(4, dtype=np.int32)[:, None]
  responses = Demonstrations(prompts, prompts >= 0, tokens, tokens != PAD)
  labels = np.ones((4, 2), np.int32)
  whole = LabelledResponses(responses, labels, labels > 0, {"responses": 4.0})
  prm = types.SimpleNamespace(early_ends=1.0)
  settings = types.SimpleNamespace(seed=3, prm=prm)
  answers = types.SimpleNamespace(
    tokenizer=None, find_answer=lambda ids: "A" if A in ids else None
  )
  run = types.SimpleNamespace(
    spec=types.SimpleNamespace(settings=settings, table=TABLE), task=answers
  )
  monkeypatch.setattr(
    train_prm, "split_texts", lambda tokenizer, tokens, mask: tokens.tolist()
  )
  both = train_prm.add_early_ends(run, whole)
  cut = len(both.labels) - 4
  assert both.metrics == {"responses": 4.0, "early_ends": cut}
  assert 0 < cut < 4  # Of the copies some end after A, the others before.
  assert both.labels.shape == both.label_mask.shape == (4 + cut, 2)
  np.testing.assert_array_equal(both.responses.tokens[:4], tokens)
  assert (both.responses.tokens[4:, 0] == EOS).all()
  assert (both.labels[4:] == 0).all() and both.label_mask[4:, 0].all()
