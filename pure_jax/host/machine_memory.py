"""The memory of this machine: how much a process can have at most."""

import os
import pathlib

_MEMINFO = pathlib.Path("/proc/meminfo")
# Limits of a container or a batch job: control groups of version 2, then 1.
_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_OWN_CGROUPS = pathlib.Path("/proc/self/cgroup")
_LIMIT_FILES = {"": "memory.max", "memory": "memory.limit_in_bytes"}


def machine_bytes() -> int | None:
  """Finds the memory that a process of this machine can have at most.

  That is the memory of the machine, or of its container or batch job if that
  has less, and the swap space. What other processes use is not subtracted.

  Returns:
    Bytes; None where the system does not say, as outside Linux.
  """
  try:
    lines = _MEMINFO.read_text().splitlines()
  except OSError:
    return None
  sizes = {}
  for line in lines:
    name, _, rest = line.partition(":")
    number = rest.split()[:1]
    if number and number[0].isdigit():
      sizes[name] = int(number[0]) * 1024
  if "MemTotal" not in sizes:
    return None
  memory = min([sizes["MemTotal"], *_cgroup_limits()])
  return memory + sizes.get("SwapTotal", 0)


def _cgroup_limits() -> list[int]:
  """The limits of the control groups that this process is in."""
  try:
    lines = _OWN_CGROUPS.read_text().splitlines()
  except OSError:
    return []
  limits = []
  for line in lines:
    # HIERARCHY:CONTROLLERS:PATH, in version 2 without controllers.
    _, controllers, path = line.split(":", 2)
    for controller in controllers.split(","):
      if controller not in _LIMIT_FILES:
        continue
      group = _CGROUPS / controller
      name = _LIMIT_FILES[controller]
      # The group of the process and those around it. Inside a container the
      # path may be that of the host, and only the root is there.
      parts = pathlib.PurePosixPath(path.lstrip("/")).parts
      for depth in range(len(parts) + 1):
        limits += _read_limit(group.joinpath(*parts[:depth], name))
  return limits


def _read_limit(path: os.PathLike) -> list[int]:
  """The limit in a file; empty if there is none."""
  try:
    text = pathlib.Path(path).read_text().strip()
  except OSError:
    return []
  return [int(text)] if text.isdigit() else []
