r"""pure_jax.steps against a token-by-token reading of small vocabularies.

The vocabulary: merged ".\n\n" has the stem ".", "\n\n\n\n" is a bare
separator of another id, "\n" is the score token. With HALVES it is half a
separator as well, as where a tokenizer writes "\n\n" as two ids.
"""

import jax
import numpy as np
import pytest

from pure_jax import steps
from pure_jax.types import PRMInputs, SeparatorTable

PAD, EOS, SEP, MERGED, DOT, A, B, SCORE, LONG = range(9)
STEM = {MERGED: DOT}
ENDS = {SEP, MERGED, LONG}
TABLE = SeparatorTable(
  ends_step=np.array([i in ENDS for i in range(9)]),
  half=np.zeros(9, bool),
  stem=np.array([STEM.get(i, 0) for i in range(9)], np.int32),
  has_stem=np.array([i in STEM for i in range(9)]),
  score_id=np.int32(SCORE),
  eos_ids=np.array([EOS], np.int32),
  pad_id=np.int32(PAD),
)
HALVES = TABLE.replace(half=np.arange(9) == SCORE)
BOTH = pytest.mark.parametrize("table", [TABLE, HALVES], ids=["whole", "half"])
PROMPT = [PAD, B, A]


def _batch(rows, width):
  tokens = np.full((len(rows), width), PAD, np.int32)
  mask = np.zeros((len(rows), width), bool)
  for b, row in enumerate(rows):
    tokens[b, : len(row)] = row
    mask[b, : len(row)] = True
  return tokens, mask


# Eager, every operation and each slice of a row would be a program.
_jitted_split = jax.jit(steps.split_steps, static_argnames="max_steps")
_jitted_inputs = jax.jit(
  steps.build_prm_inputs, static_argnames=("separator", "read_end")
)
_terminal_mask = jax.jit(steps.terminal_mask)
_step_rewards = jax.jit(steps.read_step_rewards)


def _split(rows, width=8, max_steps=4, table=TABLE):
  """Steps of the rows as numpy arrays."""
  tokens, mask = _batch(rows, width)
  actual = _jitted_split(tokens, mask, table, max_steps=max_steps)
  return jax.tree.map(np.asarray, actual)


def _oracle_steps(row, max_steps, table=TABLE):
  """Lists of token positions, one per step, walking the row once."""
  groups, current, run = [], [], 0
  for position, token in enumerate(row):
    current.append(position)
    run = run + 1 if table is HALVES and token == SCORE else 0
    ends = token in ENDS or token == EOS or run == 2
    if ends or position == len(row) - 1:
      groups.append(current)
      current = []
  overflow = max(len(groups) - max_steps, 0)
  if overflow:
    kept = groups[: max_steps - 1]
    kept.append([p for g in groups[max_steps - 1 :] for p in g])
    groups = kept
  return groups, overflow


def _oracle_inputs(row, groups, separator, table=TABLE, read_end=False):
  """(ids, score positions) of one response, written as a list grows."""
  ids, positions = [], []
  bare = (SEP, LONG, SCORE) if table is HALVES else (SEP, LONG)
  bare = bare if read_end else (*bare, EOS)
  for group in groups:
    for place, position in enumerate(group):
      token = row[position]
      if place < len(group) - 1:
        halves = row[position : position + 2] == [SCORE, SCORE]
        last_two = place == len(group) - 2
        if not (last_two and halves and table is HALVES) or (
          separator == "replace"
        ):
          ids.append(token)
      elif separator == "replace" or token in bare:
        pass
      elif token in STEM:
        ids.append(STEM[token])
      else:
        ids.append(token)
    positions.append(len(ids))
    ids.append(SCORE)
  return ids, positions


def _random_rows(seed, count, width, choices=(SEP, MERGED, DOT, A, B, LONG)):
  rng = np.random.default_rng(seed)
  rows = []
  for _ in range(count):
    length = int(rng.integers(0, width + 1))
    row = rng.choice(choices, length).tolist()
    if length and rng.random() < 0.6:
      row[-1] = EOS
    rows.append(row)
  return rows


WITH_HALVES = (SCORE, SCORE, SCORE, SEP, MERGED, A, B)


