"""The pool: hangs, crashes, memory, order, reuse of workers, no orphans."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import worker_faults
from checkout import ROOT, SUPPORT
from process_table import children_of, is_alive, wait_until_none_is_alive

from pure_jax.host.distributed import preemption
from pure_jax.host.workers import pool as pool_module
from pure_jax.host.workers.pool import MIB, Outcome, PoolError, WorkerPool

LIMIT = 0.5  # Seconds an item has; the machine may be busy.


@pytest.fixture(scope="module")
def pool():
  with WorkerPool(
    worker_faults.act, timeout_seconds=20.0, memory_bytes=64 * MIB
  ) as pool:
    yield pool


@pytest.fixture(scope="module")
def hasty_pool():
  with WorkerPool(worker_faults.act, timeout_seconds=LIMIT) as pool:
    yield pool


def run_between(pool, *items):
  """Outcomes of items between others, whose results must be right."""
  mixed = [("return", -1)]
  for number, item in enumerate(items):
    mixed += [item, ("return", number), ("return", [number])]
  outcomes = pool.run(mixed)
  # A late or repeated reply would shift every later result.
  assert outcomes[0] == Outcome(value=-1)
  for number in range(len(items)):
    assert outcomes[3 * number + 2] == Outcome(value=number)
    assert outcomes[3 * number + 3] == Outcome(value=[number])
  return outcomes[1::3]


def test_a_hang_times_out_and_harms_no_other_item(hasty_pool):
  begin = time.monotonic()
  hangs = [("sleep",), ("spin",), ("hold the lock",)]
  outcomes = run_between(hasty_pool, *hangs)
  assert outcomes == [Outcome(timed_out=True)] * 3
  # Three hangs on two workers: two limits, and their replacements' starts.
  assert 2 * LIMIT <= time.monotonic() - begin < 2 * LIMIT + 5


def test_ctrl_c_does_not_wait_for_an_item_that_hangs(monkeypatch):
  """A loop only notes it, and an item may take an hour."""
  monkeypatch.setattr(pool_module, "CHECK_SECONDS", 0.1)
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  begin = time.monotonic()
  try:
    with (
      pytest.raises(KeyboardInterrupt),
      preemption.raise_on_ctrl_c(),
      WorkerPool(
        worker_faults.act, workers=1, timeout_seconds=600
      ) as worker_pool,
      preemption.graceful_shutdown(),
    ):
      press = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
      press.start()
      worker_pool.run([("sleep",)])
  finally:
    signal.signal(signal.SIGINT, before)
  assert time.monotonic() - begin < 60


def test_a_crash_harms_no_other_item(pool):
  outcomes = run_between(
    pool, ("exit", 0), ("exit", 7), ("signal", int(signal.SIGSEGV)),
    ("signal", int(signal.SIGKILL)),
  )  # fmt: skip
  assert outcomes == [
    Outcome(failure="crashed (exit status 0)"),
    Outcome(failure="crashed (exit status 7)"),
    Outcome(failure="crashed (SIGSEGV)"),
    Outcome(failure="crashed (SIGKILL)"),
  ]


def test_an_exception_harms_no_other_item(pool):
  outcomes = run_between(
    pool, ("raise",), ("sys.exit",), ("recurse",), ("not json",)
  )
  assert outcomes == [
    Outcome(failure="raised ValueError"),
    Outcome(failure="raised SystemExit"),
    Outcome(failure="raised RecursionError"),
    Outcome(failure="raised TypeError"),
  ]


def test_running_out_of_memory_harms_no_other_item(pool):
  outcomes = run_between(
    pool,
    ("swell",),
    ("swell for a moment", 24 * MIB),  # Within the 64 MiB of an item.
    ("swell for a moment", 128 * MIB),  # Beyond, within the hard limit.
  )
  full = Outcome(failure="out of memory")
  assert outcomes == [full, Outcome(value=24 * MIB), full]


def test_out_of_memory_is_detected_if_a_library_swallows_the_error(pool):
  """Otherwise its value would be False: a wrong answer."""
  (outcome,) = run_between(pool, ("swell and say nothing",))
  assert outcome == Outcome(failure="out of memory")


def test_an_item_reaches_neither_pipe_of_its_worker(pool):
  assert run_between(pool, ("print",)) == [Outcome(value="")]


def test_child_processes_of_a_hung_item_are_killed(hasty_pool, tmp_path):
  file = tmp_path / "pid"
  outcomes = run_between(hasty_pool, ("start a child", str(file)))
  assert outcomes == [Outcome(timed_out=True)]
  assert wait_until_none_is_alive({int(file.read_text())})


def test_no_items_have_no_outcomes(pool):
  assert pool.run([]) == []


def test_results_keep_their_order_and_workers_are_reused():
  with WorkerPool(worker_faults.pid_after, workers=2) as pool:
    # The first item is the last to end.
    first = pool.run([(0.6,), *[(0.0,)] * 20])
    second = pool.run([(0.02,)] * 6)
  pids = [outcome.value for outcome in first]
  assert pids[0] not in pids[1:]
  assert len(set(pids)) == 2
  assert {outcome.value for outcome in second} == set(pids)


def test_outcomes_are_in_the_order_of_the_items(pool):
  items = [("return", number) for number in range(500)]
  values = [outcome.value for outcome in pool.run(items)]
  assert values == list(range(500))


@pytest.mark.parametrize(
  "value",
  ["\ud800 lone", "\0\n\r\u2028", "x" * (1 << 20), 1e300, None, {"a": [True]}],
  ids=["surrogate", "controls", "megabyte", "float", "none", "object"],
)
def test_values_of_any_kind_pass_the_pipe(pool, value):
  assert pool.run([("return", value)] * 3) == [Outcome(value=value)] * 3


def test_on_done_is_called_for_each_item(pool):
  ends = []
  pool.run([("return", 1), ("raise",), ("return", 2)], lambda: ends.append(1))
  assert len(ends) == 3


def test_an_error_of_the_caller_closes_the_pool():
  """A reply to the first call must not become one of the second."""
  pool = WorkerPool(worker_faults.echo, workers=1)

  def fail():
    raise KeyError("of the caller")

  with pytest.raises(KeyError, match="of the caller"):
    pool.run([(1,), (2,)], fail)
  with pytest.raises(PoolError, match="closed"):
    pool.run([(3,)])


def test_the_setup_runs_before_the_first_item():
  with WorkerPool(
    worker_faults.setup_was_done, worker_faults.note_the_start, workers=1
  ) as pool:
    assert pool.run([()]) == [Outcome(value="done")]


def test_a_system_that_limits_no_memory_has_workers():
  with WorkerPool(
    worker_faults.echo, worker_faults.refuse_to_limit_memory, workers=1
  ) as pool:
    assert pool.run([(3,)]) == [Outcome(value=3)]


@pytest.mark.parametrize(
  "setup, reason",
  [
    (worker_faults.die_at_start, "ended before it began: the reason"),
    (worker_faults.raise_at_start, "nothing to work with"),
  ],
)
def test_a_worker_that_cannot_start_raises(setup, reason):
  with pytest.raises(PoolError, match=reason):
    WorkerPool(worker_faults.echo, setup)


def test_a_worker_that_died_between_calls_is_replaced():
  with WorkerPool(worker_faults.pid_after, workers=1) as pool:
    (first,) = pool.run([(0.0,)])
    os.kill(first.value, signal.SIGKILL)
    time.sleep(0.1)
    (second,) = pool.run([(0.0,)])
  assert second.failure is None and second.value != first.value


def test_closing_ends_the_workers_and_may_be_repeated():
  pool = WorkerPool(worker_faults.pid_after)
  pids = [outcome.value for outcome in pool.run([(0.05,)] * 4)]
  pool.close()
  pool.close()
  assert not any(is_alive(pid) for pid in pids)
  with pytest.raises(PoolError, match="closed"):
    pool.run([])


@pytest.mark.parametrize(
  "arguments",
  [{"workers": 0}, {"timeout_seconds": 0.0}, {"timeout_seconds": float("nan")},
   {"timeout_seconds": 3601.0},
   {"memory_bytes": MIB}],
)  # fmt: skip
def test_invalid_limits_raise(arguments):
  with pytest.raises(ValueError, match=r"at least 1, 0\.01 to 3600 s"):
    WorkerPool(worker_faults.echo, **arguments)


def test_a_function_that_no_worker_can_load_raises():
  with pytest.raises(ValueError, match="top level"):
    WorkerPool(lambda: None)
  with pytest.raises(ValueError, match="not in the file"):
    WorkerPool(worker_faults.echo, textwrap.dedent)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_killed_parent_leaves_no_worker(tmp_path):
  """Neither idle nor hung ones, nor what they started, whatever the limit."""
  file = tmp_path / "pid"
  items = [("hold the lock",), ("start a child", str(file))]
  code = f"""
    import sys, types
    # Without the package, which loads jax.
    sys.modules["pure_jax"] = package = types.ModuleType("pure_jax")
    package.__path__ = [{str(ROOT / "pure_jax")!r}]
    sys.path.insert(0, {str(SUPPORT)!r})
    import worker_faults
    from pure_jax.host.workers.pool import WorkerPool
    pool = WorkerPool(worker_faults.act, workers=3, timeout_seconds=3600.0)
    print("ready", flush=True)
    pool.run({items!r})
    """
  parent = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert parent.stdout.readline() == b"ready\n"
  children = children_of(parent.pid)
  assert len(children) >= 3
  deadline = time.monotonic() + 8
  while not (file.exists() and file.read_text()):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  children.add(int(file.read_text()))
  parent.kill()
  parent.communicate()
  try:
    assert wait_until_none_is_alive(children)
  finally:
    for pid in filter(is_alive, children):
      os.kill(pid, signal.SIGKILL)


def test_a_parent_that_does_not_close_the_pool_exits_cleanly():
  code = f"""
    import sys
    sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]
    import worker_faults
    from pure_jax.host.workers.pool import WorkerPool
    pool = WorkerPool(worker_faults.pid_after)
    print(*(outcome.value for outcome in pool.run([(0.05,)] * 4)))
    """
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert not any(is_alive(int(pid)) for pid in done.stdout.split())


def test_workers_load_neither_jax_nor_this_library():
  """Otherwise each start would load jax, with its threads and memory."""
  with WorkerPool(worker_faults.loaded_packages, workers=1) as pool:
    (outcome,) = pool.run([()])
  assert not {"jax", "numpy", "pure_jax"} & set(outcome.value)
