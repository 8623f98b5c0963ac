"""Which implementation of an operation runs."""

import jax

IMPLEMENTATIONS = ("xla", "pallas")


def choose(
  implementation: str | None, obstacle: str | None, interpret: bool
) -> str:
  """Says what runs: XLA unless a kernel is asked for by name.

  None may fall back, a name may not. A kernel compiled for a CPU, where Mosaic
  has no lowering, raises a ValueError too, but only when jax lowers it: until
  then a program may still be meant for a TPU that is not here.

  Args:
    implementation: None, "xla" or "pallas".
    obstacle: why the kernel cannot do what is asked, None where it can.
    interpret: whether the kernel is to be interpreted instead of compiled.

  Returns:
    "xla" or "pallas".

  Raises:
    ValueError: the name is unknown, or the kernel named cannot run.
  """
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(
      f"implementation must be None or one of {IMPLEMENTATIONS}, not "
      f"{implementation!r}."
    )
  if implementation != "pallas":
    # No accelerator has timed a kernel yet: see kernels/README.md.
    return "xla"
  if obstacle is None and not interpret and jax.default_backend() == "gpu":
    obstacle = "it is written for a TPU and this is a GPU"
  if obstacle is not None:
    raise ValueError(
      f"implementation='pallas' cannot run: {obstacle}. Use 'xla' or None."
    )
  return "pallas"
