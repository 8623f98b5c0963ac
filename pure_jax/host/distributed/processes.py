"""Several processes as one program: how they agree.

Each process has devices of its own; together they run the same functions over
arrays that live on all of them (`jax.distributed`). Every process must take
the same steps in the same order: what one of them decides alone, because it
alone looks at a file, the others have to be told.
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

_Result = TypeVar("_Result")
_Plain = TypeVar("_Plain")

# A file that one host has written may take so long to appear on another.
SHARED_SECONDS = 30.0
_SIGN_FILE = ".processes"

# Exit status of a process whose partner is gone: sysexits' "unavailable".
LOST_STATUS = 69

_FINE = "fine"
_FOREVER_MS = 7 * 24 * 3600 * 1000
_TURN = itertools.count()  # Every process takes the same turns.


class ProcessesError(RuntimeError):
  """Processes that cannot run together; the message says what to do."""


def end_now(message: str, status: int) -> None:
  """Ends this process from any thread, whatever it is waiting for.

  Args:
    message: a line for stderr; "" for none.
    status: its exit status.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  if message:
    with contextlib.suppress(OSError):
      os.write(2, f"{message}\n".encode())
  os._exit(status)


def is_process_zero() -> bool:
  """Whether this is the process that writes logs. Starts the jax backend."""
  return jax.process_index() == 0


def _exchange(text: str | None, senders: range) -> list[str]:
  """What some processes say, in all of them.

  Through jax's key-value store, not through devices: those give up on a
  partner that has something to do for half a minute (gloo), and must be
  idle. A partner that has died ends the wait by ending this process.
  """
  client = distributed.global_state.client
  place = f"pure_jax/{next(_TURN)}"
  if text is not None:
    client.key_value_set(f"{place}/{jax.process_index()}", text)
  return [
    client.blocking_key_value_get(f"{place}/{sender}", _FOREVER_MS)
    for sender in senders
  ]


def on_process_zero(action: Callable[[], _Result]) -> _Result | None:
  """Process 0 does something; then all go on, or none does.

  Every process must call it. Alone, it is a plain call.

  Args:
    action: what to do; only process 0 calls it.

  Returns:
    What it returned, in process 0; None in the others.

  Raises:
    ProcessesError: in the others, if it failed; process 0 raises what it
      raised.
  """
  if jax.process_count() == 1:
    return action()
  if not is_process_zero():
    if _exchange(None, range(1)) != [_FINE]:
      raise ProcessesError("Process 0 cannot go on; its own log says why.")
    return None
  try:
    result = action()
  except BaseException:
    _exchange("failed", range(0))
    raise
  _exchange(_FINE, range(0))
  return result


def broadcast_from_zero(answer: Callable[[], _Plain]) -> _Plain:
  """Process 0's answer to a question, in every process.

  Every process must call it: two that look at a file at two times may see two
  things. Alone, it is a plain call.

  Args:
    answer: the question; only process 0 asks it. Something JSON-like.

  Returns:
    The answer.
  """
  if jax.process_count() == 1:
    return answer()
  mine = json.dumps(answer()) if is_process_zero() else None
  return json.loads(_exchange(mine, range(1))[0])


def check_all(complaint: str | None) -> None:
  """All processes go on, or each says that one of them cannot.

  Every process must call it.

  Args:
    complaint: what is wrong in this process; None if nothing is.

  Raises:
    ProcessesError: with the first process's complaint.
  """
  count = jax.process_count()
  if count == 1:
    said = [complaint or _FINE]
  else:
    said = _exchange(complaint or _FINE, range(count))
  for process, words in enumerate(said):
    if words != _FINE:
      raise ProcessesError(f"Process {process}: {words}")


def check_same(text: str, what: str) -> None:
  """Refuses to go on where processes were started for different runs.

  Every process must call it.

  Args:
    text: what must be equal in all of them.
    what: its name in the message.

  Raises:
    ProcessesError: if that of one process is not that of process 0.
  """
  if jax.process_count() == 1:
    return
  digest = hashlib.sha256(text.encode()).hexdigest()
  check_all(
    None
    if broadcast_from_zero(lambda: digest) == digest
    else f"{what} differ from those of process 0: start all processes with the "
    "same command, on the same files."
  )


def check_shared(folder: str | os.PathLike) -> None:
  """Refuses a folder that is not the same one in every process.

  Every process must call it.

  Args:
    folder: which process 0 can write to.

  Raises:
    ProcessesError: if what process 0 writes there is not seen elsewhere.
  """
  if jax.process_count() == 1:
    return
  path = pathlib.Path(folder) / _SIGN_FILE
  sign = broadcast_from_zero(lambda: secrets.token_hex(16))
  on_process_zero(lambda: path.write_text(sign))
  deadline = time.monotonic() + SHARED_SECONDS
  while not (seen := _holds(path, sign)) and time.monotonic() < deadline:
    time.sleep(0.1)
  check_all(
    None
    if seen
    else f"what process 0 writes to {folder} is not there. All processes need "
    "one file system: name a folder that they share."
  )
  on_process_zero(path.unlink)


def _holds(path: pathlib.Path, content: str) -> bool:
  """Whether a file is there, and holds just that."""
  try:
    return path.read_text() == content
  except OSError:
    return False
