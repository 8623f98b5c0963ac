"""Notices at once when another process of the run has ended without a word.

A process that waits for another one's part of a sum waits for ever. jax ends
it when heartbeats stay out, after a minute or two and with a stack trace.
This watch sees most deaths in the moment they happen: every process keeps a
connection to process 0, and the kernel closes those of a process however it
dies. A host that vanishes is noticed by keepalive probes, which the kernel
sends by itself, however busy Python is.
"""

import contextlib
import logging
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from pure_jax.host.distributed import preemption
from pure_jax.host.distributed.cluster import Membership, connect
from pure_jax.host.distributed.processes import (
  LOST_STATUS,
  broadcast_from_zero,
  end_now,
)

_LOG = logging.getLogger(__name__)

CONNECT_SECONDS = 30.0
# A partner that failed in its own words leaves the others so long to do so.
GRACE_SECONDS = 10.0
# Probes of a silent connection: after 10 s, every 5 s, 6 of them.
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6))
_NONCE_BYTES = 16
_DONE, _FAILED, _LOST = b"d", b"f", b"l"


def _end(reason: str) -> None:
  """Ends this process without waiting for anything that it waits for."""
  end_now(
    f"error: process {jax.process_index()}: {reason}; nothing can go on "
    "without it. Start all processes again with the same command: the run "
    "continues from its last checkpoint.",
    LOST_STATUS,
  )


class Peers:
  """The connections of this process to the others. Use as a context manager.

  Leaving it says goodbye; leaving it by an error says so as well. Where
  two processes cannot connect, a line on stderr says so, and a death between
  them is noticed by jax's heartbeats alone.
  """

  def __init__(self, address: str, end: Callable[[str], None] = _end):
    """Connects. Every process must call it; starts the jax backend.

    Args:
      address: host name or address at which all reach process 0.
      end: called in a thread with what has happened.
    """
    self._end, self._leaving = end, False
    self._connections: list[socket.socket] = []
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
      return
    listener = _listen(count) if index == 0 else None
    port, nonce = broadcast_from_zero(
      lambda: [listener.getsockname()[1], secrets.token_hex(_NONCE_BYTES)]
    )
    if index == 0:
      watched = _accept(listener, count, bytes.fromhex(nonce))
    else:
      watched = _reach(address, port, bytes.fromhex(nonce), index)
    self._connections = list(watched.values())
    for number, connection in watched.items():
      threading.Thread(
        target=self._watch,
        args=(number, connection),
        name=f"peer {number}",
        daemon=True,
      ).start()

  def __enter__(self) -> "Peers":
    return self

  def __exit__(self, kind: type | None, *unused: object) -> None:
    self._leaving = True
    stopped = kind is not None and issubclass(kind, preemption.Preempted)
    self._tell(_DONE if kind is None or stopped else _FAILED)

  def _tell(self, word: bytes) -> None:
    """Sends a word to whoever is still there."""
    for connection in self._connections:
      with contextlib.suppress(OSError):
        connection.sendall(word)

  def _watch(self, number: int, connection: socket.socket) -> None:
    """Waits for a partner's last word, or for its end without one."""
    word = b""
    with contextlib.suppress(OSError):
      word = connection.recv(1)
    if word == _DONE or self._leaving:
      return
    if word == _FAILED:
      time.sleep(GRACE_SECONDS)
      reason = f"process {number} ended with an error, which its log tells"
    elif word == _LOST:
      with contextlib.suppress(OSError):
        number = int.from_bytes(connection.recv(4), "big")
      reason = f"process {number} died"
    else:
      self._tell(_LOST + number.to_bytes(4, "big"))
      reason = f"process {number} died"
    if not self._leaving:
      self._end(reason)


def _listen(count: int) -> socket.socket:
  """A listener on all addresses of this host."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=count
    )
  return socket.create_server(("", 0), backlog=count)


def _accept(
  listener: socket.socket, count: int, nonce: bytes
) -> dict[int, socket.socket]:
  """The connection of every other process, by its number."""
  found: dict[int, socket.socket] = {}
  deadline = time.monotonic() + CONNECT_SECONDS
  with listener:
    while len(found) < count - 1:
      listener.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        connection, _ = listener.accept()
        connection.settimeout(CONNECT_SECONDS)
        hello = connection.recv(_NONCE_BYTES + 4, socket.MSG_WAITALL)
      except OSError as error:
        missing = sorted({*range(1, count)} - found.keys())
        _warn(f"processes {missing} did not connect to process 0", error)
        break
      if hello[:_NONCE_BYTES] != nonce:  # Somebody else.
        connection.close()
        continue
      number = int.from_bytes(hello[_NONCE_BYTES:], "big")
      found[number] = _keep_alive(connection)
  return found


def _reach(
  address: str, port: int, nonce: bytes, index: int
) -> dict[int, socket.socket]:
  """The connection to process 0, by its number."""
  try:
    connection = socket.create_connection((address, port), CONNECT_SECONDS)
    connection.sendall(nonce + index.to_bytes(4, "big"))
  except OSError as error:
    _warn(f"process {index} cannot reach process 0 at {address}:{port}", error)
    return {}
  return {0: _keep_alive(connection)}


def _warn(what: str, error: OSError) -> None:
  """Says what is not watched."""
  _LOG.warning(
    "%s (%s): the death of either is noticed late, by jax's heartbeats. Open "
    "their ports to each other.",
    what,
    error,
  )


def _keep_alive(connection: socket.socket) -> socket.socket:
  """Lets the kernel ask whether the other host is there, and wait for it."""
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _KEEPALIVE:
    if hasattr(socket, name):  # Names differ between systems.
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return connection


@contextlib.contextmanager
def joined(membership: Membership) -> Iterator[None]:
  """Runs what is inside as one of several processes, or by itself.

  Args:
    membership: who this process is.

  Yields:
    Nothing.

  Raises:
    ProcessesError: if the others cannot be met.
  """
  address = connect(membership)
  if address is None:
    yield
    return
  with Peers(address):
    try:
      yield
    except jax.errors.JaxRuntimeError:
      # If that was a partner's death, the watch says so and ends this.
      time.sleep(GRACE_SECONDS)
      raise


def leave(status: int) -> None:
  """Ends this process after an error, without waiting for the others.

  Args:
    status: its exit status.
  """
  if not jax.distributed.is_initialized():
    sys.exit(status)
  end_now("", status)  # At exit jax waits for those that wait for this one.
