"""A process whose partner is gone says so and ends, whatever it waits for."""

import queue
import socket
import threading
import time
import types

import pytest
import several
from checkout import TESTS

from pure_jax.host.distributed import processes, watchdog

SCRIPT = TESTS / "several_rows.py"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_in_its_own_words(victim):
  """By itself jax takes 100 s where the second died, and aborts: status -6."""
  started = several.start(SCRIPT, f"dies:{victim}")
  assert started[victim].wait(timeout=120) == -9
  began = time.monotonic()
  status, _, stderr = several.finish(started)[1 - victim]
  assert time.monotonic() - began < 30
  assert status == processes.LOST_STATUS
  assert f"process {victim} died; nothing can go on" in stderr
  assert "the same command" in stderr and "Traceback" not in stderr


def test_a_process_that_failed_in_its_own_words_ends_the_other():
  started = several.start(SCRIPT, "fails:1")
  assert started[1].wait(timeout=120) == 3
  status, _, stderr = several.finish(started)[0]
  assert status == processes.LOST_STATUS
  assert "process 1 ended with an error, which its log tells" in stderr


def test_process_0_tells_all_others_who_died(monkeypatch):
  """Only process 0 is connected to all. Three processes, as three threads;
  a stranger at the door of process 0 is none of them.
  """
  who, ended = threading.local(), [queue.Queue() for _ in range(3)]
  answered, answers, strangers = threading.Event(), [], []

  def broadcast_from_zero(answer):
    if who.index == 0:
      port, nonce = answer()
      stranger = socket.create_connection(("127.0.0.1", port))
      stranger.sendall(bytes(20))
      strangers.append(stranger)
      answers.append((port, nonce))
      answered.set()
    assert answered.wait(30)
    return answers[0]

  cluster = types.SimpleNamespace(
    process_count=lambda: 3, process_index=lambda: who.index
  )
  monkeypatch.setattr(watchdog, "jax", cluster)
  monkeypatch.setattr(watchdog, "broadcast_from_zero", broadcast_from_zero)
  joined = {}

  def join(index):
    who.index = index
    joined[index] = watchdog.Peers("127.0.0.1", ended[index].put)

  threads = [threading.Thread(target=join, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert sorted(joined) == [0, 1, 2]
  (dying,) = joined[2]._connections
  dying.shutdown(socket.SHUT_RDWR)  # What the kernel does for the dead.
  assert [ended[i].get(timeout=30) for i in (0, 1)] == ["process 2 died"] * 2
  for stranger in strangers:
    stranger.close()
