"""Runs a function on many items in processes that may hang, crash or grow.

Workers are separate interpreters that are started once and receive items as
JSON lines over pipes. They are not forked, because the parent may run jax's
threads. Each item has a wall-clock limit, enforced here by killing the worker,
and a memory limit. The result of an item does not depend on the others. Workers
end with their parent, even if it is killed while an item hangs.
"""

import collections
import contextlib
import dataclasses
import inspect
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from pure_jax.host.distributed import preemption
from pure_jax.host.workers import child_guard

WORKER = pathlib.Path(__file__).parent / "worker.py"
START_SECONDS = 60.0  # For a worker to become ready.
STOP_SECONDS = 1.0  # For a worker to exit by itself.
CHECK_SECONDS = 1.0  # Between two looks for a signal.
MIN_SECONDS = 0.01  # Of an item: a shorter limit stops every comparison.
MAX_SECONDS = 3600.0  # For an item, at most.
MAX_WORKERS = 1024
MIB = 1 << 20


class PoolError(RuntimeError):
  """Workers cannot be started; the message has their output."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of an item.

  Attributes:
    value: result of the function; None if it did not return.
    timed_out: whether it was stopped at the time limit.
    failure: why there is no value: "raised NAME", "out of memory" or "crashed
      (status)". None if there is a value, or if it timed out.
  """

  value: Any = None
  timed_out: bool = False
  failure: str | None = None


class _Worker:
  """A worker process and its state."""

  def __init__(self, options: dict[str, Any]):
    self.process = subprocess.Popen(
      # -P keeps this folder, with its `metrics` and `data`, off sys.path.
      [sys.executable, "-P", str(WORKER), json.dumps(options)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,  # Until it is ready.
      start_new_session=True,  # Only the parent handles Ctrl-C.
    )
    child_guard.add(self.process.pid)
    self.ready = False
    self.item: int | None = None
    self.deadline = time.monotonic() + START_SECONDS
    self.received = b""

  def send(self, line: bytes) -> None:
    """Sends an item."""
    # The end of its output tells that a worker has exited.
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.write(line)
      self.process.stdin.flush()

  def receive(self) -> tuple[list[dict[str, Any]], bool]:
    """Returns (complete replies, whether the worker has exited)."""
    chunk = os.read(self.process.stdout.fileno(), 1 << 16)
    *lines, self.received = (self.received + chunk).split(b"\n")
    return [json.loads(line) for line in lines], not chunk

  def kill_and_read_errors(self) -> str:
    """Kills a worker that is not ready; returns the end of its stderr."""
    self._kill_group()
    text = self.process.stderr.read().decode(errors="replace").strip()
    return text[-2000:] or "it wrote nothing."

  def kill(self) -> int:
    """Kills it and its child processes; returns its exit status."""
    self._kill_group()
    return self.stop()

  def _kill_group(self) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.process.pid, signal.SIGKILL)

  def stop(self) -> int:
    """Closes the pipes and waits for its exit; returns its exit status."""
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()
    try:
      status = self.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
      return self.kill()
    child_guard.remove(self.process.pid)
    self.process.stdout.close()
    self.process.stderr.close()
    return status


def _stop(workers: list[_Worker]) -> None:
  """Stops idle workers and kills busy ones."""
  while workers:
    worker = workers.pop()
    if worker.ready and worker.item is None:
      worker.stop()
    else:
      worker.kill()


