"""The suite of kernels: each operation by XLA and by kernels that run here.

The operations have the sizes that a rollout or an update of the case gives
them. A kernel that would have to be interpreted is left out: what that takes
says nothing.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import bounds
from benchmarks.cases import Case
from benchmarks.programs import Compiled, Options, compile_call
from benchmarks.timing import Arm, timed
from pure_jax.kernels.decode_attention import SegmentArrays, decode_attention
from pure_jax.kernels.linear_logp import linear_logp
from pure_jax.kernels.segment_attention import segment_attention
from pure_jax.models.token_logp import Readout, chunked_logp

# Slots whose logits exist at one time, where the options name no number.
LOGITS_CHUNK = 128


def kernels(case: Case, options: Options) -> dict[str, Compiled]:
  """Both attentions, and the head's log-probs.

  Attention is that of one layer: of a new token halfway through the responses,
  and of whole texts to themselves. That one and log-probs come with gradients
  and are of as many rows as an update reads together; XLA makes log-probs from
  all logits at once and, in an arm of its own, from chunks.

  Args:
    case: sizes; at least two samples of each prompt.
    options: dtype, rows and chunk of logits are read.

  Returns:
    By operation and implementation: "decode xla", "texts xla", "logp xla" and
    "logp chunked"; on a TPU also "decode pallas", "texts splash" and "logp
    pallas", on a GPU in 16 bits "texts cudnn". What a compiler says of a
    kernel's program counts nothing within the kernel.
  """
  return _decode(case, options) | _texts(case, options) | _logp(case, options)


def _implementations(tpu: str = "pallas", gpu: str | None = None) -> list[str]:
  """XLA, and the kernel that compiles for the devices here if there is one."""
  kernel = {"tpu": tpu, "gpu": gpu}.get(jax.default_backend())
  return ["xla"] if kernel is None else ["xla", kernel]


def _arms(
  name: str,
  functions: dict[str, Callable[..., Any]],
  arguments: Sequence[Any],
  tokens: int,
  phase: bounds.Phase,
) -> dict[str, Compiled]:
  """Ways to do the same, the first of which the others stand beside."""
  first = f"{name} {next(iter(functions))}"
  arms = {}
  for way, function in functions.items():
    compiled, compilation = compile_call(jax.jit(function), *arguments)
    arms[f"{name} {way}"] = Compiled(
      Arm(timed(compiled, *arguments), tokens),
      [phase],
      compilation,
      compiled(*arguments),
      instead_of=None if f"{name} {way}" == first else first,
    )
  return arms


def _normal(rng: np.random.Generator, dtype: str, *shape: int) -> jax.Array:
  return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)


def _decode(case: Case, options: Options) -> dict[str, Compiled]:
  """One layer's attention of one new token per row."""
  model = options.model(case.model)
  P, B, L, M = case.prompts, case.rows, case.prompt_tokens, case.new_tokens
  N, K, H = model.num_heads, model.num_kv_heads, model.head_dim
  age = -(-M // 2)
  draw = functools.partial(_normal, np.random.default_rng(3), options.dtype)
  arguments = (
    draw(B, N, H),
    (
      SegmentArrays(draw(P, K, L, H), draw(P, K, L, H), jnp.ones((P, L), bool)),
      SegmentArrays(
        *(draw(B, K, M, H), draw(B, K, M, H)),
        jnp.broadcast_to(jnp.arange(M) < age, (B, M)),
      ),
    ),
  )
  functions = {
    name: functools.partial(decode_attention, implementation=name)
    for name in _implementations()
  }
  # Scores and weighted values; keys and values of prompts and rows, read.
  phase = bounds.Phase(
    4.0 * B * N * H * (L + age),
    2.0 * K * H * (P * L + B * age) * options.itemsize,
  )
  return _arms("decode", functions, arguments, B, phase)


def _texts(case: Case, options: Options) -> dict[str, Compiled]:
  """One layer's attention of prompts and responses, with three gradients."""
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
  # Scores and weighted values of pairs, twice as much backward; all are read,
  # and three gradients written.
  moved = sum(x.nbytes for x in arguments[:3])
  pairs = B * T * (T + 1) // 2
  phase = bounds.Phase(12.0 * pairs * N * H, 2.0 * moved)
  return _arms("texts", functions, arguments, B * T, phase)


def _logp(case: Case, options: Options) -> dict[str, Compiled]:
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
  # Three products; forward reads the table and hidden states, backward reads
  # them once more and writes as much.
  phase = bounds.Phase(
    6.0 * B * C * D * V, 3.0 * (V * D + B * C * D) * options.itemsize
  )
  return _arms("logp", functions, arguments, B * C, phase)
