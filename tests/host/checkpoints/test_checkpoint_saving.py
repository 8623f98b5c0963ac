"""Checkpoints are saved while training goes on, complete or not at all."""

import re
import signal
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pure_jax.host.checkpoints import integrity
from pure_jax.host.checkpoints.checkpointer import CheckpointError, Checkpoints
from pure_jax.host.distributed import preemption


def make_state(seed, size=64):
  return {
    "w": jax.random.normal(jax.random.key(seed), (size, 32)),
    "step": jnp.int32(seed),
  }


def assert_same(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def names(folder):
  # Orbax before 0.11.21 appends a number to the name of an incomplete one.
  return sorted(
    re.sub(r"(checkpoint-tmp)-\d+$", r"\1", path.name)
    for path in folder.iterdir()
  )


@pytest.fixture
def gate(monkeypatch):
  """Makes the writing thread wait when all but the checksums is written.

  Yields an event that it has come so far, and an event to let it go on.
  """
  reached, opened = threading.Event(), threading.Event()
  write = integrity.write_checksums

  def wait_and_write(folder, exclude=()):
    reached.set()
    assert opened.wait(60)
    write(folder, exclude)

  monkeypatch.setattr(integrity, "write_checksums", wait_and_write)
  yield reached, opened
  opened.set()


def test_a_save_returns_before_it_is_on_disk(tmp_path, gate):
  """The checkpoint before it is removed only once the new one is complete."""
  reached, opened = gate
  opened.set()
  with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    opened.clear()
    reached.clear()
    checkpoints.save(2, make_state(2))
    assert reached.wait(60)
    assert names(tmp_path) == ["1", "2.orbax-checkpoint-tmp"]
    opened.set()
    checkpoints.wait()
    assert names(tmp_path) == ["2"]
    assert (tmp_path / "2" / integrity.CHECKSUMS).exists()


def test_closing_waits_for_the_save(tmp_path, gate):
  reached, opened = gate
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1))
    assert reached.wait(60)
    threading.Timer(0.2, opened.set).start()
  with Checkpoints(tmp_path) as checkpoints:
    assert_same(checkpoints.restore_latest(make_state(0)).state, make_state(1))


def test_donated_arrays_are_saved_as_they_were(tmp_path, gate):
  """Updates overwrite the state while it is being written.

  8 MB of random numbers take longer to write than the first updates take.
  Without the copy, step 0 would hold numbers of later steps.
  """
  _, opened = gate
  expected = np.random.default_rng(0).random((2048, 1024), np.float32)
  rows = NamedSharding(
    Mesh(np.asarray(jax.devices()).reshape(8), ("fsdp",)),
    PartitionSpec("fsdp"),
  )
  update = jax.jit(
    lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0
  )
  for number, sharding in enumerate((None, rows)):
    opened.clear()
    state = jax.device_put({"w": jnp.array(expected)}, sharding)
    state = jax.block_until_ready(update(state))  # Compiled.
    with Checkpoints(tmp_path / str(number)) as checkpoints:
      checkpoints.save(0, state)
      for _ in range(20):
        state = update(state)
      jax.block_until_ready(state)
      opened.set()
      restored = checkpoints.restore_latest(state).state
    np.testing.assert_array_equal(restored["w"], expected + 1)
    assert float(state["w"].min()) >= 21


