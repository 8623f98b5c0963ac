"""Decisions and events on the host that all processes of a run share.

Each process has devices of its own. Together they run the same functions over
arrays that live on all devices (`jax.distributed`). Every process must take
the same steps in the same order, so a decision that depends on one process's
files or clock is made once and sent to the others.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import secrets
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import jax
from jax._src import distributed

from pure_jax.host.logs.visible import visible

_Result = TypeVar("_Result")
_Json = TypeVar("_Json")

# How long a file that one host wrote may take to appear on another host.
SHARED_FOLDER_SECONDS = 30.0
TOKEN_FILE = ".processes"  # A killed process leaves it.

# Exit status after another process of the run was lost: sysexits'
# EX_UNAVAILABLE.
PROCESS_LOST_STATUS = 69

_OK = "ok"
_NO_TIMEOUT_MS = 7 * 24 * 3600 * 1000
# Numbers the exchanges. All processes make the same ones in the same order.
_EXCHANGE_NUMBER = itertools.count()


class ProcessesError(RuntimeError):
  """Processes that cannot run together; the message says what to do."""


def exit_immediately(message: str, status: int) -> None:
  """Ends this process from any thread, even if the main thread is blocked.

  Args:
    message: a line for stderr; "" writes none.
    status: the exit status.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  if message:
    with contextlib.suppress(OSError):
      os.write(2, f"{visible(message)}\n".encode())
  os._exit(status)


def is_process_zero() -> bool:
  """Returns whether this process writes the logs. Starts the jax backend."""
  return jax.process_index() == 0


def _exchange(message: str | None, senders: range) -> list[str]:
  """Publishes this process's message and waits for those of the senders.

  `multihost_utils` would use the devices, which must be idle for it, and whose
  collectives (gloo) fail if a process is half a minute late. jax's key-value
  store has neither limit. If a sender dies, the watchdog ends this process.

  Args:
    message: to publish; None publishes nothing.
    senders: indices of the processes whose messages to read, in this order.
  """
  client = distributed.global_state.client
  prefix = f"pure_jax/{next(_EXCHANGE_NUMBER)}"
  if message is not None:
    client.key_value_set(f"{prefix}/{jax.process_index()}", message)
  return [
    client.blocking_key_value_get(f"{prefix}/{sender}", _NO_TIMEOUT_MS)
    for sender in senders
  ]


def on_process_zero(action: Callable[[], _Result]) -> _Result | None:
  """Runs an action on process 0 while the other processes wait for it.

  Every process must call it. A single process just calls the action. Process 0
  returns the action's result or raises its exception; the others return None.

  Args:
    action: called only by process 0.

  Raises:
    ProcessesError: in the other processes, if the action raised.
  """
  if jax.process_count() == 1:
    return action()
  if not is_process_zero():
    if _exchange(None, range(1)) != [_OK]:
      raise ProcessesError("Process 0 cannot go on; its own log says why.")
    return None
  try:
    result = action()
  except BaseException:
    _exchange("failed", range(0))
    raise
  _exchange(_OK, range(0))
  return result


def broadcast_from_zero(compute: Callable[[], _Json]) -> _Json:
  """Computes a value on process 0 and returns it in every process.

  Every process must call it. A value that depends on files must come from one
  process: two that read a file at different times may read different things.

  Args:
    compute: returns a JSON-like value; called only by process 0.
  """
  if jax.process_count() == 1:
    return compute()
  message = json.dumps(compute()) if is_process_zero() else None
  return json.loads(_exchange(message, range(1))[0])


def raise_on_any_error(error: str | None) -> None:
  """Raises in every process if one of them reports an error; all must call it.

  Args:
    error: text of the error of this process, or None.

  Raises:
    ProcessesError: with the error of the first process that has one.
  """
  count = jax.process_count()
  own = error or _OK
  reports = [own] if count == 1 else _exchange(own, range(count))
  for process, report in enumerate(reports):
    if report != _OK:
      raise ProcessesError(f"Process {process}: {report}")


def require_same(text: str, what: str) -> None:
  """Raises unless a text is equal in all processes, which must all call it.

  Args:
    text: the text that must be equal, such as a config as JSON.
    what: name of the text in the message, in the plural.

  Raises:
    ProcessesError: in every process, if one differs from process 0.
  """
  if jax.process_count() == 1:
    return
  digest = hashlib.sha256(text.encode()).hexdigest()
  is_same = broadcast_from_zero(lambda: digest) == digest
  raise_on_any_error(
    None
    if is_same
    else f"{what} differ from those of process 0: start all processes with the "
    "same command, on the same files."
  )


def require_shared_folder(folder: str | os.PathLike) -> None:
  """Raises unless a path is the same folder in all processes.

  Every process must call it. Process 0 writes a random token there, and the
  others look for it.

  Args:
    folder: a folder that process 0 can write to.

  Raises:
    ProcessesError: in every process, if one does not see the token.
  """
  if jax.process_count() == 1:
    return
  path = pathlib.Path(folder) / TOKEN_FILE
  token = broadcast_from_zero(lambda: secrets.token_hex(16))
  on_process_zero(lambda: path.write_text(token))
  deadline = time.monotonic() + SHARED_FOLDER_SECONDS
  while not (is_visible := _contains(path, token)):
    if time.monotonic() > deadline:
      break
    time.sleep(0.1)
  raise_on_any_error(
    None
    if is_visible
    else f"what process 0 writes to {folder} is not there. All processes need "
    "one file system: name a folder that they share."
  )
  on_process_zero(path.unlink)


def _contains(path: pathlib.Path, content: str) -> bool:
  """Returns whether the file exists with exactly this content."""
  try:
    return path.read_text() == content
  except OSError:
    return False
