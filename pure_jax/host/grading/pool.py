"""A function run on many items in processes that may hang, crash or swell.

Workers are separate interpreters, started once and fed over pipes with JSON
lines. They are never forked: the parent may run jax's threads. Each item has
its own wall-clock limit, enforced from here by killing the worker, and its own
memory limit; whatever becomes of an item, the others keep their results.
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

WORKER = pathlib.Path(__file__).parent / "worker.py"
START_SECONDS = 60.0  # For a worker to say that it is ready.
STOP_SECONDS = 1.0  # For a worker to leave by itself.
ORPHAN_SECONDS = 2.0  # A hung worker outlives a killed parent by no more.
MAX_SECONDS = 3600.0  # For an item, at most.
MIB = 1 << 20


class PoolError(RuntimeError):
  """Workers cannot be started; the message carries what they said."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of an item.

  Attributes:
    value: what the function returned; None where it did not return.
    timed_out: whether it was stopped at the time limit.
    failure: why there is no value otherwise: "raised NAME", "out of memory"
      or "crashed (status)". None where all went well, or the time ran out.
  """

  value: Any = None
  timed_out: bool = False
  failure: str | None = None


class _Worker:
  """A process and what is known of it."""

  def __init__(self, options: dict[str, Any]):
    self.process = subprocess.Popen(
      # -P keeps this folder, with its `metrics` and `data`, off sys.path.
      [sys.executable, "-P", str(WORKER), json.dumps(options)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,  # Until it is ready.
      start_new_session=True,  # Ctrl-C is for the parent to handle.
    )
    self.ready = False
    self.item: int | None = None
    self.deadline = time.monotonic() + START_SECONDS
    self.received = b""

  def send(self, line: bytes) -> None:
    """Gives it an item."""
    # A worker that is gone is found out by the end of its output.
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.write(line)
      self.process.stdin.flush()

  def receive(self) -> tuple[list[dict[str, Any]], bool]:
    """(replies that are complete, whether the worker is gone)."""
    chunk = os.read(self.process.stdout.fileno(), 1 << 16)
    *lines, self.received = (self.received + chunk).split(b"\n")
    return [json.loads(line) for line in lines], not chunk

  def last_words(self) -> str:
    """Ends one that is not ready; returns the end of what it wrote."""
    self._kill_group()
    text = self.process.stderr.read().decode(errors="replace").strip()
    return text[-2000:] or "it said nothing."

  def kill(self) -> int:
    """Ends it, and what it may have started; returns its status."""
    self._kill_group()
    return self.leave()

  def _kill_group(self) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.process.pid, signal.SIGKILL)

  def leave(self) -> int:
    """Closes the pipes and waits for its end; returns its status."""
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()
    try:
      status = self.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
      return self.kill()
    self.process.stdout.close()
    self.process.stderr.close()
    return status


def _stop(workers: list[_Worker]) -> None:
  """Ends all workers: those that wait leave, those that work are killed."""
  while workers:
    worker = workers.pop()
    if worker.ready and worker.item is None:
      worker.leave()
    else:
      worker.kill()


class GradingPool:
  """Processes that run one function on many items, each within limits.

  POSIX only. One call of `run` at a time; another thread's call waits.
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
      function: defined at the top level of a file. Workers load that file by
        its path, without the package around it; it should import little.
        Arguments and result are what JSON can carry.
      setup: of the same file, called once in each worker before its first
        item, outside the limits: imports, caches. None calls nothing.
      workers: processes, at least 1.
      timeout_seconds: wall-clock limit of an item, above 0, at most
        `MAX_SECONDS`.
      memory_bytes: by how much an item may raise its worker's memory, at
        least 16 MiB. Exact on Linux; elsewhere only the address space is
        limited, where the system does that.

    Raises:
      ValueError: if a limit is not one, or the function cannot be found by
        its name in a file.
      PoolError: if a worker does not get ready; the others are stopped.
    """
    in_time = 0 < timeout_seconds <= MAX_SECONDS
    if workers < 1 or not in_time or memory_bytes < 16 * MIB:
      raise ValueError(
        f"{workers} workers, {timeout_seconds} s and {memory_bytes} bytes an "
        f"item: at least 1, above 0 up to {MAX_SECONDS:g} s and at least "
        "16 MiB are needed."
      )
    self.timeout_seconds = timeout_seconds
    self._options = {
      "source": _source_of(function),
      "function": function.__name__,
      "setup": None if setup is None else setup.__name__,
      "start_seconds": START_SECONDS + ORPHAN_SECONDS,
      "alarm_seconds": timeout_seconds + ORPHAN_SECONDS,
      "memory_bytes": memory_bytes,
    }
    if setup is not None and _source_of(setup) != self._options["source"]:
      raise ValueError(f"{setup} is not in the file of {function}.")
    if os.name != "posix":
      raise PoolError("Grading in processes needs a POSIX system.")
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

  def __enter__(self) -> "GradingPool":
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the workers. Closing twice does nothing."""
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
      on_done: called after each item, in whatever order they end; None calls
        nothing.

    Returns:
      One outcome per item, in the order of the items. Empty for none.

    Raises:
      PoolError: if the pool is closed, or a worker that should replace a dead
        one does not get ready. The pool is closed then.
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
        self._replace_the_dead()
        while missing:
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
        # Workers may hold items of this call: none must reach the next one.
        self.close()
        raise
    return outcomes

  def _start_worker(self) -> None:
    worker = _Worker(self._options)
    self._workers.append(worker)
    self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)

  def _replace(self, worker: _Worker, end: Callable[[], int]) -> int:
    """Ends a worker and starts the next; returns the status of the old one."""
    self._selector.unregister(worker.process.stdout)
    self._workers.remove(worker)
    status = end()
    self._start_worker()
    return status

  def _replace_the_dead(self) -> None:
    """Whoever died between two calls is not given an item."""
    for worker in list(self._workers):
      if worker.process.poll() is not None:
        self._replace(worker, worker.kill)

  def _step(self) -> list[tuple[int, Outcome]]:
    """Waits until something happens; returns what that ended, by index."""
    done = []
    waited_for = [w for w in self._workers if not w.ready or w.item is not None]
    until = min(worker.deadline for worker in waited_for)
    for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
      done += self._hear(key.data)
    for worker in list(self._workers):
      if time.monotonic() < worker.deadline:
        continue
      if not worker.ready:
        said = worker.last_words()
        raise PoolError(
          f"A worker was not ready after {START_SECONDS:g} s: {said}"
        )
      if worker.item is not None:
        done.append((worker.item, Outcome(timed_out=True)))
        self._replace(worker, worker.kill)
    return done

  def _hear(self, worker: _Worker) -> list[tuple[int, Outcome]]:
    """Takes what a worker sent; replaces it if it is gone or leaves."""
    done = []
    replies, gone = worker.receive()
    for reply in replies:
      if "ready" in reply:
        worker.ready = True
        continue
      value, failure = reply.get("value"), reply.get("failure")
      done.append((worker.item, Outcome(value=value, failure=failure)))
      worker.item = None
      if reply["leaves"]:
        self._replace(worker, worker.leave)
    if gone:
      if not worker.ready:
        raise PoolError(
          f"A worker ended before it began: {worker.last_words()}"
        )
      item = worker.item
      status = self._replace(worker, worker.kill)
      if item is not None and status == -signal.SIGALRM:
        # Its own alarm, because this process was held up for longer.
        done.append((item, Outcome(timed_out=True)))
      elif item is not None:
        failure = f"crashed ({_status_name(status)})"
        done.append((item, Outcome(failure=failure)))
    return done


def _source_of(function: Callable[..., Any]) -> str:
  """The file of a function that can be found there by its name."""
  source = inspect.getsourcefile(function)
  if source is None or function.__qualname__ != function.__name__:
    raise ValueError(
      f"{function} is not a function at the top level of a file, so a worker "
      "could not load it."
    )
  return str(pathlib.Path(source).resolve())


def _status_name(status: int) -> str:
  """A process's status, in words."""
  if status >= 0:
    return f"exit status {status}"
  return signal.Signals(-status).name
