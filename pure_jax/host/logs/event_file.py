"""Scalars for TensorBoard, written at once in the calling thread.

The writers of tensorboardX do not fit. `SummaryWriter` writes in a thread: on
a full disk that thread dies, and the run waits for ever for room in its queue.
`EventsWriter` buffers, and each flush waits for the disk. Here a record is
written when it is made, and an error is the caller's.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from pure_jax.host.logs.visible import visible


class EventFile:
  """One file of events in TensorBoard's format: records of protobufs."""

  def __init__(self, folder: str | os.PathLike, purge_step: int | None = None):
    """Starts a file.

    Args:
      folder: which TensorBoard shows as one run; created if missing.
      purge_step: tells TensorBoard to hide events of earlier files of the
        folder at this step or later.

    Raises:
      OSError: if it cannot be written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads files in the order of their names, so two files of one
    # second need different ones.
    name = f"{int(time.time()):010d}.{socket.gethostname()}.{time.time_ns()}"
    path = folder / f"events.out.tfevents.{name}"
    self._file = path.open("xb", buffering=0)
    self._write(event_pb2.Event(file_version="brain.Event:2"))
    if purge_step is not None:
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(event_pb2.Event(step=purge_step, session_log=start))

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds scalars, given by name, at a step of the horizontal axis.

    Raises:
      OSError: if the disk is full.
    """
    values = [
      summary_pb2.Summary.Value(tag=visible(name), simple_value=value)
      for name, value in metrics.items()
    ]
    summary = summary_pb2.Summary(value=values)
    self._write(event_pb2.Event(step=step, summary=summary))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _write(self, event: event_pb2.Event) -> None:
    """Adds a record: its length, the event, and a checksum of each."""
    event.wall_time = time.time()
    body = event.SerializeToString()
    length = struct.pack("<Q", len(body))
    length_crc, body_crc = (
      struct.pack("<I", masked_crc32c(data)) for data in (length, body)
    )
    self._file.write(length + length_crc + body + body_crc)
