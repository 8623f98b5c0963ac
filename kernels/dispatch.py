"""The choice between implementations of an operation."""

from collections.abc import Mapping

import jax

# Compiled by Mosaic, which has no other target.
FOR_A_TPU = ("pallas", "splash")


def choose(
  implementation: str | None,
  obstacles: Mapping[str, str | None],
  interpret: bool,
) -> str:
  """Chooses XLA, unless a kernel is named.

  A named kernel runs or raises; it never falls back to XLA. On a CPU, which
  Mosaic cannot compile for, a kernel raises a ValueError only when jax lowers
  it, since a program may be compiled ahead of time for a TPU.

  Args:
    implementation: None, "xla" or the name of a kernel.
    obstacles: by kernel of the operation, the reason why it cannot run with
      these arguments; None if it can.
    interpret: whether the kernel is interpreted instead of compiled.

  Returns:
    "xla" or the name of the kernel.

  Raises:
    ValueError: if the name is unknown, or the named kernel cannot run.
  """
  names = ("xla", *obstacles)
  if implementation not in (None, *names):
    raise ValueError(
      f"implementation must be None or one of {names}, not {implementation!r}."
    )
  if implementation not in obstacles:
    # No kernel has been timed on an accelerator yet, see kernels/README.md.
    return "xla"
  obstacle = obstacles[implementation]
  compiled = implementation in FOR_A_TPU and not interpret
  if obstacle is None and compiled and jax.default_backend() == "gpu":
    obstacle = "it is written for a TPU and this is a GPU"
  if obstacle is not None:
    raise ValueError(
      f"implementation={implementation!r} cannot run: {obstacle}. Use 'xla' or "
      "None."
    )
  return implementation
