"""Children end when their parent does, unless they were removed before."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from checkout import ROOT
from process_table import wait_until_none_is_alive

pytestmark = pytest.mark.skipif(
  not os.path.isdir("/proc/self"), reason="needs /proc"
)

# The lines of a parent of three children: of its group, the leader of a group
# that has started another process, and one that may outlive it. A fork of the
# parent outlives it, has the files that it had open, and a child of its own.
PARENT = f"""
import os, subprocess, sys, threading, time
sys.path.insert(0, {str(ROOT / "pure_jax" / "host" / "workers")!r})
import child_guard

def start(command, **options):
  process = subprocess.Popen(command, shell=True, **options)
  child_guard.add(process.pid)
  pids.append(process.pid)

pids = []
# The end of a thread must not end what it has started.
thread = threading.Thread(target=start, args=["exec sleep 100"])
thread.start()
thread.join()
start("sleep 100 & echo $! > {{file}}; wait", start_new_session=True)
start("exec sleep 100")
child_guard.remove(pids[-1])
fork = os.fork()
if not fork:
  start("exec sleep 100")
  child_guard.remove(pids[0])
  print(pids[-1], flush=True)
  time.sleep(100)
  os._exit(0)
print(*pids, fork, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
  ("how", "status"),
  [
    ("kill", -signal.SIGKILL),
    ("import os; os.abort()", -signal.SIGABRT),
    ("import os; os._exit(3)", 3),
    ("1 / 0", 1),
    ("", 0),
  ],
)
def test_children_end_with_their_parent(tmp_path, how, status):
  file = tmp_path / "pid"
  code = PARENT.replace("{file}", str(file)) + ("" if how == "kill" else how)
  parent = subprocess.Popen(
    [sys.executable, "-S", "-c", code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )
  lines = [parent.stdout.readline().split() for _ in range(2)]
  of_fork, ending = sorted(([*map(int, line)] for line in lines), key=len)
  *ending, removed, fork = ending
  try:
    deadline = time.monotonic() + 8
    while not (file.exists() and file.read_text()):
      assert time.monotonic() < deadline
      time.sleep(0.01)
    if how == "kill":
      parent.kill()
    else:
      parent.stdin.write(b"\n")
      parent.stdin.flush()
    assert parent.wait(60) == status
    ending.append(int(file.read_text()))
    assert wait_until_none_is_alive(set(ending))
    for stays in (removed, fork, *of_fork):
      assert pathlib.Path(f"/proc/{stays}").exists()
    os.kill(fork, signal.SIGKILL)
    assert wait_until_none_is_alive(set(of_fork))
  finally:
    for stays in (removed, fork):
      os.kill(stays, signal.SIGKILL)
    parent.stdin.close()
    parent.stdout.close()


def test_every_file_that_leaves_a_process_running_has_it_guarded():
  """`subprocess.run` waits: what it starts is done in seconds or minutes."""
  starts = re.compile(r"Popen\(|multiprocessing|posix_spawn\(|os\.fork\(")
  texts = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in ("pure_jax", "experiments")
    for path in (ROOT / folder).rglob("*.py")
  }
  texts = {name: text for name, text in texts.items() if starts.search(text)}
  texts.pop("pure_jax/host/workers/child_guard.py")
  assert texts.keys() == {
    "pure_jax/host/workers/pool.py",
    "experiments/accelerator/resume.py",
    "experiments/accelerator/supervisor.py",
    "experiments/benchmarks/baselines/process.py",
    "experiments/compare_credit.py",
  }
  for name, text in texts.items():
    for call in ("child_guard.add(", "child_guard.remove("):
      assert text.count(call) == text.count("Popen("), name
