"""Event files are in TensorBoard's format, and a full disk is an error."""

import errno
import resource
import struct

import pytest
from tensorboardX.proto import event_pb2

from pure_jax.host.logs.event_file import EventFile
from pure_jax.host.logs.metrics import MetricsWriter


def records(path):
  """Parses the record format: length, checksum, body, checksum."""
  content, events = path.read_bytes(), []
  while content:
    (length,) = struct.unpack("<Q", content[:8])
    events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  return events


def crc32c(data):
  """CRC-32C (Castagnoli) bit by bit, masked as the record format has it."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_an_event_is_on_disk_before_the_file_is_closed(tmp_path):
  """A killed run has written its events."""
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


def test_files_of_the_same_second_have_different_names(tmp_path):
  for _ in range(2):
    EventFile(tmp_path).close()
  assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_an_error_of_the_caller(tmp_path):
  """A writer thread would die, and the run would wait for it for ever."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with MetricsWriter(tmp_path) as writer:
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
      with pytest.raises(OSError) as error:
        for step in range(1_000):
          writer.write("rl", step, {"loss": 1.0})
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert error.value.errno == errno.EFBIG
