"""The watchdog's connections, between threads that play three processes.

`test_two_processes.py` has the deaths of real processes.
"""

import contextlib
import queue
import socket
import threading
import types

import jax
import pytest

from pure_jax.host.distributed import preemption, watchdog
from pure_jax.host.text.tokenization import TokenizerError


@pytest.fixture
def watchdogs(monkeypatch):
  """Watchdogs of three processes, and the losses that each one reports.

  A stranger connects to process 0 first; it is not a process of the run.
  """
  thread_local, losses = threading.local(), [queue.Queue() for _ in range(3)]
  answered, answers, strangers = threading.Event(), [], []

  def broadcast_from_zero(compute):
    if thread_local.index == 0:
      port, nonce = compute()
      stranger = socket.create_connection(("127.0.0.1", port))
      stranger.sendall(bytes(20))
      strangers.append(stranger)
      answers.append((port, nonce))
      answered.set()
    assert answered.wait(30)
    return answers[0]

  fake_jax = types.SimpleNamespace(
    process_count=lambda: 3, process_index=lambda: thread_local.index
  )
  monkeypatch.setattr(watchdog, "jax", fake_jax)
  monkeypatch.setattr(watchdog, "broadcast_from_zero", broadcast_from_zero)
  monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.1)
  connected = {}

  def connect(index):
    thread_local.index = index
    connected[index] = watchdog.Watchdog("127.0.0.1", losses[index].put)

  threads = [threading.Thread(target=connect, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert sorted(connected) == [0, 1, 2]
  yield [connected[index] for index in range(3)], losses
  for stranger in strangers:
    stranger.close()


def test_process_0_tells_all_others_who_died(watchdogs):
  """Only process 0 is connected to all the others."""
  (_, _, dying), losses = watchdogs
  (connection,) = dying._connections
  connection.shutdown(socket.SHUT_RDWR)  # As the kernel does after a death.
  reasons = [losses[i].get(timeout=30) for i in (0, 1)]
  assert reasons == ["process 2 died"] * 2


def test_a_failed_process_ends_the_others(watchdogs):
  (first, second, _), losses = watchdogs
  with contextlib.suppress(ValueError), second:
    raise ValueError
  message = "ended with an error, which its log tells"
  assert losses[0].get(timeout=30) == f"process 1 {message}"
  with contextlib.suppress(ValueError), first:
    raise ValueError
  assert losses[2].get(timeout=30) == f"process 0 {message}"


@pytest.mark.parametrize("stopped_by", [None, preemption.Preempted])
def test_a_process_that_is_done_ends_no_other(watchdogs, stopped_by):
  (_, second, third), losses = watchdogs
  with contextlib.suppress(preemption.Preempted), second:
    if stopped_by is not None:
      raise stopped_by
  # Later than process 1, so that process 0 has handled its message.
  with contextlib.suppress(ValueError), third:
    raise ValueError
  assert losses[0].get(timeout=30).startswith("process 2 ended")
  assert losses[0].empty()


def test_process_0_stops_last_after_ctrl_c(watchdogs):
  """jax aborts, with its own stack trace, those that outlive process 0."""
  watched, _ = watchdogs
  stopped = []

  def stop(index):
    with contextlib.suppress(KeyboardInterrupt), watched[index]:
      raise KeyboardInterrupt
    stopped.append(index)
    for connection in watched[index]._connections:
      connection.shutdown(socket.SHUT_RDWR)

  first = threading.Thread(target=stop, args=(0,))
  first.start()
  first.join(0.1)
  stop(1)
  stop(2)
  first.join(30)
  assert stopped == [1, 2, 0]


@pytest.mark.parametrize(
  ("error", "waits"),
  [
    # Both are what jax raises if another process has ended.
    (jax.errors.JaxRuntimeError("Connection closed by peer"), True),
    (ValueError("UNKNOWN: Gloo AllGather failed"), True),
    (TokenizerError("no such file"), False),
  ],
)
def test_an_error_of_jax_waits_for_the_reason(monkeypatch, error, waits):
  waited = []
  monkeypatch.setattr(watchdog, "connect", lambda config: "address")
  monkeypatch.setattr(
    watchdog, "Watchdog", lambda address: contextlib.nullcontext()
  )
  monkeypatch.setattr(watchdog.time, "sleep", waited.append)
  with pytest.raises(type(error)), watchdog.join_cluster(None):
    raise error
  assert waited == [watchdog.GRACE_SECONDS + 1] * waits


def test_a_failed_process_does_not_wait_for_the_others(monkeypatch):
  """At a regular exit, jax waits for processes that may wait for this one."""
  exits = []
  monkeypatch.setattr(watchdog, "exit_immediately", lambda *x: exits.append(x))
  with pytest.raises(SystemExit) as ended:
    watchdog.exit_process(3)
  assert ended.value.code == 3 and not exits
  monkeypatch.setattr(watchdog.jax.distributed, "is_initialized", lambda: True)
  watchdog.exit_process(3)
  assert exits == [("", 3)]
