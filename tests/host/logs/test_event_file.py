"""TensorBoard's files, and who hears of it when they cannot be written."""

import errno
import struct
import subprocess
import sys
import textwrap

from tensorboardX.proto import event_pb2

from pure_jax.host.logs.event_file import EventFile


def records(path):
  """Events by the record format: length, sum, body, sum."""
  content, found = path.read_bytes(), []
  while content:
    (length,) = struct.unpack("<Q", content[:8])
    found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  return found


def crc32c(data):
  """Castagnoli's, bit by bit, masked as the record format wants it."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_a_file_is_there_before_it_is_closed(tmp_path):
  """What is killed has written what it has told."""
  file = EventFile(tmp_path / "rl", purge_step=7)
  file.write(7, {"loss": 0.5, "accuracy": 1})
  (path,) = (tmp_path / "rl").iterdir()
  version, start, row = records(path)
  assert version.file_version == "brain.Event:2"
  assert start.session_log.status == event_pb2.SessionLog.START
  assert (start.step, row.step) == (7, 7)
  assert {v.tag: v.simple_value for v in row.summary.value} == {
    "loss": 0.5,
    "accuracy": 1.0,
  }
  file.close()
  content = path.read_bytes()
  assert struct.unpack("<I", content[8:12]) == (crc32c(content[:8]),)
  size = struct.unpack("<Q", content[:8])[0]
  body = content[12 : 12 + size]
  assert content[12 + size : 16 + size] == struct.pack("<I", crc32c(body))


def test_two_files_of_one_second_are_two(tmp_path):
  for _ in range(2):
    EventFile(tmp_path).close()
  assert len(list(tmp_path.iterdir())) == 2


def test_no_room_is_an_error_of_the_caller(tmp_path):
  """A thread of its own would die, and the run would wait for it for ever."""
  script = textwrap.dedent(
    f"""
    import resource, sys
    from pure_jax.host.logs.metrics import MetricsWriter
    with MetricsWriter({str(tmp_path)!r}) as writer:
      resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
      try:
        for step in range(1_000):
          writer.write("rl", step, {{"loss": 1.0}})
      except OSError as error:
        sys.exit(error.errno)
    """
  )
  done = subprocess.run(
    [sys.executable, "-c", script],
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )
  assert done.returncode == errno.EFBIG, done.stderr
  assert done.stderr == ""
