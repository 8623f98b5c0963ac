"""The embedded world as a prepared data set; labels of sampled responses."""

import collections
import concurrent.futures
import dataclasses
import pathlib
import socket

import numpy as np
import pytest

from pure_jax import steps as device_steps
from pure_jax.host.data.batches import right_pad
from pure_jax.host.data.world import arithmetic, checker, dataset
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.data.world.checker import label_rollout
from pure_jax.host.data.world.dataset import Example, load_world
from pure_jax.host.data.world.prm_examples import make_prm_example
from pure_jax.host.text.tokenization import separator_table

WORLD = WorldConfig()
SIZES = {"train": 120, "held_out": 30, "labelled": 60}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def rows(data_dir):
  return load_world(WORLD, SIZES, data_dir)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "world.model"
  return dataset.world_tokenizer(WORLD, path)


def records(data_dir) -> dict[str, bytes]:
  """Content of the files that hold examples, by path."""
  return {
    str(path.relative_to(data_dir)): path.read_bytes()
    for path in pathlib.Path(data_dir).rglob("*.array_record*")
  }


def test_rows_are_the_examples_in_order(rows):
  assert {split: len(found) for split, found in rows.items()} == SIZES
  for split, found in rows.items():
    for index, row in enumerate(found):
      if split == "labelled":
        problem, response = make_prm_example(WORLD, index)
      else:
        problem, response = arithmetic.make_example(WORLD, split, index)
      labels = checker.label_steps(problem, response.split("\n\n"))
      assert row == Example(
        problem=problem.text,
        response=response,
        labels=tuple(label for label in labels if label is not None),
        answer=eval(problem.chain),
      )


def test_labels_are_all_good_up_to_a_first_bad_one(rows):
  flat = [row.labels for row in rows["train"]]
  assert all(0 not in labels[:-1] for labels in flat)
  # Half of the teachers share the misconception: both kinds must occur.
  assert 20 < sum(labels[-1] for labels in flat) < 100


def test_judged_responses_are_good_up_to_a_drawn_mistake(tokenizer):
  wrong_at = collections.Counter()
  for index in range(2_000):
    problem, response = make_prm_example(WORLD, index)
    assert arithmetic.split_of(problem.text) == "train"
    assert tokenizer.decode(tokenizer.encode(response)) == response
    steps = response.split("\n\n")
    labels = checker.label_steps(problem, steps)
    if 0 in labels:
      wrong_at[min(labels.index(0), 3)] += 1
    else:
      right = checker.grade(problem, response)
      wrong_at["right" if right else "unfinished"] += 1
  # A fifth are right to the end; mistakes come early as well as late. A mistake
  # that happens to be right, or to repeat a step, leaves its row unfinished.
  assert 350 < wrong_at["right"] < 450 and wrong_at["unfinished"] < 240
  assert all(wrong_at[step] > 160 for step in range(4)), wrong_at


def test_splits_share_no_problem(rows):
  train, held_out, labelled = (
    {row.problem for row in rows[split]} for split in dataset.SPLITS
  )
  assert not (train | labelled) & held_out
  assert {arithmetic.split_of(text) for text in held_out} == {"held_out"}


def test_a_larger_data_set_begins_with_a_smaller_one(rows, data_dir):
  larger = load_world(
    WORLD, {"train": 200, "held_out": 40, "labelled": 80}, data_dir
  )
  for split, size in SIZES.items():
    assert larger[split][:size] == rows[split]


def test_a_second_load_makes_nothing(rows, data_dir, monkeypatch):
  def fail(*_):
    raise AssertionError("made again")

  monkeypatch.setattr(arithmetic, "make_example", fail)
  assert load_world(WORLD, SIZES, data_dir) == rows


def test_how_many_examples_a_record_holds_changes_none(
  rows, tmp_path, monkeypatch
):
  """Labels are stored in one column: a wrong count would move them."""
  monkeypatch.setattr(dataset, "RECORD_EXAMPLES", 7)
  assert load_world(WORLD, SIZES, tmp_path) == rows


