"""The suite "kernels": each operation by XLA and by a kernel, on accelerators.

The operations have the sizes of a rollout or an update of the case. A kernel
that does not compile for the device is left out: the time of an interpreted
kernel says nothing.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import bounds
from benchmarks.cases import Case
from benchmarks.models import Options
from benchmarks.programs import Program, compile_call
from benchmarks.timing import Arm, timed
from pure_jax.kernels.decode_attention import SegmentArrays, decode_attention
from pure_jax.kernels.linear_logp import linear_logp
from pure_jax.kernels.segment_attention import segment_attention
from pure_jax.models.token_logp import Readout, chunked_logp

# Used if the options have no `logits_chunk`.
LOGITS_CHUNK = 128


def kernel_arms(case: Case, options: Options) -> dict[str, Program]:
  """Prepares two kinds of attention and the log-probs of a head.

  Attention is that of one layer: of one new token, halfway through the
  responses, and of whole texts. Whole texts and log-probs include gradients,
  and have the rows of a micro-batch. XLA computes log-probs from all logits at
  once and, in an arm of its own, from chunks of them.

  Args:
    case: sizes; at least two samples of each prompt.
    options: the dtype, the rows and the chunk of logits matter.

  Returns:
    By operation and implementation: "decode xla", "texts xla", "logp xla" and
    "logp chunked"; on a TPU also "decode pallas", "texts splash" and "logp
    pallas", on a GPU in 16 bits "texts cudnn". The compiler's counts of a
    program do not include the inside of a kernel.
  """
  return _decode(case, options) | _texts(case, options) | _logp(case, options)


def _implementations(tpu: str = "pallas", gpu: str | None = None) -> list[str]:
  """Names XLA, and the kernel that compiles for this device if one does."""
  kernel = {"tpu": tpu, "gpu": gpu}.get(jax.default_backend())
  return ["xla"] if kernel is None else ["xla", kernel]


def _arms(
  name: str,
  functions: dict[str, Callable[..., Any]],
  arguments: Sequence[Any],
  tokens: int,
  phase: bounds.Phase,
) -> dict[str, Program]:
  """Compiles implementations of one operation as variants of the first."""
  first = f"{name} {next(iter(functions))}"
  arms = {}
  for implementation, function in functions.items():
    compiled, compilation = compile_call(jax.jit(function), *arguments)
    arm_name = f"{name} {implementation}"
    arms[arm_name] = Program(
      Arm(timed(compiled, *arguments), tokens),
      [phase],
      compilation,
      compiled(*arguments),
      variant_of=None if arm_name == first else first,
    )
  return arms


def _normal(rng: np.random.Generator, dtype: str, *shape: int) -> jax.Array:
  return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)


def _decode(case: Case, options: Options) -> dict[str, Program]:
  """One layer's attention of one new token per row."""
  model = options.model(case.model)
  P, B, L, M = case.prompts, case.rows, case.prompt_tokens, case.new_tokens
  N, K, H = model.num_heads, model.num_kv_heads, model.head_dim
  num_generated = -(-M // 2)
  draw = functools.partial(_normal, np.random.default_rng(3), options.dtype)
  arguments = (
    draw(B, N, H),
    (
      SegmentArrays(draw(P, K, L, H), draw(P, K, L, H), jnp.ones((P, L), bool)),
      SegmentArrays(
        *(draw(B, K, M, H), draw(B, K, M, H)),
        jnp.broadcast_to(jnp.arange(M) < num_generated, (B, M)),
      ),
    ),
  )
  functions = {
    name: functools.partial(decode_attention, implementation=name)
    for name in _implementations()
  }
  # FLOPs of scores and weighted values; bytes of keys and values.
  phase = bounds.Phase(
    4.0 * B * N * H * (L + num_generated),
    2.0 * K * H * (P * L + B * num_generated) * options.itemsize,
  )
  return _arms("decode", functions, arguments, B, phase)


def _texts(case: Case, options: Options) -> dict[str, Program]:
  """One layer's attention in prompts and responses, with three gradients."""
  model = options.model(case.model)
  N, K, H = model.num_heads, model.num_kv_heads, model.head_dim
  B = min(case.rows, options.rows_at_a_time)
  T = case.prompt_tokens + case.new_tokens
  draw = functools.partial(_normal, np.random.default_rng(6), options.dtype)
  arguments = draw(B, T, N, H), draw(B, K, T, H), draw(B, K, T, H)
  arguments += (jnp.ones((B, T), jnp.int32),)

  def objective(name, *arguments):
    out = segment_attention(*arguments, implementation=name)
    return jnp.sum(out.astype(jnp.float32))

  gpu = "cudnn" if options.itemsize == 2 else None
  functions = {
    name: jax.value_and_grad(
      functools.partial(objective, name), argnums=(0, 1, 2)
    )
    for name in _implementations("splash", gpu)
  }
  # FLOPs of scores and weighted values for all pairs, twice as many backward.
  # Three arrays are read, three gradients written.
  moved = sum(x.nbytes for x in arguments[:3])
  pairs = B * T * (T + 1) // 2
  phase = bounds.Phase(12.0 * pairs * N * H, 2.0 * moved)
  return _arms("texts", functions, arguments, B * T, phase)


def _logp(case: Case, options: Options) -> dict[str, Program]:
  """Values and gradients of a sum of log-probs and entropies."""
  model = options.model(case.model)
  D, V, tied = model.width, model.vocab_size, model.tied_embeddings
  B, C = min(case.rows, options.rows_at_a_time), case.new_tokens
  rng = np.random.default_rng(4)
  draw = functools.partial(_normal, rng, options.dtype)
  arguments = (
    draw(*((V, D) if tied else (D, V))) * D**-0.5,
    draw(B, C, D),
    jnp.asarray(rng.integers(0, V, (B, C)), jnp.int32),
    jnp.ones((B, C), bool),
  )

  def objective(function, table, hidden, *rest):
    logp, entropy = function(table, hidden, *rest)
    return jnp.sum(logp + entropy)

  def gradients(function):
    return jax.value_and_grad(
      functools.partial(objective, function), argnums=(0, 1)
    )

  chunk = options.logits_chunk or LOGITS_CHUNK
  functions = {
    name: gradients(
      functools.partial(linear_logp, tied=tied, implementation=name)
    )
    for name in _implementations()
  }
  functions["chunked"] = gradients(
    functools.partial(chunked_logp, Readout(tied, 1.0, (), chunk))
  )
  # Three products. The forward pass reads the table and the hidden states, the
  # backward pass reads them again and writes as many gradients.
  phase = bounds.Phase(
    6.0 * B * C * D * V, 3.0 * (V * D + B * C * D) * options.itemsize
  )
  return _arms("logp", functions, arguments, B * C, phase)
