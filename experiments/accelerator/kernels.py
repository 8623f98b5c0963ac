"""Kernels, compiled where they can be, against their references.

Where a kernel cannot run, the result has the sentence that says why. On a CPU
the Pallas kernels are interpreted: that checks what they compute, not what a
compiler makes of them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelerator.checks import check, compare
from accelerator.machine import device_answers
from accelerator.pieces import Context
from accelerator.small_step import find_cpu, precision_of
from pure_jax.kernels.decode_attention import SegmentArrays, decode_attention
from pure_jax.kernels.linear_logp import linear_logp
from pure_jax.kernels.segment_attention import segment_attention

# Largest difference from float32 on the CPU, as a share of the largest value.
TOLERANCES = {
  "float32": (2e-5, "sums of float32 in another order"),
  "bfloat16": (
    2e-2,
    "results and gradients are rounded to 8 bits, and so are the weights of "
    "the softmax",
  ),
}
BANNED = (0, 1)
# Sizes that are no multiple of a block. Of attention: B, T, N, K, H; of decode
# attention: P, G, N, K, H, slots of a prompt, own slots; of log-probs: B, C, D,
# V.
SIZES = {
  "tiny": {
    "attention": (2, 150, 4, 2, 16),
    "decode": (2, 3, 4, 2, 16, 37, 19),
    "logp": (2, 13, 16, 300),
  },
  "full": {
    "attention": (2, 1001, 8, 2, 128),
    "decode": (3, 4, 8, 2, 128, 1000, 150),
    "logp": (2, 200, 512, 5000),
  },
}
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel, how it is called, and what it must compute.

  Attributes:
    name: of the operation and the implementation.
    call: (implementation, interpret, *floats, *others) -> output, or outputs.
    draw: (sizes, dtype) -> (floats that have a gradient, other arguments).
    sizes: key of `SIZES`.
    implementation: name of the kernel.
    dtypes: dtypes that it takes.
    has_gradient: whether it can be differentiated.
  """

  name: str
  call: Function
  draw: Function
  sizes: str
  implementation: str
  dtypes: tuple[str, ...] = ("float32", "bfloat16")
  has_gradient: bool = True


def _attention(implementation, interpret, q, k, v, ids):
  return segment_attention(
    *(q, k, v, ids), implementation=implementation, interpret=interpret
  )


def _decode(implementation, interpret, q, keys, values, masks):
  segments = [
    SegmentArrays(*each) for each in zip(keys, values, masks, strict=True)
  ]
  return decode_attention(
    q, segments, implementation=implementation, interpret=interpret
  )


def _logp(implementation, interpret, table, hidden, tokens, mask):
  return linear_logp(
    *(table, hidden, tokens, mask),
    tied=True,
    temperature=0.7,
    banned_ids=BANNED,
    implementation=implementation,
    interpret=interpret,
  )


def _draw_attention(sizes, dtype):
  """Rows of padding and three texts."""
  B, T, N, K, H = sizes
  rng = np.random.default_rng(1)
  shapes = (B, T, N, H), (B, K, T, H), (B, K, T, H)
  floats = tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)
  ids = np.sort(rng.integers(0, 4, (B, T)), axis=1).astype(np.int32)
  ids[0, -T // 4 :] = 0
  return floats, (ids,)


def _draw_decode(sizes, dtype):
  """Left-padded prompts, and rows that have generated different lengths."""
  P, G, N, K, H, L, M = sizes
  rng = np.random.default_rng(2)
  q = rng.normal(size=(P * G, N, H)).astype(dtype)
  shapes = (P, K, L, H), (P * G, K, M, H)
  keys, values = (
    tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)
    for _ in range(2)
  )
  prompts = np.arange(L) >= rng.integers(0, L, (P, 1))
  own = np.arange(M) < rng.integers(1, M + 1, (P * G, 1))
  return (q, keys, values), ((prompts, own),)


def _draw_logp(sizes, dtype):
  """Hidden states whose responses have different lengths."""
  B, C, D, V = sizes
  rng = np.random.default_rng(3)
  table = (rng.normal(size=(V, D)) / np.sqrt(D)).astype(dtype)
  hidden = rng.normal(size=(B, C, D)).astype(dtype)
  tokens = rng.integers(len(BANNED), V, (B, C)).astype(np.int32)
  mask = np.arange(C) < np.linspace(1, C, B).astype(int)[:, None]
  return (table, hidden), (tokens, mask)