def test_restores_onto_another_mesh(tmp_path):
  """The same bits on 8 devices, then on 2 x 2, on one, and on 8 again."""
  devices = np.asarray(jax.devices())
  eight = Mesh(devices.reshape(1, 8), ("data", "fsdp"))
  four = Mesh(devices[:4].reshape(2, 2), ("data", "fsdp"))
  one = Mesh(devices[:1].reshape(1, 1), ("data", "fsdp"))
  spec = {"w": PartitionSpec("fsdp", None), "step": PartitionSpec()}

  def on(mesh):
    return {name: NamedSharding(mesh, axes) for name, axes in spec.items()}

  expected = jax.device_get(make_state(5))
  with Checkpoints(tmp_path / "8") as checkpoints:
    checkpoints.save(5, jax.device_put(expected, on(eight)))
  before = tmp_path / "8"
  for mesh, rows in ((four, 32), (one, 64), (eight, 8)):
    abstract = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding
      ),
      expected,
      on(mesh),
    )
    with Checkpoints(before) as checkpoints:
      restored = checkpoints.restore_latest(abstract).state
    assert restored["w"].sharding == abstract["w"].sharding
    assert restored["w"].addressable_shards[0].data.shape == (rows, 32)
    assert_same(restored, expected)
    before = tmp_path / str(rows)  # Saved from there again.
    with Checkpoints(before) as checkpoints:
      checkpoints.save(5, restored)