@BOTH
@pytest.mark.parametrize("max_steps", [1, 2, 4, 9])
def test_split_agrees_with_a_walk_over_each_row(max_steps, table):
  rows = _random_rows(3, 60, 9) + _random_rows(4, 60, 9, WITH_HALVES)
  bare = (SEP, LONG, EOS, SCORE) if table is HALVES else (SEP, LONG, EOS)
  actual = _split(rows, 9, max_steps, table)
  for b, row in enumerate(rows):
    groups, overflow = _oracle_steps(row, max_steps, table)
    index = [0] * 9
    for s, group in enumerate(groups):
      for position in group:
        index[position] = s
    ends = {group[-1] for group in groups}
    assert actual.index[b].tolist() == index
    assert actual.end_mask[b].tolist() == [p in ends for p in range(9)]
    count = len(groups)
    assert actual.mask[b].tolist() == [s < count for s in range(max_steps)]
    assert actual.end_position[b, :count].tolist() == [g[-1] for g in groups]
    assert int(actual.overflow[b]) == overflow
    empty = [all(row[p] in bare for p in group) for group in groups]
    assert actual.empty[b].tolist() == empty + [False] * (max_steps - count)


@pytest.mark.parametrize(
  "row, ends, empty",
  [
    ([A, SEP, B, EOS], [1, 3], [False, False]),
    # A merged separator is content and end at once.
    ([MERGED, B, EOS], [0, 2], [False, False]),
    # Two separators in a row, and EOS right after one: hacking route.
    ([A, SEP, SEP, B, EOS], [1, 2, 4], [False, True, False]),
    ([A, SEP, EOS], [1, 2], [False, True]),
    # No separator at all: one long step.
    ([A, B, A, EOS], [3], [False]),
    # Cut at the length limit: the last token ends the last step.
    ([A, SEP, B, A], [1, 3], [False, False]),
    # Cut exactly at a separator: no empty step behind it.
    ([A, B, SEP], [2], [False]),
    # EOS first: one step without content, not none.
    ([EOS], [0], [True]),
    ([], [], []),
  ],
)
def test_traps(row, ends, empty):
  actual = _split([row])
  count = len(ends)
  assert actual.mask[0].tolist() == [s < count for s in range(4)]
  assert actual.end_position[0, :count].tolist() == ends
  assert actual.empty[0, :count].tolist() == empty
  assert int(actual.overflow[0]) == 0


@pytest.mark.parametrize(
  "row, ends, empty",
  [
    ([A, SCORE, SCORE, B, EOS], [2, 4], [False, False]),
    # One line break is text; whole separators still end steps.
    ([A, SCORE, B, SEP, B], [3, 4], [False, False]),
    # Several blank lines are one separator, not several empty steps.
    ([A, SCORE, SCORE, SCORE, SCORE, B], [2, 5], [False, False]),
    ([A, SCORE, SCORE, EOS], [2, 3], [False, True]),
    # Cut between the halves: they end the last step together with it.
    ([A, SCORE], [1], [False]),
  ],
)
def test_a_separator_of_two_halves_ends_at_the_second(row, ends, empty):
  actual = _split([row], table=HALVES)
  assert actual.end_position[0, : len(ends)].tolist() == ends
  assert actual.mask[0].tolist() == [s < len(ends) for s in range(4)]
  assert actual.empty[0, : len(ends)].tolist() == empty
  tokens, mask = _batch([row], 8)
  terminal = _terminal_mask(tokens, mask, HALVES)[0].tolist()
  cut = row[-1] not in (EOS, SEP)
  assert [p for p in range(8) if terminal[p]] == ends[: len(ends) - cut]


