"""The pieces of speed in their order, the most informative first.

Seconds are upper estimates. A full piece takes most of them to compile; those
of "full" have not been measured.
"""

import functools

from accelerator.pieces import Piece
from accelerator.speed import against_torch, timings
from accelerator.speed.sizes import SHAPES

_SMALL, _MIDDLE, _LARGE = SHAPES


def _decode(name: str, shape: str, tiny: float, full: float) -> Piece:
  run = functools.partial(timings.decode, shape=shape)
  return Piece(name, {"tiny": tiny, "full": full}, run)


def _steps(name: str, shape: str, tiny: float, full: float) -> Piece:
  run = functools.partial(timings.steps, shape=shape)
  return Piece(name, {"tiny": tiny, "full": full}, run)


SPEED_PIECES = (
  _decode("decode_1p5b", _MIDDLE, 20, 60),
  Piece("update_choices", {"tiny": 40, "full": 90}, timings.update_choices),
  Piece("score_choices", {"tiny": 20, "full": 60}, timings.score_choices),
  _steps("steps_1p5b", _MIDDLE, 20, 60),
  _decode("decode_7b", _LARGE, 10, 90),
  _steps("steps_7b", _LARGE, 10, 90),
  _decode("decode_0p5b", _SMALL, 10, 60),
  _steps("steps_0p5b", _SMALL, 10, 60),
  Piece("int8", {"tiny": 15, "full": 75}, timings.int8),
  Piece("torch_ours", {"tiny": 15, "full": 60}, against_torch.time_ours),
  Piece(
    "torch",
    {"tiny": 30, "full": 75},
    against_torch.compare_with_torch,
    alone=True,
  ),
)