@pytest.mark.parametrize(
  "next_call",
  [
    lambda checkpoints: checkpoints.save(3, make_state(3)),
    Checkpoints.wait,
    Checkpoints.close,
    Checkpoints.steps,
  ],
  ids=["save", "wait", "close", "steps"],
)
def test_a_failed_write_is_an_error_of_the_next_call(
  tmp_path, monkeypatch, next_call, capfd
):
  def fail(folder, exclude=()):
    raise OSError(28, "No space left on device")

  checkpoints = Checkpoints(tmp_path, keep_latest=1)
  checkpoints.save(1, make_state(1))
  checkpoints.wait()
  with monkeypatch.context() as patched:
    patched.setattr(integrity, "write_checksums", fail)
    checkpoints.save(2, make_state(2))
    message = f"{tmp_path}: No space left on device. .*make room"
    with pytest.raises(CheckpointError, match=message):
      next_call(checkpoints)
  checkpoints.close()  # The error is raised once.
  assert names(tmp_path) == ["1"]  # Nothing incomplete takes up space.
  with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
    assert_same(checkpoints.restore_latest(make_state(0)).state, make_state(1))
    checkpoints.save(2, make_state(2))
    assert checkpoints.steps() == [2]
  assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 8 MiB, and a function that enlarges it."""
  folder = tmp_path / "disk"
  folder.mkdir()

  def mount(options):
    return subprocess.run(
      ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
      capture_output=True,
      text=True,
      check=False,
    )

  try:
    mounted = mount("size=8m")
  except FileNotFoundError:
    pytest.skip("there is no mount command")
  if mounted.returncode:
    pytest.skip(f"no file system can be mounted: {mounted.stderr}")
  yield folder, lambda: mount("remount,size=64m")
  subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_damages_no_earlier_checkpoint(
  small_disk, capfd, monkeypatch, foreseen
):
  """3 MB each: two fit, the third does not, and four do once it is larger.

  Unforeseen, another program has filled the disk after the check.
  """
  folder, enlarge = small_disk
  if not foreseen:
    monkeypatch.setattr(
      integrity, "check_free_space", lambda folder, num_bytes: None
    )
  with Checkpoints(folder / "rl", keep_latest=3) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(step, 25_000))
    checkpoints.wait()
    message = "No space left on device"
    if foreseen:
      message += r": 3\.2 MB are needed, [12]\.\d MB are free\. "
    with pytest.raises(CheckpointError, match=message):
      checkpoints.save(3, make_state(3, 25_000))
      assert not foreseen
      checkpoints.wait()
  assert names(folder / "rl") == ["1", "2"]
  assert "Traceback" not in capfd.readouterr().err
  assert enlarge().returncode == 0
  with Checkpoints(folder / "rl", keep_latest=4) as checkpoints:
    restored = checkpoints.restore_latest(make_state(0, 25_000))
    assert restored.step == 2
    assert_same(restored.state, make_state(2, 25_000))
    for step in (3, 4):
      checkpoints.save(step, make_state(step, 25_000))
    assert checkpoints.steps() == [1, 2, 3, 4]


def test_a_write_cut_short_by_a_full_disk_prints_one_line(small_disk):
  """Twenty writes fail in threads, none of which may print a stack trace."""
  folder, _ = small_disk
  script = textwrap.dedent(
    f"""
    import contextlib, pathlib, sys
    import jax
    from pure_jax.host.checkpoints import integrity
    from pure_jax.host.checkpoints.checkpointer import (
      CheckpointError, Checkpoints)
    folder = pathlib.Path({str(folder)!r})
    integrity.check_free_space = lambda folder, num_bytes: None
    key = jax.random.key(0)
    state = {{str(i): jax.random.normal(key, (3000,)) for i in range(20)}}
    try:
      with Checkpoints(folder / "rl") as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        with (folder / "filler").open("wb", buffering=0) as file:
          with contextlib.suppress(OSError):
            while True:
              file.write(bytes(4096))
          file.truncate(file.tell() - 5000)
        checkpoints.save(2, state)
    except CheckpointError as error:
      sys.exit(f"error: {{error}}")
    """
  )
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=False
  )
  (line,) = done.stderr.splitlines()
  assert "No space left on device. The checkpoints there are intact" in line
  assert (folder / "rl" / "1").exists()
  assert not (folder / "rl" / "2").exists()


def test_after_a_failed_write_every_save_fails(tmp_path, monkeypatch):
  """A run must not go on without checkpoints unnoticed."""

  def fail(folder, exclude=()):
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(integrity, "write_checksums", fail)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1))
    for _ in range(2):
      with pytest.raises(CheckpointError, match="Input/output error"):
        checkpoints.save(2, make_state(2))


def test_a_failed_write_does_not_hide_the_error_that_ended_the_run(
  tmp_path, monkeypatch, caplog
):
  def fail(folder, exclude=()):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(integrity, "write_checksums", fail)
  with pytest.raises(FloatingPointError), Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1))
    raise FloatingPointError
  assert "No space left" in caplog.text


def test_a_killed_save_leaves_the_checkpoint_before(tmp_path):
  """SIGKILL during a write; the next save removes the incomplete folder."""
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1))
  script = textwrap.dedent(
    f"""
    import os, pathlib, signal, threading, time
    import jax, jax.numpy as jnp
    from pure_jax.host.checkpoints.checkpointer import Checkpoints
    folder = pathlib.Path({str(tmp_path)!r})
    def kill():
      while not any("tmp" in p.name and p.name.startswith("7")
                    for p in folder.iterdir()):
        time.sleep(0.0002)
      os.kill(os.getpid(), signal.SIGKILL)
    checkpoints = Checkpoints(folder)
    state = {{str(i): jnp.full((300, 300), i * 1.5) for i in range(100)}}
    threading.Thread(target=kill, daemon=True).start()
    checkpoints.save(7, state)
    checkpoints.close()
    """
  )
  killed = subprocess.run([sys.executable, "-c", script], check=False)
  assert killed.returncode == -signal.SIGKILL
  assert names(tmp_path) == ["1", "7.orbax-checkpoint-tmp"]
  with Checkpoints(tmp_path) as checkpoints:
    assert_same(checkpoints.restore_latest(make_state(0)).state, make_state(1))
    checkpoints.save(2, make_state(2))
    checkpoints.wait()
    assert names(tmp_path) == ["1", "2"]


@pytest.fixture
def ctrl_c_raises():
  """Even if the tests are a background job that ignores it."""
  handler = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize(
  ("number", "raised"),
  [
    (signal.SIGINT, KeyboardInterrupt),
    (signal.SIGTERM, preemption.Terminated),
  ],
)
def test_a_signal_during_a_save_is_raised_when_it_is_complete(
  tmp_path, gate, number, raised
):
  reached, opened = gate

  def interrupt():
    assert reached.wait(60)
    signal.pthread_kill(threading.main_thread().ident, number)
    opened.set()

  sender = threading.Thread(target=interrupt)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1))
    with pytest.raises(raised), preemption.raise_on_sigterm():
      sender.start()
      checkpoints.wait()
    assert names(tmp_path) == ["1"]
    sender.join()
    assert_same(checkpoints.restore_latest(make_state(0)).state, make_state(1))
