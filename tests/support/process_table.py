"""Which processes run, on Linux; a zombie does not."""

import pathlib
import time


def is_alive(pid: int) -> bool:
  """Tells whether a process runs; a zombie does not."""
  try:
    status = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return False
  return status.rpartition(")")[2].split()[0] not in "ZX"


def wait_until_none_is_alive(pids: set[int]) -> bool:
  deadline = time.monotonic() + 8
  while any(map(is_alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  return not any(map(is_alive, pids))


def children_of(parent: int) -> set[int]:
  children = set()
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      status = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
      continue
    if int(status[1]) == parent and status[0] not in "ZX":
      children.add(int(folder.name))
  return children


def with_variables(variables: dict[str, str]) -> set[int]:
  """The processes whose environment has some variables."""
  texts = {f"{name}={value}".encode() for name, value in variables.items()}
  processes = set()
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      environment = (folder / "environ").read_bytes().split(b"\0")
    except OSError:
      continue
    if texts <= set(environment):
      processes.add(int(folder.name))
  return processes