def test_more_steps_than_room_are_merged_and_counted():
  row = [A, SEP, B, SEP, A, SEP, SEP, B]
  actual = _split([row], max_steps=2)
  assert actual.end_position[0].tolist() == [1, 7]
  assert actual.index[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
  assert int(actual.overflow[0]) == 3
  # Swallowed empty steps do not make the last step empty.
  assert actual.empty[0].tolist() == [False, False]


def test_max_steps_below_one_raises():
  with pytest.raises(ValueError, match="at least 1"):
    _split([[A]], max_steps=0)


def test_eos_is_a_token_of_the_last_step():
  # A completion mask without EOS would leave it outside of every step, so
  # that stopping would get neither return nor gradient.
  actual = _split([[A, SEP, B, EOS]])
  values = np.float32([[1, 2, 0, 0]])
  returns = jax.jit(steps.values_per_token)(values, actual)
  assert returns[0].tolist() == [1, 1, 2, 2, 0, 0, 0, 0]
  at_ends = jax.jit(steps.values_at_step_ends)(values, actual)
  assert at_ends[0].tolist() == [0, 1, 0, 2, 0, 0, 0, 0]


def test_terminal_mask_holds_separators_and_eos_only():
  tokens, mask = _batch([[A, SEP, B, EOS], [MERGED, B, LONG, A], [EOS]], 5)
  actual = _terminal_mask(tokens, mask, TABLE)
  assert actual.tolist() == [
    [False, True, False, True, False],
    [True, False, True, False, False],
    [True, False, False, False, False],
  ]
  # An id that happens to stand in the padding is no terminal.
  nothing = _terminal_mask(tokens, np.zeros_like(mask), TABLE)
  assert not np.asarray(nothing).any()


@BOTH
@pytest.mark.parametrize("separator", ["insert", "replace"])
def test_an_end_id_that_is_also_padding_ends_a_response(table, separator):
  """Its rows give what those of another end id give; masks tell padding."""
  rows = _random_rows(8, 60, 9) + _random_rows(9, 30, 9, WITH_HALVES)
  both = table.replace(eos_ids=np.array([EOS, PAD], np.int32))
  prompt = np.tile(np.array([PROMPT], np.int32), (len(rows), 1))

  def results(end, end_ids):
    ends = [[end if token == EOS else token for token in row] for row in rows]
    tokens, mask = _batch(ends, 9)
    cut = _jitted_split(tokens, mask, end_ids, max_steps=4)
    inputs = _jitted_inputs(
      *(prompt, prompt != PAD, tokens, mask, cut, end_ids), separator=separator
    )
    return cut, inputs, _terminal_mask(tokens, mask, end_ids)

  expected = results(EOS, table)
  for end in (EOS, PAD):
    jax.tree.map(np.testing.assert_array_equal, results(end, both), expected)


def test_tokens_per_step_counts_every_kept_token_once():
  rows = _random_rows(5, 120, 9)
  tokens, mask = _batch(rows, 9)
  actual = _jitted_split(tokens, mask, TABLE, max_steps=2)
  counts = np.asarray(jax.jit(steps.tokens_per_step)(actual, mask))
  for b, row in enumerate(rows):
    groups, _ = _oracle_steps(row, 2)
    expected = [len(g) for g in groups] + [0] * (2 - len(groups))
    assert counts[b].tolist() == expected


def test_padding_changes_nothing():
  # Junk after the mask, separators included, must not make steps.
  rows = _random_rows(11, 120, 9)
  tokens, mask = _batch(rows, 9)
  narrow = _jitted_split(tokens, mask, TABLE, max_steps=4)
  junk = np.full((120, 3), SEP, np.int32)
  wide = _jitted_split(
    np.concatenate([np.where(mask, tokens, SEP), junk], axis=1),
    np.pad(mask, ((0, 0), (0, 3))),
    TABLE,
    max_steps=4,
  )
  for field in ("end_position", "mask", "empty", "overflow"):
    left, right = getattr(narrow, field), getattr(wide, field)
    np.testing.assert_array_equal(left, right, err_msg=field)
  np.testing.assert_array_equal(narrow.index, np.asarray(wide.index)[:, :9])
  assert not np.asarray(wide.end_mask)[:, 9:].any()


@BOTH
@pytest.mark.parametrize(
  ("separator", "read_end"),
  [("insert", False), ("insert", True), ("replace", False)],
)
@pytest.mark.parametrize("max_steps", [2, 4])
def test_prm_inputs_agree_with_a_growing_list(
  separator, read_end, max_steps, table
):
  rows = _random_rows(13, 60, 9) + _random_rows(14, 60, 9, WITH_HALVES)
  tokens, mask = _batch(rows, 9)
  prompt = np.tile(np.array([PROMPT], np.int32), (120, 1))
  cut = _jitted_split(tokens, mask, table, max_steps=max_steps)
  inputs = _jitted_inputs(
    *(prompt, prompt != PAD, tokens, mask, cut, table),
    separator=separator,
    read_end=read_end,
  )
  inputs = jax.tree.map(np.asarray, inputs)
  width = 3 + 9 + (max_steps if separator == "insert" else 0)
  assert inputs.tokens.shape == (120, width)
  for b, row in enumerate(rows):
    groups, _ = _oracle_steps(row, max_steps, table)
    ids, positions = _oracle_inputs(row, groups, separator, table, read_end)
    padding = [PAD] * (width - 3 - len(ids))
    assert inputs.tokens[b].tolist() == PROMPT + ids + padding
    kept = [False, True, True] + [True] * len(ids)
    assert inputs.mask[b].tolist() == kept + [False] * len(padding)
    count = len(groups)
    assert inputs.score_position[b, :count].tolist() == [
      3 + p for p in positions
    ]
    assert inputs.score_mask[b].tolist() == [
      s < count for s in range(max_steps)
    ]


def test_merged_separator_keeps_its_punctuation_unless_replaced():
  tokens, mask = _batch([[A, MERGED, B, EOS]], 4)
  cut = _jitted_split(tokens, mask, TABLE, max_steps=2)
  prompt = np.zeros((1, 0), np.int32)
  arguments = (prompt, prompt > 0, tokens, mask, cut, TABLE)
  inserted = _jitted_inputs(*arguments)
  replaced = _jitted_inputs(*arguments, separator="replace")
  assert inserted.tokens[0].tolist() == [A, DOT, SCORE, B, SCORE, PAD]
  assert replaced.tokens[0].tolist() == [A, SCORE, B, SCORE]


def test_truncated_last_token_survives_insertion_only():
  tokens, mask = _batch([[A, B]], 4)
  cut = _jitted_split(tokens, mask, TABLE, max_steps=2)
  prompt = np.zeros((1, 0), np.int32)
  arguments = (prompt, prompt > 0, tokens, mask, cut, TABLE)
  inserted = _jitted_inputs(*arguments)
  replaced = _jitted_inputs(*arguments, separator="replace")
  assert inserted.tokens[0].tolist() == [A, B, SCORE, PAD, PAD, PAD]
  assert replaced.tokens[0].tolist() == [A, SCORE, PAD, PAD]


def test_unknown_separator_option_raises():
  tokens, mask = _batch([[A]], 4)
  cut = _jitted_split(tokens, mask, TABLE, max_steps=2)
  with pytest.raises(ValueError, match="'insert' or 'replace'"):
    steps.build_prm_inputs(
      tokens, mask, tokens, mask, cut, TABLE, separator="append"
    )


def test_step_rewards_are_softmax_differences_at_the_scores():
  rng = np.random.default_rng(17)
  logits = rng.normal(0, 3, (3, 6, 2)).astype(np.float32)
  position = np.array([[1, 4], [5, 0], [0, 0]], np.int32)
  mask = np.array([[True, True], [True, False], [False, False]])
  blank = np.zeros((3, 6), np.int32)
  inputs = PRMInputs(blank, blank > 0, position, mask)
  actual = np.asarray(_step_rewards(logits, inputs))
  for b in range(3):
    for s in range(2):
      bad, good = np.exp(logits[b, position[b, s]].astype(np.float64))
      expected = (good - bad) / (good + bad) if mask[b, s] else 0.0
      np.testing.assert_allclose(actual[b, s], expected, rtol=1e-5, atol=1e-6)


def test_extreme_logits_stay_within_plus_minus_one():
  inputs = PRMInputs(
    np.zeros((1, 2), np.int32),
    np.ones((1, 2), bool),
    np.array([[0, 1]]),
    np.ones((1, 2), bool),
  )
  logits = np.float32([[[-1e4, 1e4], [1e4, -1e4]]])
  assert _step_rewards(logits, inputs).tolist() == [[1.0, -1.0]]


def test_empty_steps_take_the_configured_reward():
  actual = _split([[A, SEP, SEP, B, EOS]])
  rewards = np.float32([[0.5, 0.9, 0.25, 0.0]])
  guarded = steps.replace_empty_steps(rewards, actual, -1.0)
  assert guarded[0].tolist() == [0.5, -1.0, 0.25, 0.0]


def test_jit_and_eager_agree_and_compile_once_for_all_contents():
  count = 0

  def split(tokens, mask):
    nonlocal count
    count += 1
    return steps.split_steps(tokens, mask, TABLE, max_steps=4)

  jitted = jax.jit(split)
  for seed in (1, 2, 3):
    tokens, mask = _batch(_random_rows(seed, 5, 6), 6)
    eager = steps.split_steps(tokens, mask, TABLE, max_steps=4)
    jax.tree.map(np.testing.assert_array_equal, jitted(tokens, mask), eager)
  assert count == 1
