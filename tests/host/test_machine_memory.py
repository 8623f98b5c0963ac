"""The memory of a machine, of its container, or of its batch job."""

import pytest

from pure_jax.host import machine_memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """A machine of 16 GiB with files as Linux has them; (folder, own groups)."""
  meminfo, own = tmp_path / "meminfo", tmp_path / "own"
  meminfo.write_text(
    f"MemTotal:  {16 * 2**20} kB\nMemFree: 1 kB\nSwapTotal: 0 kB\n"
  )
  groups = tmp_path / "cgroup"
  groups.mkdir()
  own.write_text("0::/\n")
  monkeypatch.setattr(machine_memory, "_MEMINFO", meminfo)
  monkeypatch.setattr(machine_memory, "_CGROUPS", groups)
  monkeypatch.setattr(machine_memory, "_OWN_CGROUPS", own)
  return groups, own


def test_without_a_limit_it_is_that_of_the_machine(machine):
  assert machine_memory.machine_bytes() == 16 * GIB


def test_swap_space_counts(machine, tmp_path):
  """A run that swaps is slow, and runs."""
  (tmp_path / "meminfo").write_text(
    f"MemTotal: {16 * 2**20} kB\nSwapTotal: {4 * 2**20} kB\n"
  )
  assert machine_memory.machine_bytes() == 20 * GIB


@pytest.mark.parametrize(
  ("own", "limits"),
  [
    ("0::/\n", {"memory.max": 2 * GIB}),
    # A job within a slice: the smallest limit holds.
    (
      "0::/slice/job\n",
      {"slice/job/memory.max": "max", "slice/memory.max": 2 * GIB},
    ),
    (
      "0::/slice/job\n",
      {"slice/job/memory.max": 2 * GIB, "slice/memory.max": 8 * GIB},
    ),
    # Version 1, whose limit for none is a number near 2^63.
    (
      "5:cpu,cpuacct:/a\n4:memory:/a\n",
      {"memory/a/memory.limit_in_bytes": 2 * GIB},
    ),
    (
      "4:memory:/docker/abc\n",  # The path of the host, not there inside.
      {"memory/memory.limit_in_bytes": 2 * GIB},
    ),
  ],
)
def test_a_container_has_its_limit(machine, own, limits):
  groups, own_file = machine
  own_file.write_text(own)
  for name, limit in limits.items():
    path = groups / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{limit}\n")
  assert machine_memory.machine_bytes() == 2 * GIB


def test_no_limit_of_version_1_is_a_large_number(machine):
  groups, own = machine
  own.write_text("4:memory:/\n")
  (groups / "memory").mkdir()
  limit = groups / "memory" / "memory.limit_in_bytes"
  limit.write_text("9223372036854771712\n")
  assert machine_memory.machine_bytes() == 16 * GIB


def test_a_system_that_does_not_say_has_no_known_memory(machine, tmp_path):
  (tmp_path / "meminfo").unlink()
  assert machine_memory.machine_bytes() is None


def test_this_machine_has_some():
  assert machine_memory.machine_bytes() > 2**28
