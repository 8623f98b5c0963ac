"""FLOPs of the matrix products in a compiled XLA program."""

import math
import re

import numpy as np

from pure_jax.runs.planning.hlo.text import HLOError, Instruction


def product_flops(instruction: Instruction) -> int:
  """Counts the FLOPs of one run of an instruction, two per multiply-add.

  Args:
    instruction: any instruction.

  Returns:
    The FLOPs of a ``dot`` or a ``convolution``; 0 for other instructions.

  Raises:
    HLOError: if the dimensions of a convolution cannot be read.
  """
  if instruction.opcode == "dot":
    return 2 * _dot(instruction)
  if instruction.opcode == "convolution":
    return 2 * _convolution(instruction)
  return 0


def _dot(instruction: Instruction) -> int:
  """Multiply-adds of a dot: elements of the result times the summed sizes."""
  left = instruction.operands[0].shapes[0]
  contracting = instruction.attribute("lhs_contracting_dims") or "{}"
  sizes = [left.sizes[int(i)] for i in re.findall(r"\d+", contracting)]
  return instruction.shapes[0].elements * math.prod(sizes)


def _convolution(instruction: Instruction) -> int:
  """Multiply-adds of a convolution. The TPU compiler writes all products so.

  In each spatial dimension, a pair of an output and a window position counts
  if it reads an element of the input. Padding and the holes of a dilated input
  cost nothing.
  """
  labels = instruction.attribute("dim_labels") or ""
  match = re.fullmatch(r"(\w+)_(\w+)->(\w+)", labels.strip())
  if match is None:
    raise HLOError(f"{instruction.name}: dim_labels {labels!r} not understood.")
  shapes = *(x.shapes[0] for x in instruction.operands), instruction.shapes[0]
  left, right, out = (
    dict(zip(letters, shape.sizes, strict=True))
    for letters, shape in zip(match.groups(), shapes, strict=True)
  )
  window = instruction.attribute("window") or ""
  fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", window))

  def field(name, dimension, default):
    if name not in fields:
      return default
    # Of the padding, "low_high", only the low end counts.
    return int(fields[name].split("x")[dimension].split("_")[0])

  pairs = math.prod(
    _overlapping_pairs(
      (left[letter], right[letter], out[letter]),
      stride=field("stride", dimension, 1),
      hole=field("lhs_dilate", dimension, 1),
      dilation=field("rhs_dilate", dimension, 1),
      low=field("pad", dimension, 0),
    )
    for dimension, letter in enumerate(sorted(filter(str.isdigit, left)))
  )
  groups = int(instruction.attribute("batch_group_count") or 1)
  # The kernel's input features are summed, its output features are not.
  return left["b"] // groups * right["i"] * right["o"] * pairs


def _overlapping_pairs(
  sizes: tuple[int, int, int], stride: int, hole: int, dilation: int, low: int
) -> int:
  """Counts pairs of an output and a window position that read an element.

  `sizes` are those of the input, the window and the output. Elements of the
  input are `hole` apart and positions of the window `dilation`; `low` is the
  padding before the first element.
  """
  size, kernel, out = sizes
  outputs, pairs = stride * np.arange(out), 0
  for position in range(kernel):
    read = outputs + position * dilation - low
    is_inside = (read >= 0) & (read <= (size - 1) * hole)
    pairs += int(np.sum(is_inside & (read % hole == 0)))
  return pairs
