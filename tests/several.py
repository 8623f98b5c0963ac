"""Starts a script as several processes that meet on this machine."""

import os
import socket
import subprocess
import sys

from checkout import ROOT


def free_port():
  """A port that nobody listens on now."""
  with socket.create_server(("127.0.0.1", 0)) as listener:
    return listener.getsockname()[1]


def by_flags(count=2):
  """(words, variables) of each process that is told who it is."""
  words = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"]
  return [([*words, f"--process_id={i}"], {}) for i in range(count)]


def start(script, *words, meeting=None, devices=4):
  """Processes of `devices` fake CPU devices each: two, or as `meeting` says."""
  path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
  shared = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "PYTHONPATH": os.pathsep.join(path),
  }
  return [
    subprocess.Popen(
      [sys.executable, str(script), *words, *own],
      env=shared | variables,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for own, variables in meeting or by_flags()
  ]


def finish(processes, timeout=400):
  """(exit status, stdout, stderr) of each; kills what does not end."""
  try:
    ended = [process.communicate(timeout=timeout) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    (process.returncode, *texts)
    for process, texts in zip(processes, ended, strict=True)
  ]
