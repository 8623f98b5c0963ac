"""Devices, memory, versions and measured rates."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from benchmarks import machine
from benchmarks.timing import time_interleaved
from jax.extend.backend import get_backend

from accelerator.pieces import Context

REPEATS = 5
# By size: bytes of the array that is copied, side of the multiplied matrices.
COPIED_BYTES = {"tiny": 2**24, "full": 2**31}
SIDE = {"tiny": 256, "full": 8192}


def run_machine(context: Context) -> dict[str, Any]:
  """Describes the machine, and measures how fast it copies and multiplies.

  Args:
    context: what the piece is told.

  Returns:
    "rates" by name, in bytes or FLOPs per second: "copy" (read and written),
    "read", and products of "bfloat16", "float32" and "float32 highest"; also
    versions, devices, host, tables and a summary.
  """
  rates = measure_rates(context)
  described = machine.describe([])
  devices = [_describe_device(device) for device in jax.devices()]
  host = {
    name: described[name]
    for name in ("processor", "cores", "memory_bytes", "load_average")
  }
  packages = context.machine["packages"] | {
    "python": context.machine["python"],
    "platform": get_backend().platform_version,
  }
  copied, product = rates["copy"] / 1e9, rates["bfloat16"] / 1e12
  return {
    "summary": (
      f"{context.num_devices} x {context.device_kind}: copies {copied:,.0f} "
      f"GB/s, multiplies {product:,.2f} TFLOP/s in bfloat16"
    ),
    "rates": rates,
    "devices": devices,
    "host": host,
    "environment": {
      name: os.environ[name]
      for name in sorted(os.environ)
      if name.startswith(("XLA_", "JAX_", "NVIDIA_TF32", "CUDA_VISIBLE"))
    },
    "tables": {
      "Rates": [_rate_row(name, rate) for name, rate in rates.items()],
      "Devices": devices,
      "Host": [host],
      "Versions": [
        {"package": name, "version": " ".join(version.split())}
        for name, version in packages.items()
      ],
    },
  }


@jax.jit
def _double(x: jax.Array) -> jax.Array:
  return 2 * x


def device_answers() -> bool:
  """Whether the default device computes: after some errors it does no more."""
  try:
    return float(_double(jnp.float32(2.0))) == 4.0
  except Exception:  # The error of before, or any other.
    return False


def measure_rates(context: Context) -> dict[str, float]:
  """Measures bytes per second of copying, FLOPs per second of products."""
  num_bytes, side = COPIED_BYTES[context.size], SIDE[context.size]
  streams = machine.stream_probes(num_bytes)
  products = {
    "bfloat16": machine.product_probe("bfloat16", side),
    "float32": machine.product_probe("float32", side),
  }
  arms = {"copy": machine.copy_probe(num_bytes), **streams, **products}
  times = time_interleaved(arms, REPEATS)
  with jax.default_matmul_precision("highest"):
    # A new program: the precision is part of what is compiled.
    highest = {"float32 highest": machine.product_probe("float32", side)}
    times |= time_interleaved(highest, REPEATS)
  return {
    "copy": times["copy"].rate,
    "read": max(times[name].rate for name in streams),
    **{name: times[name].rate for name in (*products, *highest)},
  }


def _rate_row(name: str, rate: float) -> dict[str, Any]:
  """A rate to read."""
  if name in ("copy", "read"):
    return {"rate": name, "per second": f"{rate / 1e9:,.1f} GB"}
  return {"rate": f"product {name}", "per second": f"{rate / 1e12:,.2f} TFLOP"}


def _describe_device(device: jax.Device) -> dict[str, Any]:
  """What jax tells about a device; a CPU has no statistics of its memory."""
  stats = device.memory_stats() or {}
  return {
    "id": device.id,
    "kind": device.device_kind,
    "memory_limit_bytes": stats.get("bytes_limit"),
    "memory_used_bytes": stats.get("bytes_in_use"),
    "memory_peak_bytes": stats.get("peak_bytes_in_use"),
  }