def test_a_split_that_is_not_named_is_not_made(rows, tmp_path, monkeypatch):
  def fail(*_):
    raise AssertionError("made")

  with monkeypatch.context() as patch:
    patch.setattr(dataset, "make_prm_example", fail)
    named = {split: SIZES[split] for split in arithmetic.SPLITS}
    expected = {split: rows[split] for split in named}
    assert load_world(WORLD, named, tmp_path) == expected
  monkeypatch.setattr(arithmetic, "make_example", fail)
  ((split, found),) = load_world(WORLD, {"labelled": 60}, tmp_path).items()
  assert (split, found) == ("labelled", rows["labelled"])


def test_made_again_it_is_the_same_bytes(rows, data_dir, tmp_path):
  assert load_world(WORLD, SIZES, tmp_path) == rows
  again = records(tmp_path)
  assert len(again) == 3
  assert again.items() <= records(data_dir).items()


def test_another_world_or_size_is_another_data_set(rows, tmp_path):
  load_world(WORLD, {"train": 8, "held_out": 4, "labelled": 2}, tmp_path)
  other = dataclasses.replace(WORLD, seed=1)
  found = load_world(
    other, {"train": 8, "held_out": 4, "labelled": 2}, tmp_path
  )
  assert found["train"] != rows["train"][:8]
  assert (
    len(load_world(WORLD, {"train": 9, "held_out": 4, "labelled": 2}, tmp_path))
    == 3
  )
  assert len(records(tmp_path)) == 3 * 3


def test_preparing_asks_no_network_and_says_nothing(
  tmp_path, monkeypatch, capfd
):
  def refuse(*_, **__):
    raise AssertionError("asked for the network")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  load_world(WORLD, {"train": 3, "held_out": 2, "labelled": 2}, tmp_path)
  assert capfd.readouterr() == ("", "")


def test_what_was_cut_off_is_made_again(rows, tmp_path, monkeypatch):
  make = arithmetic.make_example

  def cut_off(world, split, index):
    if index == 20:
      raise KeyboardInterrupt
    return make(world, split, index)

  with monkeypatch.context() as patch:
    patch.setattr(arithmetic, "make_example", cut_off)
    with pytest.raises(KeyboardInterrupt):
      load_world(WORLD, SIZES, tmp_path)
  assert load_world(WORLD, SIZES, tmp_path) == rows


def test_two_runs_may_prepare_at_once(rows, tmp_path, monkeypatch):
  # The second is done while the first still writes: its folder is there.
  make, nested = arithmetic.make_example, []

  def with_another_run(world, split, index):
    if index == 20 and not nested:
      nested.append(True)
      with concurrent.futures.ThreadPoolExecutor(1) as pool:
        nested.append(pool.submit(load_world, WORLD, SIZES, tmp_path).result())
    return make(world, split, index)

  monkeypatch.setattr(arithmetic, "make_example", with_another_run)
  assert load_world(WORLD, SIZES, tmp_path) == rows == nested[1]


def test_a_failure_that_left_no_data_is_not_hidden(tmp_path, monkeypatch):
  def full(*_):
    raise OSError("No space left on device")

  monkeypatch.setattr(arithmetic, "make_example", full)
  with pytest.raises(dataset.DataError, match="No space left"):
    load_world(WORLD, SIZES, tmp_path)


def label(tokenizer, parts, max_steps):
  """Labels of one response to 3+5-2=?, None where there is none."""
  ids = [
    i
    for part in parts
    for i in ([tokenizer.eos_id] if part == "|" else tokenizer.encode(part))
  ]
  tokens, mask = right_pad([ids], 40, tokenizer.pad_id)
  labels, label_mask = label_rollout(
    tokenizer, ["3+5-2=?"], tokens, mask, max_steps
  )
  assert labels.shape == label_mask.shape == (1, max_steps)
  assert labels.dtype == np.int32 and label_mask.dtype == bool
  assert not labels[~label_mask].any()
  found = zip(labels[0].tolist(), label_mask[0].tolist(), strict=True)
  return [value if kept else None for value, kept in found]


RIGHT = ["3+5=8", "\n\n", "8-2=6", "\n\n", "\\boxed{6}"]


