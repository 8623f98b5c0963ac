"""Compiles a stage for devices that need not be there, and reads what it got.

Of what is reported here, memory is the compiler's own answer; FLOPs, bytes and
collectives are counted in the program it wrote (`runs.planning.hlo`).
"""

import dataclasses
import gzip
import importlib.metadata
import os
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from pure_jax.runs.planning.hlo import costs as hlo_costs
from pure_jax.runs.planning.stages import Stage
from pure_jax.runs.settings.conversion import ConfigError

_GIVEN = re.compile(r"([\d.]+)([KMGT]?)\) exceeds available")
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a program on one device, as the compiler lays them out.

  Attributes:
    arguments: what it is called with.
    outputs: what it gives.
    aliased: outputs that take the place of donated arguments.
    temporaries: everything it needs in between.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int

  @property
  def total(self) -> int:
    """While it runs."""
    return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True)
class CompiledStage:
  """What the compiler made of a stage.

  Attributes:
    name: "reshard", "rollout", "score" or "update", or of a part of one.
    seconds: that tracing and compiling took.
    memory: None where the compiler refused for lack of it.
    needed_bytes: of memory, where it refused and said so.
    costs: of one run on one device, None where it refused.
    refusal: the compiler's words, None where it did not refuse.
    beside: bytes of arrays of this stage that are in memory meanwhile, and
      that the program is not called with.
    parts: programs of which this is the largest, where there are several.
  """

  name: str
  seconds: float
  memory: Memory | None = None
  needed_bytes: float | None = None
  costs: hlo_costs.Costs | None = None
  refusal: str | None = None
  beside: int = 0
  parts: tuple["CompiledStage", ...] = ()

  @property
  def total(self) -> float | None:
    """In memory while it runs, None where the compiler gave no number."""
    if self.memory is not None:
      return self.memory.total + self.beside
    if self.needed_bytes is not None:
      return self.needed_bytes + self.beside
    return None


def find_devices(topology: str | None) -> Sequence[jax.Device]:
  """The devices of a TPU topology, or those of this machine.

  Must be called before jax has looked for devices: a topology is described by
  libtpu without one, and without asking a cloud machine what it is.

  Args:
    topology: such as "v5p:4x4x4"; None for the devices here.

  Returns:
    The devices; those of a topology can be compiled for, not run on.

  Raises:
    ConfigError: without libtpu, or for a topology that it does not know.
  """
  if topology is None:
    return jax.devices()
  if not topology:  # For libtpu that is some slice of its own choice.
    raise ConfigError(
      "--topology= names nothing: name a slice, such as v5p:4x4x4, or leave "
      "the flag out to plan for the devices here."
    )
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # No chip is taken: several processes may compile at a time.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  jax.config.update("jax_platforms", "cpu")
  try:
    importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError as error:
    raise ConfigError(
      f"--topology={topology} needs the TPU compiler, the package libtpu: "
      "pip install -e '.[plan]'. Without --topology the devices of this "
      "machine are planned for."
    ) from error
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(
      platform="tpu", topology_name=topology
    ).devices
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise ConfigError(
      f"--topology={topology} is none that libtpu "
      f"{importlib.metadata.version('libtpu')} knows, such as v5e:4x4, "
      f"v6e:4x4 or v5p:4x4x4: {str(error).splitlines()[0]}"
    ) from error


def compile_program(
  stage: Stage, devices: int, path: pathlib.Path | None = None
) -> tuple[CompiledStage, Any]:
  """Lowers, compiles and counts a stage.

  Args:
    stage: what to compile.
    devices: that it is laid out over.
    path: of a gzip file to write the compiled program to.

  Returns:
    (what came out, the program's outputs, abstract and in their places). A
    refusal for lack of memory is an answer, not an error; outputs are None.
  """
  start = time.monotonic()
  try:
    lowered = stage.function.lower(*stage.arguments)
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    refused = CompiledStage(
      stage.name,
      time.monotonic() - start,
      needed_bytes=needed_bytes(str(error)),
      refusal=" ".join(str(error).splitlines()[0].split()),
    )
    return refused, None
  seconds = time.monotonic() - start
  found, text = compiled.memory_analysis(), compiled.as_text()
  if path is not None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))
  memory = Memory(
    found.argument_size_in_bytes,
    found.output_size_in_bytes,
    found.alias_size_in_bytes,
    found.temp_size_in_bytes,
  )
  costs = hlo_costs.count_costs(text, devices)
  outputs = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    lowered.out_info,
    compiled.output_shardings,
  )
  return CompiledStage(stage.name, seconds, memory, costs=costs), outputs


def needed_bytes(refusal: str) -> float | None:
  """How much memory the compiler says that a program needs.

  >>> needed_bytes("temporaries (600.5G) exceeds available HBM (95.74G).")
  644781965312.0

  Args:
    refusal: its message.

  Returns:
    Bytes, None where it names no number.
  """
  found = _GIVEN.search(refusal) or _USED.search(refusal)
  return None if found is None else float(found[1]) * _UNITS[found[2]]


def compiler_version(devices: Sequence[jax.Device]) -> dict[str, str]:
  """Which compiler answered.

  Args:
    devices: that it compiled for.

  Returns:
    Versions by package.
  """
  names = ["jax", "jaxlib"]
  if devices[0].platform == "tpu":
    names.append("libtpu")
  return {name: importlib.metadata.version(name) for name in names}


def devices_per_chip(devices: Sequence[jax.Device]) -> int:
  """How many jax devices share a chip; 1 where devices have no place.

  Args:
    devices: all of them.

  Returns:
    The number.
  """
  places = {
    tuple(getattr(device, "coords", (device.id,))) for device in devices
  }
  return len(devices) // len(places)
