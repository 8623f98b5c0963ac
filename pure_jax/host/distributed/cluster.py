"""How a process joins the others of its run: by flags or by a launcher."""

import dataclasses
import os
import re
import threading
from collections.abc import Mapping

import jax
from jax._src import distributed

from pure_jax.host.distributed.processes import (
  PROCESS_LOST_STATUS,
  ProcessesError,
  exit_immediately,
)

# jax aborts with a stack trace at its own time limit, so ours comes first.
_JAX_EXTRA_SECONDS = 60
_START_ALL = (
  "Start all of them, with the same coordinator and number and each with its "
  "own process_id; --processes=1 runs this one by itself."
)


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
  """How a process finds the other processes of its run.

  Attributes:
    coordinator: "host:port" of process 0, the same in every process. If
      coordinator, processes and process_id are all None, jax detects them.
    processes: number of processes. 1 runs a single process, whichever launcher
      started it.
    process_id: index of this process, from 0.
    connect_timeout_seconds: how long this process waits for the others at the
      start.
    heartbeat_timeout_seconds: a process that sends no heartbeat for so long
      counts as dead, and jax ends the others.
  """

  coordinator: str | None = None
  processes: int | None = None
  process_id: int | None = None
  connect_timeout_seconds: int = 300
  heartbeat_timeout_seconds: int = 100

  def __post_init__(self):
    """Validates that all of coordinator, processes and process_id are given."""
    given = (self.coordinator, self.processes, self.process_id)
    if self.is_single_process or all(value is None for value in given):
      return
    if None in given:
      raise ProcessesError(
        "Give all of coordinator (host:port of process 0), processes and "
        f"process_id, or none of them; got {self.coordinator}, "
        f"{self.processes} and {self.process_id}."
      )
    host, _, port = self.coordinator.rpartition(":")
    if not host or not port.isdigit():
      raise ProcessesError(
        f"The coordinator is named as host:port, not {self.coordinator!r}."
      )
    if not 0 <= self.process_id < self.processes:
      raise ProcessesError(
        f"process_id={self.process_id} of processes={self.processes}: they "
        "are counted from 0."
      )

  @property
  def is_single_process(self) -> bool:
    """Whether the config has a single process."""
    return self.processes == 1 and self.process_id in (None, 0)


def _detect_cluster(environment: Mapping[str, str]) -> str | None:
  """Names the launcher that started this process as one of several, else None.

  This only reads variables; jax's own detection then finds the coordinator and
  the process's index. jax's detection is not called in every case, because on
  some machines it sends requests over the network. jax itself sets one of the
  variables when it is imported on a TPU host.

  >>> _detect_cluster({"SLURM_JOB_ID": "7"}) is None  # A shell, not a task.
  True
  """

  def is_above_one(name: str) -> bool:
    return environment.get(name, "").isdigit() and int(environment[name]) > 1

  if is_above_one("OMPI_COMM_WORLD_SIZE"):
    return "Open MPI"
  if is_above_one("SLURM_NTASKS") and "SLURM_STEP_NODELIST" in environment:
    return "Slurm"
  if environment.get("TPU_ML_PLATFORM") == "JAX":
    return "Cloud TPU"
  return "Kubernetes" if "JOB_COMPLETION_INDEX" in environment else None


def _slurm_local_devices(environment: Mapping[str, str]) -> list[int] | None:
  """Chooses the visible GPUs of a Slurm task; None leaves the choice to jax.

  jax gives the i-th GPU to the i-th task of a host. That is right if every
  task sees all GPUs (``--gpus-per-node``). It is wrong if Slurm shows each
  task only its own GPU, or if the only task of a host owns all of them.

  >>> one = {"SLURM_PROCID": "3", "CUDA_VISIBLE_DEVICES": "3"}
  >>> _slurm_local_devices(one)
  [0]
  >>> _slurm_local_devices({"CUDA_VISIBLE_DEVICES": "0,1"}) is None
  True
  """
  visible = environment.get("CUDA_VISIBLE_DEVICES", "")
  if "SLURM_PROCID" not in environment or not visible:
    return None
  count = len(visible.split(","))
  tasks = re.fullmatch(
    r"(\d+)(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
  )
  is_only_task = tasks is not None and tasks[1] == "1"
  return [*range(count)] if count == 1 or is_only_task else None


def connect(config: ClusterConfig) -> str | None:
  """Joins the other processes of the run, if there are any.

  Call it before anything starts a jax backend. Returns the host name or address
  of process 0, or None for a single process.

  Args:
    config: names the other processes, or leaves them to the launcher.

  Raises:
    ProcessesError: if this process cannot connect to the others.
  """
  if config.is_single_process:
    return None
  source = "what you named"
  if config.coordinator is None:
    source = _detect_cluster(os.environ)
    if source is None:
      return None
  # The training loop agrees on when to stop (`host.distributed.preemption`).
  jax.config.update("jax_enable_preemption_service", False)
  timer = threading.Timer(
    config.connect_timeout_seconds,
    exit_immediately,
    [
      f"error: the processes did not meet by {source} within "
      f"{config.connect_timeout_seconds} s. {_START_ALL}",
      PROCESS_LOST_STATUS,
    ],
  )
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      config.coordinator,
      config.processes,
      config.process_id,
      None if config.coordinator else _slurm_local_devices(os.environ),
      # A process named by flags has all devices of its host.
      cluster_detection_method="deactivate" if config.coordinator else None,
      initialization_timeout=config.connect_timeout_seconds
      + _JAX_EXTRA_SECONDS,
      heartbeat_timeout_seconds=config.heartbeat_timeout_seconds,
    )
  # jax raises ValueError if its detection finds too little, RuntimeError for
  # an unreachable address, and passes on errors of a launcher's interface.
  except Exception as error:
    raise ProcessesError(
      f"The processes could not meet by {source}: {error}\n{_START_ALL}"
    ) from error
  finally:
    timer.cancel()
  # jax has no public way to read the address that its detection returned.
  address = config.coordinator or distributed.global_state.coordinator_address
  return address.rpartition(":")[0].strip("[]")