@pytest.mark.parametrize(
  "parts, max_steps, expected",
  [
    ([*RIGHT, "|"], 4, [1, 1, 1, None]),
    (RIGHT, 4, [1, 1, 1, None]),  # Cut at the limit, right after its end.
    ([*RIGHT[:4], "\\boxed{"], 4, [1, 1, 0, None]),
    (RIGHT[:4], 4, [1, 1, None, None]),  # Cut after a separator: two steps.
    ([*RIGHT[:4], "|"], 4, [1, 1, 1, None]),  # The third is EOS alone.
    (["Let me think.\n\n", *RIGHT, "|"], 4, [1, 1, 1, 1]),  # Merged.
    (["3+5=9\n\n", *RIGHT[2:], "|"], 4, [0, None, None, None]),
    (["3+5=8", "\n\n", "\n\n", *RIGHT[2:], "|"], 5, [1, 1, 1, 1, None]),
    (["|"], 2, [1, None]),
    ([], 2, [None, None]),
    # No id ends with the separator here, so it is one unreadable step.
    (["3+5=8", "\n", "\n", *RIGHT[2:], "|"], 3, [0, None, None]),
    # More steps than places: the last place stands for all the rest.
    ([*RIGHT, "|"], 2, [1, 1]),
    ([*RIGHT[:4], "\\boxed{7}", "|"], 2, [1, 0]),
    (["3+5=8\n\n8-2=10\n\n\\boxed{10}", "|"], 2, [1, 0]),
    (["3+5=9\n\n", *RIGHT[2:], "|"], 2, [0, None]),
    ([*RIGHT, "|"], 1, [1]),
    ([*RIGHT[:4], "\\boxed{7}", "|"], 1, [0]),
  ],
)
def test_labels_of_sampled_tokens_by_hand(
  tokenizer, parts, max_steps, expected
):
  assert label(tokenizer, parts, max_steps) == expected


def test_labels_stand_where_the_device_has_its_steps(tokenizer, rows):
  responses = [tokenizer.encode(row.response) for row in rows["train"]]
  for row, ids in enumerate(responses):
    # A third each: ended, cut somewhere, ended with a separator.
    if row % 3 == 0:
      ids.append(tokenizer.eos_id)
    elif row % 3 == 1:
      del ids[len(ids) * 2 // 3 :]
    else:
      ids += [*tokenizer.encode("\n\n"), tokenizer.eos_id]
  tokens, mask = right_pad(responses, 80, tokenizer.pad_id)
  problems = [row.problem for row in rows["train"]]
  found = device_steps.split_steps(
    tokens, mask, separator_table(tokenizer), max_steps=5
  )
  labels, label_mask = label_rollout(tokenizer, problems, tokens, mask, 5)
  exists = np.asarray(found.mask)
  assert not (label_mask & ~exists).any()
  bad = label_mask & (labels == 0)
  # Every existing step has a label, up to the first bad one and no further.
  seen_bad = (np.cumsum(bad, axis=1) - bad) > 0
  np.testing.assert_array_equal(label_mask, exists & ~seen_bad)
  assert bad.any() and np.asarray(found.overflow).any()


def test_a_problem_for_every_row(tokenizer):
  tokens, mask = right_pad([[1], [1]], 2, tokenizer.pad_id)
  with pytest.raises(ValueError, match=r"shorter|longer"):
    label_rollout(tokenizer, ["3+5-2=?"], tokens, mask, 2)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "record"])
def test_damaged_files_are_named_with_what_to_do(tmp_path, damage):
  world, sizes = WorldConfig(), {"train": 200, "held_out": 8, "labelled": 8}
  dataset.load_world(world, sizes, tmp_path)
  (path,) = tmp_path.rglob("*train.array_record*")
  data = bytearray(path.read_bytes())
  if damage == "cut":
    path.write_bytes(data[: len(data) // 2])
  elif damage == "flip":
    middle = len(data) // 2
    data[middle] ^= 0xFF
    path.write_bytes(data)
  elif damage == "gone":
    path.unlink()
  else:
    (path.parent / "dataset_info.json").write_text("{")
  with pytest.raises(dataset.DataError, match="remove that folder"):
    dataset.load_world(world, sizes, tmp_path)
