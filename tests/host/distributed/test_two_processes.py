"""Two processes share batches and decisions, and one notices the other's death.

Only two clusters are started, each by what a launcher sets for its processes:
`rows_cluster` by Open MPI, `agreement_cluster` by Slurm. See
`cluster_member.py`, the script that they run.
"""

import time

import jax
import numpy as np
import pytest
from checkout import SUPPORT
from local_cluster import (
  DIED,
  OBSERVED,
  by_launcher,
  by_open_mpi,
  by_slurm,
  finish,
  printed,
  start,
)

from pure_jax.host.distributed import global_batch, processes
from pure_jax.parallel import sharding

SCRIPT = SUPPORT / "cluster_member.py"
LOW, HIGH = [*range(8)], [*range(8, 16)]


def run_cluster(launcher, what):
  """Returns what both processes observed, and how the survivor ended."""
  ended = finish(start(SCRIPT, what, cluster=by_launcher(launcher)))
  seconds = time.time()
  (victim,) = (i for i, (_, out, _) in enumerate(ended) if DIED in out)
  status, _, stderr = ended[1 - victim]
  survivor = {
    "victim": victim,
    "seconds": seconds - printed(ended[victim][1], DIED),
    "status": status,
    "stderr": stderr,
  }
  return [printed(out, OBSERVED) for _, out, _ in ended], survivor


@pytest.fixture(scope="module")
def rows_cluster(tmp_path_factory):
  return run_cluster(by_open_mpi, f"rows:{tmp_path_factory.mktemp('shared')}")


@pytest.fixture(scope="module")
def agreement_cluster():
  return run_cluster(by_slurm, "agree")


def test_each_process_makes_the_rows_of_its_devices(rows_cluster):
  first, second = (
    [layout["made"] for layout in observed["rows"]]
    for observed in rows_cluster[0]
  )
  assert first == [[LOW], [LOW], [LOW + HIGH]]
  assert second == [[HIGH], [HIGH], [LOW + HIGH]]


def test_every_row_is_graded_by_one_process(rows_cluster):
  """In the last layout both processes hold all rows. If both graded a row, a
  time-out in one of them would give the row two verdicts.
  """
  for observed in rows_cluster[0]:
    owned = [layout["owned"] for layout in observed["rows"]]
    assert owned[:2] == [[LOW, HIGH]] * 2
    # Two row shards, each held by both processes.
    assert owned[2] == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, *HIGH[4:]]]


def test_two_processes_decode_continuously_what_one_decodes(rows_cluster):
  """Each process compared its rows with one loop: see `decode_continuously`."""
  first, second = (observed["lengths"] for observed in rows_cluster[0])
  assert first == second
  # Slots became free at different times, or the comparison would say little.
  assert len(first) == 10 and len({*first}) > 3


def test_folders_that_differ_between_processes_are_an_error(rows_cluster):
  """On disks of their own, each process would train and save another run."""
  for observed in rows_cluster[0]:
    separate, shared = observed["folders"]
    assert separate.startswith("Process 1: what process 0 writes to ")
    assert "is not there. All processes need one file system" in separate
    assert shared is None


def test_an_error_of_one_process_ends_all(agreement_cluster):
  first, second = agreement_cluster[0]
  assert first[:2] == second[:2]
  assert first[0] == "Process 1: no disk"
  assert first[1].startswith("Process 1: The configs differ from those of")
  assert first[2] == "no room"
  assert second[2] == "Process 0 cannot go on; its own log says why."
  assert first[3:] == [None, 0, {"first": 0}]
  assert second[3:] == [None, None, {"first": 0}]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_a_message(
  victim, rows_cluster, agreement_cluster
):
  """By itself jax takes 100 s after the death of process 1, and aborts with
  status -6.
  """
  survivor = (agreement_cluster, rows_cluster)[victim][1]
  assert survivor["victim"] == victim
  assert survivor["seconds"] < 30
  assert survivor["status"] == processes.PROCESS_LOST_STATUS
  stderr = survivor["stderr"]
  assert f"process {victim} died; nothing can go on" in stderr
  assert "the same command" in stderr and "Traceback" not in stderr


def test_one_process_makes_and_reads_all_rows():
  layout = sharding.make_layout(2, 4)
  rows_sharding = sharding.batch_sharding(layout)
  values = {"x": np.arange(48).reshape(16, 3), "y": np.arange(16) / 3}
  (owned,) = global_batch.owned_rows(rows_sharding, 16)
  np.testing.assert_array_equal(owned, np.arange(16))
  batch = global_batch.make_rows(
    rows_sharding, 16, lambda rows: jax.tree.map(lambda x: x[rows], values)
  )
  assert batch["x"].sharding == rows_sharding
  whole = global_batch.read_rows(batch, owned)
  np.testing.assert_array_equal(whole["x"], values["x"])
  two_rows = global_batch.read_rows(batch, np.asarray([3, 11]))
  np.testing.assert_array_equal(two_rows["x"], values["x"][[3, 11]])
  assert global_batch.gather_rows(rows_sharding, 16, values) is values
