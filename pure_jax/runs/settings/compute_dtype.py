"""The dtype of matrix products, where a config leaves it to the devices."""

import dataclasses
from typing import Any, TypeVar

from pure_jax.models.config import COMPUTE_DTYPES
from pure_jax.runs.settings.checks import one_of

AUTO = "auto"

_Settings = TypeVar("_Settings")


def check_compute_dtype(name: str) -> None:
  """Raises ValueError unless a config may say so.

  Args:
    name: "auto", or a dtype of `COMPUTE_DTYPES`.
  """
  one_of("compute_dtype", name, (AUTO, *COMPUTE_DTYPES))


def for_platform(platform: str) -> str:
  """The dtype that "auto" stands for.

  An accelerator multiplies bfloat16 several times faster than float32; a CPU
  does not, measured with XLA on two cores it is slower. Weights, optimizer,
  norms, softmax and losses are float32 either way.

  Args:
    platform: of the devices, such as "cpu" or "tpu".

  Returns:
    A name in `COMPUTE_DTYPES`.
  """
  return "float32" if platform == "cpu" else "bfloat16"


def resolve(settings: _Settings, platform: str) -> _Settings:
  """The settings of a run with "auto" replaced by `for_platform`.

  Args:
    settings: with groups `model` and `files`, either of which may be None.
    platform: of the devices, such as "cpu" or "tpu".

  Returns:
    The same settings, ready for this platform.
  """
  dtype = for_platform(platform)
  changes: dict[str, Any] = {}
  for name in ("model", "files"):
    group = getattr(settings, name)
    if group is not None and group.compute_dtype == AUTO:
      changes[name] = dataclasses.replace(group, compute_dtype=dtype)
  return dataclasses.replace(settings, **changes)
