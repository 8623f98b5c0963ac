"""Ends this process as soon as another process of the run has died.

Without it, a process that waits in a collective for a dead one waits until
jax's heartbeats time out after a minute or two, and then aborts with a stack
trace. Here every process keeps a TCP connection to process 0. The kernel
closes the connections of a process however it dies, so most deaths are seen at
once. If a whole host vanishes, the kernel's keepalive probes fail; they do not
depend on how busy Python is.
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
from pure_jax.host.distributed.cluster import ClusterConfig, connect
from pure_jax.host.distributed.processes import (
  PROCESS_LOST_STATUS,
  broadcast_from_zero,
  exit_immediately,
)

_LOG = logging.getLogger(__name__)

CONNECT_SECONDS = 30.0
# How long the other processes may take to report an error of their own after
# one of them reported its failure.
GRACE_SECONDS = 10.0
# Probes of a silent connection: after 10 s, then every 5 s, 6 in all.
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6))
_NONCE_BYTES = 16
# The last message of a process, and process 0's report of a lost one.
_DONE, _FAILED, _LOST = b"d", b"f", b"l"


def _exit_after_loss(reason: str) -> None:
  """Ends this process without waiting for a collective that never ends."""
  exit_immediately(
    f"error: process {jax.process_index()}: {reason}; nothing can go on "
    "without it. Start all processes again with the same command: the run "
    "continues from its last checkpoint.",
    PROCESS_LOST_STATUS,
  )


class Watchdog:
  """Watches the connections between process 0 and the others.

  Use it as a context manager: leaving it tells the other processes whether
  this one succeeded or failed. If two processes cannot connect, a warning is
  logged, and only jax's heartbeats notice when one of them dies.
  """

  def __init__(
    self, address: str, on_loss: Callable[[str], None] = _exit_after_loss
  ):
    """Connects to the other processes. Starts the jax backend.

    Every process must call it.

    Args:
      address: host name or address at which all processes reach process 0.
      on_loss: called in a thread, with a text that says how another process
        ended.
    """
    self._on_loss, self._leaving, self._is_first = on_loss, False, False
    self._connections: list[socket.socket] = []
    self._threads: list[threading.Thread] = []
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
      return
    listener = _listen(count) if index == 0 else None
    port, nonce = broadcast_from_zero(
      lambda: [listener.getsockname()[1], secrets.token_hex(_NONCE_BYTES)]
    )
    if index == 0:
      connections = _accept(listener, count, bytes.fromhex(nonce))
    else:
      connections = _reach(address, port, bytes.fromhex(nonce), index)
    self._connections = list(connections.values())
    for process, connection in connections.items():
      thread = threading.Thread(
        target=self._watch,
        args=(process, connection),
        name=f"watchdog of process {process}",
        daemon=True,
      )
      thread.start()
      self._threads.append(thread)
    self._is_first = index == 0

  def __enter__(self) -> "Watchdog":
    return self

  def __exit__(self, kind: type | None, *unused: object) -> None:
    self._leaving = True
    preempted = kind is not None and issubclass(kind, preemption.Preempted)
    self._send(_DONE if kind is None or preempted else _FAILED)
    if kind is KeyboardInterrupt and self._is_first:
      # jax aborts a process that outlives process 0. The others end after the
      # same step, or after their time for errors of their own.
      deadline = time.monotonic() + GRACE_SECONDS + 2
      for thread in self._threads:
        thread.join(max(0.0, deadline - time.monotonic()))

  def _send(self, message: bytes) -> None:
    """Sends a message to all connected processes that still run."""
    for connection in self._connections:
      with contextlib.suppress(OSError):
        connection.sendall(message)

  def _watch(self, process: int, connection: socket.socket) -> None:
    """Waits for the last message of a process, or for a closed connection."""
    message = b""
    with contextlib.suppress(OSError):
      message = connection.recv(1)
    if message == _DONE or self._leaving:
      with contextlib.suppress(OSError):
        connection.recv(1)  # Returns when that process has ended.
      return
    if message == _FAILED:
      time.sleep(GRACE_SECONDS)
      reason = f"process {process} ended with an error, which its log tells"
    elif message == _LOST:
      with contextlib.suppress(OSError):
        process = int.from_bytes(connection.recv(4), "big")
      reason = f"process {process} died"
    else:
      self._send(_LOST + process.to_bytes(4, "big"))
      reason = f"process {process} died"
    if not self._leaving:
      self._on_loss(reason)


def _listen(count: int) -> socket.socket:
  """Opens a listener on all addresses of this host."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=count
    )
  return socket.create_server(("", 0), backlog=count)


def _accept(
  listener: socket.socket, count: int, nonce: bytes
) -> dict[int, socket.socket]:
  """Accepts the other processes; returns connections by process index."""
  connections: dict[int, socket.socket] = {}
  deadline = time.monotonic() + CONNECT_SECONDS
  with listener:
    while len(connections) < count - 1:
      listener.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        connection, _ = listener.accept()
        connection.settimeout(CONNECT_SECONDS)
        hello = connection.recv(_NONCE_BYTES + 4, socket.MSG_WAITALL)
      except OSError as error:
        missing = sorted({*range(1, count)} - connections.keys())
        _warn(f"processes {missing} did not connect to process 0", error)
        break
      if hello[:_NONCE_BYTES] != nonce:  # Not a process of this run.
        connection.close()
        continue
      process = int.from_bytes(hello[_NONCE_BYTES:], "big")
      connections[process] = _keep_alive(connection)
  return connections


def _reach(
  address: str, port: int, nonce: bytes, index: int
) -> dict[int, socket.socket]:
  """Connects to process 0; returns the connection by process index."""
  try:
    connection = socket.create_connection((address, port), CONNECT_SECONDS)
    connection.sendall(nonce + index.to_bytes(4, "big"))
  except OSError as error:
    _warn(f"process {index} cannot reach process 0 at {address}:{port}", error)
    return {}
  return {0: _keep_alive(connection)}


def _warn(what: str, error: OSError) -> None:
  """Warns that a pair of processes is not watched."""
  _LOG.warning(
    "%s (%s): the death of either is noticed late, by jax's heartbeats. Open "
    "their ports to each other.",
    what,
    error,
  )


def _keep_alive(connection: socket.socket) -> socket.socket:
  """Makes the kernel probe whether the other host is still up."""
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _KEEPALIVE:
    if hasattr(socket, name):  # macOS lacks some of them.
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return connection


@contextlib.contextmanager
def join_cluster(config: ClusterConfig) -> Iterator[None]:
  """Runs the enclosed code as one of several processes, or as the only one.

  Args:
    config: names the other processes, or leaves them to the launcher.

  Raises:
    ProcessesError: if this process cannot connect to the others.
  """
  address = connect(config)
  if address is None:
    yield
    return
  with Watchdog(address):
    try:
      yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
      # jax raises one of them if another process has ended; the watchdog
      # reports that and ends this one before. Subclasses are not jax's.
      if type(error) in (jax.errors.JaxRuntimeError, ValueError):
        time.sleep(GRACE_SECONDS + 1)
      raise


def exit_process(status: int) -> None:
  """Ends this process after an error, without waiting for the others.

  At a regular exit jax would wait for the other processes, which may wait for
  this one.

  Args:
    status: the exit status.
  """
  if not jax.distributed.is_initialized():
    sys.exit(status)
  exit_immediately("", status)
