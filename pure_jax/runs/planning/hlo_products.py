"""FLOPs of the matrix products of a compiled XLA program."""

import math
import re

from pure_jax.runs.planning.hlo_text import Computation, HLOError, Instruction


def flops(computation: Computation, instruction: Instruction) -> int:
  """FLOPs of one run of an instruction, two for each multiply-add.

  Args:
    computation: that it stands in.
    instruction: any.

  Returns:
    The number; 0 for anything but a ``dot`` or a ``convolution``.

  Raises:
    HLOError: for a convolution whose dimensions cannot be read.
  """
  if instruction.opcode == "dot":
    return 2 * _dot(computation, instruction)
  if instruction.opcode == "convolution":
    return 2 * _convolution(computation, instruction)
  return 0


def _dot(computation: Computation, instruction: Instruction) -> int:
  """Multiply-adds of a dot: elements of the result, each a sum."""
  left = computation.instructions[instruction.operands[0]].shapes[0]
  summed = instruction.attribute("lhs_contracting_dims") or "{}"
  sizes = [left.sizes[int(i)] for i in re.findall(r"\d+", summed)]
  return instruction.shapes[0].elements * math.prod(sizes)


def _convolution(computation: Computation, instruction: Instruction) -> int:
  """Multiply-adds of a convolution; a TPU writes every product as one.

  For each spatial dimension only the pairs of an output and a window position
  that meet an element of the input count: padding and the holes of a dilated
  input are free.
  """
  left, right = (
    computation.instructions[name].shapes[0].sizes
    for name in instruction.operands[:2]
  )
  out = instruction.shapes[0].sizes
  labels = instruction.attribute("dim_labels") or ""
  found = re.fullmatch(r"(\w+)_(\w+)->(\w+)", labels.strip())
  if found is None:
    raise HLOError(f"{instruction.name}: dim_labels {labels!r} not understood.")
  left_at, right_at, out_at = (
    {letter: index for index, letter in enumerate(part)}
    for part in found.groups()
  )
  window = _window(instruction.attribute("window") or "")
  spatial = sorted(letter for letter in left_at if letter.isdigit())
  pairs = 1
  for number, letter in enumerate(spatial):
    pairs *= _meeting_pairs(
      left[left_at[letter]],
      right[right_at[letter]],
      out[out_at[letter]],
      {name: values[number] for name, values in window.items()},
    )
  groups = int(instruction.attribute("batch_group_count") or 1)
  batch = left[left_at["b"]] // groups
  # Of the kernel: the input features that one output sums, and the outputs.
  return batch * right[right_at["i"]] * right[right_at["o"]] * pairs


def _window(text: str) -> dict[str, list]:
  """Fields of a window, one value for each spatial dimension."""
  fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", text))
  rank = len(fields["size"].split("x")) if "size" in fields else 0
  window = {
    name: [int(n) for n in fields.get(name, "x".join("1" * rank)).split("x")]
    for name in ("stride", "lhs_dilate", "rhs_dilate")
    if rank
  }
  if rank:
    padding = fields.get("pad", "x".join(["0_0"] * rank)).split("x")
    window["low"] = [int(part.split("_")[0]) for part in padding]
  return window


def _meeting_pairs(size: int, kernel: int, out: int, window: dict) -> int:
  """Pairs (output, window position) that meet an element of the input."""
  dilated = (size - 1) * window["lhs_dilate"] + 1
  pairs = 0
  for position in range(kernel):
    offset = position * window["rhs_dilate"] - window["low"]
    step, hole = window["stride"], window["lhs_dilate"]
    if hole == 1:
      # Outputs whose element, step * o + offset, is inside the input.
      first = max(0, (step - 1 - offset) // step)
      last = min(out - 1, (dilated - 1 - offset) // step)
      pairs += max(0, last - first + 1)
    else:
      for output in range(out):
        at = output * step + offset
        pairs += 0 <= at < dilated and at % hole == 0
  return pairs
