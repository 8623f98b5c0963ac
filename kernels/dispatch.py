"""Which implementation of an operation runs."""

from collections.abc import Mapping

import jax

# Kernels that Mosaic compiles.
FOR_A_TPU = ("pallas", "splash")


def choose(
  implementation: str | None,
  obstacles: Mapping[str, str | None],
  interpret: bool,
) -> str:
  """Says what runs: XLA unless a kernel is asked for by name.

  None may fall back, a name may not. A kernel compiled for a CPU, where Mosaic
  has no lowering, raises a ValueError too, but only when jax lowers it: until
  then a program may still be meant for a TPU that is not here.

  Args:
    implementation: None, "xla" or a kernel.
    obstacles: for each kernel that the operation has, why it cannot do what
      is asked, None where it can.
    interpret: whether the kernel is to be interpreted instead of compiled.

  Returns:
    "xla" or the kernel.

  Raises:
    ValueError: the name is unknown, or the kernel named cannot run.
  """
  names = ("xla", *obstacles)
  if implementation not in (None, *names):
    raise ValueError(
      f"implementation must be None or one of {names}, not {implementation!r}."
    )
  if implementation not in obstacles:
    # No accelerator has timed a kernel yet: see kernels/README.md.
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
