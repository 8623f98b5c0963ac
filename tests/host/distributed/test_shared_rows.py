"""Rows of a batch among processes: each made, read and labelled where it is."""

import json

import jax
import numpy as np
import pytest
import several
from checkout import TESTS

from pure_jax.host.distributed import shared_rows
from pure_jax.parallel import sharding

SCRIPT = TESTS / "several_rows.py"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
  """What two processes found, see `several_rows`."""
  folder = tmp_path_factory.mktemp("shared")
  ended = several.finish(several.start(SCRIPT, f"rows:{folder}"))
  for status, _, stderr in ended:
    assert status == 0, stderr
  # Gloo, a library in C++, talks on stdout as well.
  return [json.loads(out.strip().splitlines()[-1]) for _, out, _ in ended]


def test_each_process_makes_the_rows_of_its_devices(said):
  first, second = ([rows["asked"] for rows in p["rows"]] for p in said)
  low, high, everything = [*range(8)], [*range(8, 16)], [*range(16)]
  assert first == [[low], [low], [everything]]
  assert second == [[high], [high], [everything]]


def test_every_row_is_judged_by_one_process(said):
  """In the last layout both hold all rows: labelled twice, a time-out in one
  of them would leave two verdicts in what should be one array.
  """
  for process in said:
    shares = [rows["shares"] for rows in process["rows"]]
    low, high = [*range(8)], [*range(8, 16)]
    assert shares[:2] == [[low, high]] * 2
    # Two row shards, each shared by both.
    assert shares[2] == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, *high[4:]]]


def test_rows_of_two_processes_take_turns(said):
  """Each compared its rows with those of one loop, see `take_turns`."""
  first, second = (process["turns"] for process in said)
  assert first == second
  # Places were free at different times, or turns would say little.
  assert len(first) == 10 and len({*first}) > 3


def test_what_one_cannot_do_ends_all(said):
  first, second = (process["agree"] for process in said)
  assert first[:2] == second[:2]
  assert first[0] == "Process 1: no disk"
  assert first[1].startswith("Process 1: The configs differ from those of")
  assert first[2] == "no room"
  assert second[2] == "Process 0 cannot go on; its own log says why."
  assert first[3:] == [None, 0, {"first": 0}]
  assert second[3:] == [None, None, {"first": 0}]


def test_a_folder_that_is_not_the_same_one_everywhere_is_refused(said):
  """On disks of their own, each process would train and save another run."""
  for process in said:
    apart, together = process["share"]
    assert apart.startswith("Process 1: what process 0 writes to ")
    assert "is not there. All processes need one file system" in apart
    assert together is None


def test_one_process_makes_and_reads_all_rows():
  layout = sharding.make_layout(2, 4)
  place = sharding.batch_sharding(layout)
  values = {"x": np.arange(48).reshape(16, 3), "y": np.arange(16) / 3}
  (mine,) = shared_rows.shares(place, 16)
  np.testing.assert_array_equal(mine, np.arange(16))
  made = shared_rows.make_rows(
    place, 16, lambda rows: jax.tree.map(lambda x: x[rows], values)
  )
  assert made["x"].sharding == place
  back = shared_rows.read_rows(made, mine)
  np.testing.assert_array_equal(back["x"], values["x"])
  some = shared_rows.read_rows(made, np.asarray([3, 11]))
  np.testing.assert_array_equal(some["x"], values["x"][[3, 11]])
  assert shared_rows.gather_rows(place, 16, values) is values
