"""The pieces of a check, and what they are told."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Size = Literal["tiny", "full"]
SIZES = ("tiny", "full")
# What a piece may take at least: estimates of a few seconds say little.
LEAST_SECONDS = 80.0
# Of all the time, for a piece that goes on until the time is over.
RESERVED_SHARE = 0.4


class PieceError(RuntimeError):
  """A piece cannot do its work; the message is a sentence that says why."""


@dataclasses.dataclass(frozen=True)
class Context:
  """What a piece is told.

  Attributes:
    out: folder of the check. Scratch data goes into `folder(name)`.
    size: "tiny" for sizes that a CPU manages in seconds, where times mean
      nothing, or "full".
    machine: versions and devices, as `workdir.collect_versions` gives them.
    deadline: time at which the check should end, as `time.time` gives it.
    model: Hugging Face folder of --model, or None.
    rl_files: paths of --train, --held_out and --prm by these names, those that
      are given.
    reserved: seconds before the deadline that only a piece takes that goes on
      until the time is over.
  """

  out: pathlib.Path
  size: Size
  machine: Mapping[str, Any]
  deadline: float
  model: pathlib.Path | None = None
  rl_files: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  reserved: float = 0.0

  @property
  def platform(self) -> str:
    """Platform of jax's default device: "cpu", "gpu" or "tpu"."""
    return self.machine["backend"]

  @property
  def device_kind(self) -> str:
    """Name of the devices, such as "NVIDIA H200"."""
    return ", ".join(self.machine["devices"])

  @property
  def num_devices(self) -> int:
    """Number of devices."""
    return sum(self.machine["devices"].values())

  @property
  def tiny(self) -> bool:
    """Whether the sizes are those of a CPU."""
    return self.size == "tiny"

  def seconds_left(self) -> float:
    """Seconds until the deadline; negative after it."""
    return self.deadline - time.time()

  def for_piece(self, piece: "Piece") -> "Context":
    """Makes what a piece is told that starts now: it has its own deadline."""
    if piece.continues:
      return self
    end = min(
      self.deadline - self.reserved,
      time.time() + piece.most_seconds(self.size),
    )
    return dataclasses.replace(self, deadline=end)

  def folder(self, name: str) -> pathlib.Path:
    """Makes a folder for scratch data, which a continued check finds again."""
    path = self.out / "work" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line says.

  Attributes:
    out: folder of the check.
    size: None for "tiny" on a CPU and "full" elsewhere.
    deadline: as in `Context`.
    model: as in `Context`.
    rl_files: as in `Context`.
    reserved: as in `Context`, by size.
  """

  out: pathlib.Path
  size: Size | None
  deadline: float
  model: pathlib.Path | None = None
  rl_files: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  reserved: Mapping[Size, float] = dataclasses.field(default_factory=dict)

  def seconds_left(self) -> float:
    """Seconds until the deadline; negative after it."""
    return self.deadline - time.time()

  def on(self, machine: Mapping[str, Any]) -> Context:
    """Makes what pieces are told on a machine."""
    usual = "tiny" if machine["backend"] == "cpu" else "full"
    size = self.size or usual
    return Context(
      self.out,
      size,
      machine,
      self.deadline,
      self.model,
      self.rl_files,
      self.reserved.get(size, 0.0),
    )


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of the check that ends with a result of its own.

  Attributes:
    name: part of its file's name, NN_name.json.
    seconds: by size, the most it should need. It does not start if less time
      is left. Compilation counts.
    run: does the work and returns plain JSON values, see `accelerator`.
    needs_model: whether it runs only with --model.
    continues: whether a repeated check goes on with it, complete or not.
    alone: whether it runs while no other process of the check holds the
      device, because it starts processes that open it. It must not open the
      device itself.
  """

  name: str
  seconds: Mapping[str, float]
  run: Callable[[Context], dict[str, Any]]
  needs_model: bool = False
  continues: bool = False
  alone: bool = False

  def most_seconds(self, size: Size) -> float:
    """Seconds after which it should end by itself: twice the estimate."""
    if self.continues:
      return math.inf
    return max(LEAST_SECONDS, 2 * self.seconds[size])


def reserve(chosen: Sequence[Piece], seconds: float) -> dict[Size, float]:
  """Shares the time between the pieces and one that goes on to its end.

  Args:
    chosen: the pieces that will run.
    seconds: the time for all of them.

  Returns:
    Seconds to reserve for such a piece, by size. It is 0 if there is none, or
    if all the time is too little for it.
  """
  reserved = dict.fromkeys(SIZES, 0.0)
  for piece in chosen:
    for size in SIZES if piece.continues else ():
      if piece.seconds[size] <= seconds:
        share = RESERVED_SHARE * seconds
        reserved[size] = max(piece.seconds[size], share)
  return reserved