class WorkerPool:
  """Processes that run one function on many items, each within limits.

  POSIX only. Calls of `run` from several threads are run one after another.
  """

  def __init__(
    self,
    function: Callable[..., Any],
    setup: Callable[[], None] | None = None,
    *,
    workers: int = 2,
    timeout_seconds: float = 5.0,
    memory_bytes: int = 512 * MIB,
  ):
    """Starts the workers and waits until they are ready.

    Args:
      function: defined at the top level of a file. Workers load that file
        without running the outermost package around it; it should import
        little. Arguments and result must be JSON values.
      setup: a function of the same file, called once in each worker before its
        first item, outside the limits: imports, caches. None calls nothing.
      workers: processes, at least 1.
      timeout_seconds: wall-clock limit of an item, `MIN_SECONDS` to
        `MAX_SECONDS`.
      memory_bytes: by how much an item may raise its worker's memory, at
        least 16 MiB. Exact on Linux; elsewhere only the address space is
        limited, if the system supports that.

    Raises:
      ValueError: if a limit is out of range, or the function is not at the top
        level of a file.
      PoolError: if a worker does not become ready; the others are stopped.
    """
    valid_timeout = MIN_SECONDS <= timeout_seconds <= MAX_SECONDS
    if workers < 1 or not valid_timeout or memory_bytes < 16 * MIB:
      raise ValueError(
        f"{workers} workers, {timeout_seconds} s and {memory_bytes} bytes an "
        f"item: at least 1, {MIN_SECONDS:g} to {MAX_SECONDS:g} s and at least "
        "16 MiB are needed."
      )
    self.timeout_seconds = timeout_seconds
    self._options = {
      "source": _source_of(function),
      "module": function.__module__,
      "function": function.__name__,
      "setup": None if setup is None else setup.__name__,
      "memory_bytes": memory_bytes,
    }
    if setup is not None and _source_of(setup) != self._options["source"]:
      raise ValueError(f"{setup} is not in the file of {function}.")
    if os.name != "posix":
      raise PoolError("Worker processes need a POSIX system.")
    self._lock = threading.Lock()
    self._workers: list[_Worker] = []
    # Also runs when the interpreter exits.
    self._finalizer = weakref.finalize(self, _stop, self._workers)
    self._selector = selectors.DefaultSelector()
    try:
      for _ in range(workers):
        self._start_worker()
      while not all(worker.ready for worker in self._workers):
        self._step()
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> "WorkerPool":
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def close(self) -> None:
    """Stops the workers. Closing a closed pool does nothing."""
    self._finalizer()
    self._selector.close()

  def run(
    self,
    items: Sequence[Sequence[Any]],
    on_done: Callable[[], None] | None = None,
  ) -> list[Outcome]:
    """Runs the function on every item.

    Args:
      items: the arguments of each call, JSON-able.
      on_done: called after each item, in the order they end; None calls
        nothing.

    Returns:
      One outcome per item, in the order of the items. Empty for none.

    Raises:
      PoolError: if the pool is closed, or the replacement of a dead worker does
        not become ready. The pool is then closed.
      TypeError: if an item is not JSON-able.
    """
    lines = [json.dumps(list(item)).encode() + b"\n" for item in items]
    outcomes: list[Outcome | None] = [None] * len(lines)
    waiting = collections.deque(range(len(lines)))
    missing = len(lines)
    with self._lock:
      if not self._finalizer.alive:
        raise PoolError("The pool is closed.")
      try:
        # Some may have died between two calls.
        for worker in list(self._workers):
          if worker.process.poll() is not None:
            self._replace(worker, worker.kill)
        while missing:
          preemption.raise_received()
          for worker in self._workers:
            if waiting and worker.ready and worker.item is None:
              worker.item = waiting.popleft()
              worker.deadline = time.monotonic() + self.timeout_seconds
              worker.send(lines[worker.item])
          for index, outcome in self._step():
            outcomes[index] = outcome
            missing -= 1
            if on_done is not None:
              on_done()
      except BaseException:
        # Workers may have items of this call, whose replies must not reach the
        # next call.
        self.close()
        raise
    return outcomes

  def _start_worker(self) -> None:
    worker = _Worker(self._options)
    self._workers.append(worker)
    self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)

  def _replace(self, worker: _Worker, end: Callable[[], int]) -> int:
    """Ends a worker and starts another; returns the status of the old one."""
    self._selector.unregister(worker.process.stdout)
    self._workers.remove(worker)
    status = end()
    self._start_worker()
    return status

  def _step(self) -> list[tuple[int, Outcome]]:
    """Waits for a reply, a deadline or a second; returns ended items."""
    done = []
    busy = [w for w in self._workers if not w.ready or w.item is not None]
    until = min(worker.deadline for worker in busy)
    seconds = min(max(0.0, until - time.monotonic()), CHECK_SECONDS)
    for key, _ in self._selector.select(seconds):
      done += self._receive(key.data)
    for worker in list(self._workers):
      if time.monotonic() < worker.deadline:
        continue
      if not worker.ready:
        raise PoolError(
          f"A worker was not ready after {START_SECONDS:g} s: "
          f"{worker.kill_and_read_errors()}"
        )
      if worker.item is not None:
        done.append((worker.item, Outcome(timed_out=True)))
        self._replace(worker, worker.kill)
    return done

  def _receive(self, worker: _Worker) -> list[tuple[int, Outcome]]:
    """Receives replies of a worker; replaces it if it exits."""
    done = []
    replies, exited = worker.receive()
    for reply in replies:
      if "ready" in reply:
        worker.ready = True
        continue
      value, failure = reply.get("value"), reply.get("failure")
      done.append((worker.item, Outcome(value=value, failure=failure)))
      worker.item = None
      if reply["exits"]:
        self._replace(worker, worker.stop)
    if exited:
      if not worker.ready:
        raise PoolError(
          f"A worker ended before it began: {worker.kill_and_read_errors()}"
        )
      item = worker.item
      status = self._replace(worker, worker.kill)
      if item is not None:
        name = f"exit status {status}"
        if status < 0:
          name = signal.Signals(-status).name
        done.append((item, Outcome(failure=f"crashed ({name})")))
    return done


def _source_of(function: Callable[..., Any]) -> str:
  """Returns the file of a function at its top level."""
  source = inspect.getsourcefile(function)
  if source is None or function.__qualname__ != function.__name__:
    raise ValueError(
      f"{function} is not a function at the top level of a file, so a worker "
      "could not load it."
    )
  return str(pathlib.Path(source).resolve())
