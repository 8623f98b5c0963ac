"""Starts a script as several processes that form a cluster on this machine."""

import json
import os
import socket
import subprocess
import sys

from checkout import ROOT

# What the lines that `cluster_member.py` prints begin with.
OBSERVED = "observed: "
DIED = "died at: "


def free_port():
  """Returns a port on which nothing listens now."""
  with socket.create_server(("127.0.0.1", 0)) as listener:
    return listener.getsockname()[1]


def by_flags(count=2):
  """Names the cluster by flags; returns (arguments, variables) per process."""
  cluster = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"]
  return [([*cluster, f"--process_id={i}"], {}) for i in range(count)]


def by_slurm(process):
  """Returns the variables that Slurm sets for one of two tasks."""
  return {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(process),
    "SLURM_LOCALID": str(process),
  }


def by_open_mpi(process):
  """Returns the variables that Open MPI sets for one of two processes."""
  return {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": str(process),
    "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
  }


def by_launcher(launcher):
  """As `by_flags`, without a flag, by the variables of a launcher."""
  port = {"JAX_COORDINATOR_PORT": str(free_port())}
  return [([], launcher(process) | port) for process in range(2)]


def start(script, *arguments, cluster=None, devices=4):
  """Starts processes with fake CPU devices, two by default.

  Args:
    script: path of the Python file.
    *arguments: of every process.
    cluster: (arguments, variables) of each process; by default `by_flags()`.
    devices: per process.

  Returns:
    A `subprocess.Popen` for each.
  """
  path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
  shared = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "PYTHONPATH": os.pathsep.join(path),
  }
  return [
    subprocess.Popen(
      [sys.executable, str(script), *arguments, *own],
      env=shared | variables,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for own, variables in cluster or by_flags()
  ]


def finish(processes, timeout=400):
  """Waits for processes and kills what does not end in time.

  Returns:
    (exit status, stdout, stderr) of each.
  """
  try:
    outputs = [process.communicate(timeout=timeout) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    (process.returncode, *output)
    for process, output in zip(processes, outputs, strict=True)
  ]


def printed(stdout, prefix):
  """Returns the JSON that a process printed after a prefix."""
  (line,) = (x for x in stdout.splitlines() if x.startswith(prefix))
  return json.loads(line.removeprefix(prefix))
