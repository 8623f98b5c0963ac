"""How processes find each other, and what they say where they do not."""

import json
import os

import jax
import pytest
import several
from checkout import ROOT, TESTS

from pure_jax.host.distributed import cluster, processes

SCRIPT = ROOT / "experiments" / "train_pure.py"
CONFIG = ROOT / "experiments" / "configs" / "arithmetic.py"


@pytest.mark.parametrize(
  ("environment", "found"),
  [
    ({}, None),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, None),  # No task: a shell.
    ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"}, "Slurm"),
    ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}, None),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ({"TPU_ML_PLATFORM": "JAX"}, "Cloud TPU"),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # A pod by itself.
    (
      {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
      "Kubernetes",
    ),
  ],
)
def test_a_cluster_is_looked_for_where_it_left_signs(environment, found):
  assert cluster.find_cluster(environment) == found


@pytest.mark.parametrize(
  ("visible", "tasks", "expected"),
  [
    ("0,1,2,3", "4(x2)", None),  # jax: the i-th for the i-th.
    ("2", "4(x2)", [0]),  # jax would take the third of one.
    ("0,1,2,3", "1(x2)", [0, 1, 2, 3]),  # jax would leave three idle.
    ("0,1,2,3", "1", [0, 1, 2, 3]),
    ("0,1,2,3", "4,2", None),  # Hosts that differ.
    ("0,1", "", None),
    ("", "1(x2)", None),  # No GPU was asked for.
  ],
)
def test_a_task_of_slurm_takes_the_gpus_that_are_its_own(
  visible, tasks, expected
):
  environment = {"SLURM_PROCID": "2", "SLURM_STEP_TASKS_PER_NODE": tasks}
  environment["CUDA_VISIBLE_DEVICES"] = visible
  assert cluster.own_devices(environment) == expected
  del environment["SLURM_PROCID"]  # Not started by srun.
  assert cluster.own_devices(environment) is None


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (("a:1", None, 0), "Give all of coordinator"),
    ((None, 2, None), "Give all of coordinator"),
    (("a", 2, 0), "host:port, not 'a'"),
    (("a:b", 2, 0), "host:port, not 'a:b'"),
    (("a:1", 2, 2), "counted from 0"),
  ],
)
def test_half_an_answer_is_refused(given, message):
  with pytest.raises(processes.ProcessesError, match=message):
    cluster.Membership(*given)


@pytest.mark.parametrize(
  ("given", "environment"),
  [
    ({}, {}),
    ({"processes": 1}, {"OMPI_COMM_WORLD_SIZE": "2"}),
  ],
)
def test_a_process_by_itself_connects_to_nothing(
  given, environment, monkeypatch
):
  monkeypatch.setattr(os, "environ", environment)

  def refuse(*unused, **also):
    raise AssertionError("asked jax to connect")

  monkeypatch.setattr(jax.distributed, "initialize", refuse)
  assert cluster.connect(cluster.Membership(**given)) is None


def slurm(number):
  return {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(number),
    "SLURM_LOCALID": str(number),
  }


def open_mpi(number):
  return {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": str(number),
    "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
  }


@pytest.mark.parametrize("launcher", [slurm, open_mpi])
def test_jax_finds_the_others_by_what_a_launcher_left(launcher):
  """Without a flag, over the variables that the two set for each task."""
  port = {"JAX_COORDINATOR_PORT": str(several.free_port())}
  meeting = [([], launcher(number) | port) for number in range(2)]
  script = TESTS / "several_rows.py"
  ended = several.finish(several.start(script, "agrees", meeting=meeting))
  for status, said, stderr in ended:
    assert status == 0, stderr
    assert json.loads(said.strip().splitlines()[-1])[5] == {"first": 0}


def test_a_process_without_partners_ends_in_a_sentence(tmp_path):
  lonely = ["--coordinator=127.0.0.1:1", "--processes=2", "--process_id=1"]
  (ended,) = several.finish(
    several.start(
      SCRIPT,
      f"--config={CONFIG}:smoke",
      f"--workdir={tmp_path / 'run'}",
      "--connect_seconds=1",
      meeting=[(lonely, {})],
    )
  )
  assert ended[0] == processes.LOST_STATUS
  assert "did not meet" in ended[2] and "Start all of them" in ended[2]
  assert "Traceback" not in ended[2] and not (tmp_path / "run").exists()