KERNELS = (
  Kernel(
    "cuDNN attention",
    _attention,
    _draw_attention,
    "attention",
    "cudnn",
    dtypes=("bfloat16",),
  ),
  Kernel(
    "splash attention", _attention, _draw_attention, "attention", "splash"
  ),
  Kernel(
    "decode attention",
    _decode,
    _draw_decode,
    "decode",
    "pallas",
    has_gradient=False,
  ),
  Kernel("log-probs of a head", _logp, _draw_logp, "logp", "pallas"),
)


def run_kernels(context: Context) -> dict[str, Any]:
  """Checks every kernel, forward and, where it has one, its gradient.

  Args:
    context: what the piece is told.

  Returns:
    Checks of each kernel that runs here, and for each other one the sentence
    that says why it cannot.

  Raises:
    PieceError: if there is no CPU to compare with.
  """
  interpret = context.platform == "cpu"
  find_cpu()  # Nothing can be compared without it.
  checks, rows, broken = [], [], ""
  for kernel in KERNELS:
    for dtype in kernel.dtypes[:1] if interpret else kernel.dtypes:
      row = {"kernel": kernel.name, "dtype": dtype}
      if broken:
        rows.append(row | {"how": f"not run: {broken}"})
        continue
      try:
        results = check_kernel(kernel, dtype, context.size, interpret)
      except Exception as error:
        # The kernel says why it "cannot run"; all else is its failure.
        why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if isinstance(error, ValueError) and "cannot run" in why:
          rows.append(row | {"how": f"not run: {error}"})
          continue
        results = [
          check(f"{kernel.name} in {dtype} runs", False, why, "runs", "")
        ]
        if not device_answers():
          broken = f"the device computes no more since {kernel.name} failed"
      how = "interpreted" if interpret else "compiled"
      rows.append(row | {"how": how})
      checks += results
  notes = []
  if interpret:
    notes.append(
      "This is a CPU, where Pallas kernels are interpreted: that checks what "
      "they compute, not how a compiler translates and rounds it."
    )
  return {
    "summary": ", ".join(
      f"{row['kernel']} ({row['dtype']}) {row['how'].split(':')[0]}"
      for row in rows
    ),
    "checks": checks,
    "notes": notes,
    "tables": {"Kernels": rows},
  }


def check_kernel(
  kernel: Kernel, dtype: str, size: str, interpret: bool
) -> list[dict[str, Any]]:
  """Compares a kernel with XLA in float32 on the CPU.

  Args:
    kernel: the kernel.
    dtype: dtype of its floats.
    size: key of `SIZES`.
    interpret: whether it is interpreted.

  Returns:
    Checks of its outputs and its gradients.

  Raises:
    ValueError: if the kernel cannot run here.
  """
  floats, others = kernel.draw(SIZES[size][kernel.sizes], jnp.dtype(dtype))
  call = functools.partial(kernel.call, kernel.implementation, interpret)
  with precision_of(dtype):
    outputs = _run(kernel, call, floats, others)
  exact = jax.tree.map(lambda x: np.asarray(x, np.float32), floats)
  reference = functools.partial(kernel.call, "xla", False)
  with jax.default_device(find_cpu()), precision_of("float32"):
    expected = _run(kernel, reference, exact, others)
  allowed, reason = TOLERANCES[dtype]
  return [
    compare(
      f"{kernel.name} in {dtype}: {name}", outputs[name], value, allowed, reason
    )
    for name, value in expected.items()
  ]


def _run(kernel, call, floats, others):
  """Outputs and gradients by name, float32 on the host."""

  def run(floats, others):
    if not kernel.has_gradient:
      return call(*floats, *others), ()
    out, back = jax.vjp(lambda *x: call(*x, *others), *floats)
    return out, back(_cotangents(out))

  out, gradients = jax.jit(run)(floats, others)
  named = {f"output {i}": x for i, x in enumerate(jax.tree.leaves(out))}
  named |= {f"gradient {i}": x for i, x in enumerate(gradients)}
  return {name: np.asarray(x, np.float32) for name, x in named.items()}


def _cotangents(out):
  """The same weights for every dtype, so that every output counts."""
  rng = np.random.default_rng(9)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.bfloat16).astype(
      x.dtype
    ),
    out,
  )
