"""How processes find each other, and the message if they do not.

`test_two_processes.py` starts clusters as Slurm and Open MPI do.
"""

import os

import jax
import local_cluster
import pytest
from checkout import ROOT

from pure_jax.host.distributed import cluster, processes

SCRIPT = ROOT / "experiments" / "train_pure.py"
CONFIG = ROOT / "experiments" / "configs" / "arithmetic.py"


@pytest.mark.parametrize(
  ("environment", "expected"),
  [
    ({}, None),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, None),  # A shell, not a task.
    ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"}, "Slurm"),
    ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}, None),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ({"TPU_ML_PLATFORM": "JAX"}, "Cloud TPU"),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # A single pod.
    (
      {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
      "Kubernetes",
    ),
  ],
)
def test_detects_the_launcher_by_its_variables(environment, expected):
  assert cluster._detect_cluster(environment) == expected


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
def test_a_slurm_task_takes_its_own_gpus(visible, tasks, expected):
  environment = {"SLURM_PROCID": "2", "SLURM_STEP_TASKS_PER_NODE": tasks}
  environment["CUDA_VISIBLE_DEVICES"] = visible
  assert cluster._slurm_local_devices(environment) == expected
  del environment["SLURM_PROCID"]  # Not started by srun.
  assert cluster._slurm_local_devices(environment) is None


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
def test_an_incomplete_cluster_config_is_an_error(given, message):
  with pytest.raises(processes.ProcessesError, match=message):
    cluster.ClusterConfig(*given)


@pytest.mark.parametrize(
  ("given", "environment"),
  [
    ({}, {}),
    ({"processes": 1}, {"OMPI_COMM_WORLD_SIZE": "2"}),
  ],
)
def test_a_single_process_does_not_connect(given, environment, monkeypatch):
  monkeypatch.setattr(os, "environ", environment)

  def fail(*args, **kwargs):
    raise AssertionError("jax.distributed.initialize was called")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  assert cluster.connect(cluster.ClusterConfig(**given)) is None


def test_a_process_that_meets_no_other_ends_with_a_message(tmp_path):
  flags = ["--coordinator=127.0.0.1:1", "--processes=2", "--process_id=1"]
  ((status, _, stderr),) = local_cluster.finish(
    local_cluster.start(
      SCRIPT,
      f"--config={CONFIG}:smoke",
      f"--workdir={tmp_path / 'run'}",
      "--connect_timeout_seconds=1",
      cluster=[(flags, {})],
    )
  )
  assert status == processes.PROCESS_LOST_STATUS
  assert "did not meet" in stderr and "Start all of them" in stderr
  assert "Traceback" not in stderr and not (tmp_path / "run").exists()
