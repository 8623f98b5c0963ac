"""FLOPs of the matrix products in a compiled XLA program."""

import dataclasses
import math
import re

from pure_jax.runs.planning.hlo.text import (
  Computation,
  HLOError,
  Instruction,
)


def product_flops(computation: Computation, instruction: Instruction) -> int:
  """Counts the FLOPs of one run of an instruction, two per multiply-add.

  Args:
    computation: computation that holds the instruction.
    instruction: any instruction.

  Returns:
    The FLOPs of a ``dot`` or a ``convolution``; 0 for other instructions.

  Raises:
    HLOError: if the dimensions of a convolution cannot be read.
  """
  if instruction.opcode == "dot":
    return 2 * _dot(computation, instruction)
  if instruction.opcode == "convolution":
    return 2 * _convolution(computation, instruction)
  return 0


def _dot(computation: Computation, instruction: Instruction) -> int:
  """Multiply-adds of a dot: elements of the result times the summed sizes."""
  left = computation.operands(instruction)[0].shapes[0]
  contracting = instruction.attribute("lhs_contracting_dims") or "{}"
  sizes = [left.sizes[int(i)] for i in re.findall(r"\d+", contracting)]
  return instruction.shapes[0].elements * math.prod(sizes)


def _convolution(computation: Computation, instruction: Instruction) -> int:
  """Multiply-adds of a convolution. The TPU compiler writes all products so.

  In each spatial dimension, a pair of an output and a window position counts
  if it reads an element of the input. Padding and the holes of a dilated input
  cost nothing.
  """
  left, right = (
    operand.shapes[0].sizes for operand in computation.operands(instruction)[:2]
  )
  out = instruction.shapes[0].sizes
  labels = instruction.attribute("dim_labels") or ""
  match = re.fullmatch(r"(\w+)_(\w+)->(\w+)", labels.strip())
  if match is None:
    raise HLOError(f"{instruction.name}: dim_labels {labels!r} not understood.")
  left_at, right_at, out_at = (
    {letter: index for index, letter in enumerate(letters)}
    for letters in match.groups()
  )
  spatial = sorted(letter for letter in left_at if letter.isdigit())
  windows = _windows(instruction.attribute("window") or "")
  pairs = math.prod(
    _overlapping_pairs(
      left[left_at[letter]],
      right[right_at[letter]],
      out[out_at[letter]],
      window,
    )
    for letter, window in zip(spatial, windows, strict=True)
  )
  groups = int(instruction.attribute("batch_group_count") or 1)
  batch = left[left_at["b"]] // groups
  # The kernel's input features are summed, its output features are not.
  return batch * right[right_at["i"]] * right[right_at["o"]] * pairs


@dataclasses.dataclass(frozen=True)
class _Window:
  """How a convolution's kernel moves over one spatial dimension.

  Attributes:
    stride: input elements between two outputs.
    lhs_dilate: distance of neighbouring elements in the dilated input.
    rhs_dilate: distance of neighbouring positions of the window.
    low: padding before the first element.
  """

  stride: int
  lhs_dilate: int
  rhs_dilate: int
  low: int


def _windows(text: str) -> list[_Window]:
  """Parses the window of each spatial dimension."""
  fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", text))
  rank = len(fields["size"].split("x")) if "size" in fields else 0

  def values(name, default):
    return fields[name].split("x") if name in fields else [default] * rank

  return [
    _Window(int(stride), int(lhs), int(rhs), int(padding.split("_")[0]))
    for stride, lhs, rhs, padding in zip(
      values("stride", "1"),
      values("lhs_dilate", "1"),
      values("rhs_dilate", "1"),
      values("pad", "0_0"),
      strict=True,
    )
  ]


def _overlapping_pairs(
  size: int, kernel: int, out: int, window: _Window
) -> int:
  """Counts pairs of an output and a window position that read an element."""
  stride, hole = window.stride, window.lhs_dilate
  dilated = (size - 1) * hole + 1
  pairs = 0
  for position in range(kernel):
    offset = position * window.rhs_dilate - window.low
    if hole == 1:
      # Outputs o whose element, stride * o + offset, is inside the input.
      first = max(0, (stride - 1 - offset) // stride)
      last = min(out - 1, (dilated - 1 - offset) // stride)
      pairs += max(0, last - first + 1)
    else:
      elements = (stride * output + offset for output in range(out))
      pairs += sum(0 <= i < dilated and i % hole == 0 for i in elements)
  return pairs
