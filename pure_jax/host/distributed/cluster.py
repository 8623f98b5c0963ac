"""How one of several processes finds the others: by flags, or by a cluster."""

import dataclasses
import os
import re
import threading
from collections.abc import Mapping

import jax
from jax._src import distributed

from pure_jax.host.distributed.processes import (
  LOST_STATUS,
  ProcessesError,
  end_now,
)

_JAX_LATER_SECONDS = 60
_START_ALL = (
  "Start all of them, with the same coordinator and number and each with its "
  "own process_id; --processes=1 runs this one by itself."
)


@dataclasses.dataclass(frozen=True)
class Membership:
  """What a process knows of the others before it has met them.

  Attributes:
    coordinator: "host:port" of process 0, the same in every process; None
      leaves all three to jax's detection of the cluster.
    processes: how many there are. 1 alone is a process by itself, whatever
      cluster it was started in.
    process_id: which of them this is, from 0.
    connect_seconds: how long it waits for the others at the start.
    silence_seconds: without a sign of life for so long, a process counts as
      dead, and jax ends the others.
  """

  coordinator: str | None = None
  processes: int | None = None
  process_id: int | None = None
  connect_seconds: int = 300
  silence_seconds: int = 100

  def __post_init__(self):
    """Refuses half an answer, and one that cannot be.

    Raises:
      ProcessesError: naming what is missing or wrong.
    """
    named = (self.coordinator, self.processes, self.process_id)
    if self.is_alone or all(value is None for value in named):
      return
    if None in named:
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
  def is_alone(self) -> bool:
    """Whether this process was told to run by itself."""
    return self.processes == 1 and self.process_id in (None, 0)


def find_cluster(environment: Mapping[str, str]) -> str | None:
  """Which kind of cluster started this process as one of several.

  Only looks; jax's own detection then finds out who is who. It is not asked
  everywhere, because it asks the network on some machines.

  Args:
    environment: variables by name, such as `os.environ`; jax leaves a note in
      it when it is imported on a host of a TPU.

  Returns:
    A name for messages; None for a process by itself.

  >>> find_cluster({"SLURM_JOB_ID": "7"}) is None  # A shell, no task.
  True
  """

  def several(name: str) -> bool:
    return environment.get(name, "").isdigit() and int(environment[name]) > 1

  if several("OMPI_COMM_WORLD_SIZE"):
    return "Open MPI"
  if several("SLURM_NTASKS") and "SLURM_STEP_NODELIST" in environment:
    return "Slurm"
  if environment.get("TPU_ML_PLATFORM") == "JAX":
    return "Cloud TPU"
  indexed = "JOB_COMPLETION_INDEX" in environment
  return "Kubernetes" if indexed else None


def own_devices(environment: Mapping[str, str]) -> list[int] | None:
  """Which of the GPUs that it sees a task of Slurm takes for itself.

  jax's detection takes the i-th for the i-th task of a host. That is right
  where every task sees all GPUs (``--gpus-per-node``), and not where Slurm
  shows each its own, or where one task is to have all.

  Args:
    environment: variables by name, such as `os.environ`.

  Returns:
    Places among the visible GPUs; None leaves it to jax.

  >>> one = {"SLURM_PROCID": "3", "CUDA_VISIBLE_DEVICES": "3"}
  >>> own_devices(one), own_devices({"CUDA_VISIBLE_DEVICES": "0,1"})
  ([0], None)
  """
  visible = environment.get("CUDA_VISIBLE_DEVICES", "")
  if "SLURM_PROCID" not in environment or not visible:
    return None
  count = len(visible.split(","))
  tasks = re.fullmatch(
    r"(\d+)(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
  )
  alone = tasks is not None and tasks[1] == "1"
  return [*range(count)] if count == 1 or alone else None


def connect(membership: Membership) -> str | None:
  """Joins the other processes, where there are any.

  Call it before anything starts a jax backend. A process by itself connects
  to nothing.

  Args:
    membership: who this is, or nothing, which leaves it to the cluster.

  Returns:
    Host name or address of process 0; None for a process by itself.

  Raises:
    ProcessesError: if the others cannot be met.
  """
  if membership.is_alone:
    return None
  cluster = "what you named"
  if membership.coordinator is None:
    cluster = find_cluster(os.environ)
    if cluster is None:
      return None
  # Training agrees by itself on when to stop (`host.distributed.preemption`).
  jax.config.update("jax_enable_preemption_service", False)
  # jax aborts where it does not meet the others in time: this comes before it.
  waiting = threading.Timer(
    membership.connect_seconds,
    end_now,
    [
      f"error: the processes did not meet by {cluster} within "
      f"{membership.connect_seconds} s. {_START_ALL}",
      LOST_STATUS,
    ],
  )
  waiting.daemon = True
  waiting.start()
  try:
    jax.distributed.initialize(
      membership.coordinator,
      membership.processes,
      membership.process_id,
      None if membership.coordinator else own_devices(os.environ),
      # Named by hand, a process has all devices of its host.
      cluster_detection_method="deactivate" if membership.coordinator else None,
      initialization_timeout=membership.connect_seconds + _JAX_LATER_SECONDS,
      heartbeat_timeout_seconds=membership.silence_seconds,
    )
  # jax raises ValueError for what its detection lacks, RuntimeError for an
  # address that cannot be reached, and what a cluster's interface raises.
  except Exception as error:
    raise ProcessesError(
      f"The processes could not meet by {cluster}: {error}\n{_START_ALL}"
    ) from error
  finally:
    waiting.cancel()
  # jax does not say in public what its detection found.
  found = membership.coordinator or distributed.global_state.coordinator_address
  return found.rpartition(":")[0].strip("[]")
