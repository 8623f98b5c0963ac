"""What to say when memory has run out, or a number is too large for an array.

`of_run.check_memory` stops runs that cannot fit. Others may still fail: the
errors of XLA and numpy say how much was asked for, but not what to lower.
"""

import re
from collections.abc import Iterator

import jax

# XLA's status for memory that it cannot have, on every backend.
_EXHAUSTED = "RESOURCE_EXHAUSTED"
# "allocating 858993459 bytes", "allocate request for 8.00GiB", "Used 20.0G of".
_XLA_SIZE = re.compile(
  r"(?:allocat|Used)\D*(\d[\d.]*) ?([KMGTP]?i?B|[KMGTP]|bytes)"
)
_NUMPY_SIZE = re.compile(r"Unable to allocate ([\d.]+ \w+)")
RUN_ADVICE = (
  "What was saved is intact, and the same command continues the run. These "
  "changes need less memory: higher rl.micro_batches or rl.rollout.batches, "
  "lower rl.engine.slots, or a mesh of more devices. If they do not suffice, "
  "start a run with lower rl.prompts, rl.samples_per_prompt, "
  "rl.sampler.max_new_tokens or batch_size."
)


def explain(error: BaseException, advice: str = RUN_ADVICE) -> str | None:
  """Explains an error that means too little memory or too large a number.

  Args:
    error: the error. Its causes are looked at too.
    advice: what to do about memory that ran out; the default is for runs.

  Returns:
    What ran out, how much was asked for and what to lower; None for any other
    error.
  """
  for cause in _causes(error):
    if isinstance(cause, MemoryError):
      size = _NUMPY_SIZE.search(str(cause))
      return _exhausted("this machine", size and size[1], advice)
    is_of_device = isinstance(cause, jax.errors.JaxRuntimeError)
    if is_of_device and _EXHAUSTED in str(cause):
      return _exhausted("the device", _xla_size(str(cause)), advice)
  # Causes are not searched: an error about a number in a file says more.
  if isinstance(error, OverflowError) and "int" in str(error).lower():
    return (
      "a whole number is too large for an array, which holds 32 bits: "
      f"{str(error).splitlines()[0]}. Lower the setting that has this value."
    )
  return None


def _causes(error: BaseException) -> Iterator[BaseException]:
  """An error, what caused it, and so on."""
  seen: set[int] = set()
  current: BaseException | None = error
  while current is not None and id(current) not in seen:
    seen.add(id(current))
    yield current
    context = None if current.__suppress_context__ else current.__context__
    current = current.__cause__ or context


def _exhausted(owner: str, size: str | None, advice: str) -> str:
  """The message for memory that has run out."""
  asked = "" if size is None else f" when {size} more were asked for"
  return f"the memory of {owner} ran out{asked}. {advice}"


def _xla_size(message: str) -> str | None:
  """The memory that XLA asked for; None if its message does not say."""
  size = _XLA_SIZE.search(message)
  if size is None:
    return None
  if size[2] == "bytes":
    return f"{int(size[1]) / 2**30:,.2f} GiB"
  return f"{size[1]} {size[2]}"
