"""The data set of the embedded world."""

import collections
import concurrent.futures
import dataclasses
import importlib.util
import pathlib
import socket

import pytest
from tensorflow_datasets.core import shuffle

from pure_jax.host.data.records import DataError
from pure_jax.host.data.world import arithmetic, checker, dataset
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.data.world.dataset import Example, load_world
from pure_jax.host.data.world.prm_examples import make_prm_example

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
  """Content of the files with examples, by path."""
  return {
    str(path.relative_to(data_dir)): path.read_bytes()
    for path in pathlib.Path(data_dir).rglob("*.array_record*")
  }


def test_rows_are_the_examples_in_order(rows):
  assert {split: len(examples) for split, examples in rows.items()} == SIZES
  for split, examples in rows.items():
    for index, row in enumerate(examples):
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


def test_more_than_tfds_shuffles_in_memory_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
  if importlib.util.find_spec("tensorflow"):
    pytest.skip("tensorflow is installed")
  with pytest.raises(DataError, match="Use fewer or shorter rows"):
    load_world(WORLD, SIZES, tmp_path)


def test_labels_end_with_the_first_bad_step(rows):
  flat = [row.labels for row in rows["train"]]
  assert all(0 not in labels[:-1] for labels in flat)
  # Half of the teachers have the misconception: both labels must occur.
  assert 20 < sum(labels[-1] for labels in flat) < 100


def test_prm_examples_are_good_up_to_a_random_mistake(tokenizer):
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
  # A fifth are right to the end; mistakes come early and late. If a mistake
  # happens to be right, or to repeat a step, the response is unfinished.
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


def test_a_second_load_generates_nothing(rows, data_dir, monkeypatch):
  def fail(*_):
    raise AssertionError("generated again")

  monkeypatch.setattr(arithmetic, "make_example", fail)
  assert load_world(WORLD, SIZES, data_dir) == rows


def test_the_number_of_examples_per_record_changes_none(
  rows, tmp_path, monkeypatch
):
  """Labels are stored in one column: a wrong count would shift them."""
  monkeypatch.setattr(dataset, "RECORD_EXAMPLES", 7)
  assert load_world(WORLD, SIZES, tmp_path) == rows


def test_a_split_that_is_not_requested_is_not_generated(
  rows, tmp_path, monkeypatch
):
  def fail(*_):
    raise AssertionError("generated")

  with monkeypatch.context() as patch:
    patch.setattr(dataset, "make_prm_example", fail)
    named = {split: SIZES[split] for split in arithmetic.SPLITS}
    expected = {split: rows[split] for split in named}
    assert load_world(WORLD, named, tmp_path) == expected
  monkeypatch.setattr(arithmetic, "make_example", fail)
  labelled = load_world(WORLD, {"labelled": 60}, tmp_path)
  assert labelled == {"labelled": rows["labelled"]}


def test_generated_again_the_files_have_the_same_bytes(
  rows, data_dir, tmp_path
):
  assert load_world(WORLD, SIZES, tmp_path) == rows
  again = records(tmp_path)
  assert len(again) == 3
  assert again.items() <= records(data_dir).items()


def test_another_world_or_size_is_another_data_set(rows, tmp_path):
  load_world(WORLD, {"train": 8, "held_out": 4, "labelled": 2}, tmp_path)
  other = dataclasses.replace(WORLD, seed=1)
  examples = load_world(
    other, {"train": 8, "held_out": 4, "labelled": 2}, tmp_path
  )
  assert examples["train"] != rows["train"][:8]
  assert (
    len(load_world(WORLD, {"train": 9, "held_out": 4, "labelled": 2}, tmp_path))
    == 3
  )
  assert len(records(tmp_path)) == 3 * 3


def test_preparing_uses_no_network_and_prints_nothing(
  tmp_path, monkeypatch, capfd
):
  def fail(*_, **__):
    raise AssertionError("used the network")

  monkeypatch.setattr(socket.socket, "connect", fail)
  monkeypatch.setattr(socket, "getaddrinfo", fail)
  load_world(WORLD, {"train": 3, "held_out": 2, "labelled": 2}, tmp_path)
  assert capfd.readouterr() == ("", "")


def test_an_interrupted_data_set_is_generated_again(
  rows, tmp_path, monkeypatch
):
  make = arithmetic.make_example

  def interrupt(world, split, index):
    if index == 20:
      raise KeyboardInterrupt
    return make(world, split, index)

  with monkeypatch.context() as patch:
    patch.setattr(arithmetic, "make_example", interrupt)
    with pytest.raises(KeyboardInterrupt):
      load_world(WORLD, SIZES, tmp_path)
  assert load_world(WORLD, SIZES, tmp_path) == rows


def test_of_two_runs_one_prepares_the_data_set(rows, tmp_path, monkeypatch):
  """The second run begins while the first one writes, and waits for it."""
  make, made, others = arithmetic.make_example, [], []

  def with_another_run(world, split, index):
    if index == 20 and not others:
      others.append(pool.submit(load_world, WORLD, SIZES, tmp_path))
    made.append((split, index))
    return make(world, split, index)

  monkeypatch.setattr(arithmetic, "make_example", with_another_run)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    assert load_world(WORLD, SIZES, tmp_path) == rows == others[0].result()
  assert made.count(("held_out", 3)) == 1


def test_what_a_killed_run_left_of_a_data_set_is_removed(rows, tmp_path):
  load_world(WORLD, {"train": 1}, tmp_path)
  (folder,) = (path.parent for path in tmp_path.rglob("1.*.*"))
  (folder / "incomplete.AB12CD_1.0.0").mkdir()
  (folder / "incomplete.AB12CD_1.0.0" / "file").touch()
  (tmp_path / f"incomplete.{'0' * 32}.metadata.json").touch()
  (tmp_path / "incomplete.notes").touch()  # The user's.
  assert load_world(WORLD, SIZES, tmp_path) == rows
  left = {path.name for path in tmp_path.rglob("incomplete*")}
  assert left == {"incomplete.notes"}


def test_an_error_that_leaves_no_data_set_is_raised(tmp_path, monkeypatch):
  def full(*_):
    raise OSError("No space left on device")

  monkeypatch.setattr(arithmetic, "make_example", full)
  with pytest.raises(DataError, match="No space left"):
    load_world(WORLD, SIZES, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "record"])
def test_damaged_files_raise_and_say_what_to_remove(tmp_path, damage):
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
  with pytest.raises(DataError, match="remove that folder"):
    dataset.load_world(world, sizes, tmp_path)
