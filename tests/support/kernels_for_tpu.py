"""A script that compiles every kernel for a TPU, without one.

Its arguments are the name of a topology, and "odd" for small unaligned sizes or
"7B" for those of a real model. It prints one line of JSON: for each program the
number of kernels that its compiled text calls, or the compiler's error.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from kernel_inputs import decode_shapes, shape, text_shapes

from pure_jax.kernels.decode_attention import decode_attention
from pure_jax.kernels.linear_logp import linear_logp
from pure_jax.kernels.segment_attention import segment_attention
from pure_jax.runs.planning.devices import find_devices


def logp_program(tied, **settings):
  """Values and gradients of a head."""

  def objective(table, hidden, tokens, mask):
    logp, entropy = linear_logp(
      table, hidden, tokens, mask, tied=tied, **settings
    )
    return jnp.sum(logp + entropy)

  return jax.value_and_grad(objective, argnums=(0, 1))


def logp_arguments(B, C, D, V, tied, dtype):
  return (
    shape((V, D) if tied else (D, V), dtype),
    shape((B, C, D), dtype),
    shape((B, C), jnp.int32),
    shape((B, C), bool),
  )


def attention_program(*arguments):
  """Values and three gradients."""

  def objective(*arguments):
    out = segment_attention(*arguments, implementation="splash")
    return jnp.sum(out.astype(jnp.float32))

  return jax.value_and_grad(objective, argnums=(0, 1, 2))(*arguments)


# By name: of decode attention (P, G, N, K, H, L, M), of a head (B, C, D, V).
DECODE = {
  "odd": (
    ("decode one block", jnp.float32, (2, 3, 6, 2, 10, 37, 19)),
    ("decode blocks", jnp.bfloat16, (2, 3, 9, 3, 64, 700, 1100)),
  ),
  "7B": (("decode", jnp.bfloat16, (4, 8, 28, 4, 128, 512, 8192)),),
}
# B, T, N, K, H.
TEXTS = {"odd": (2, 700, 9, 3, 10), "7B": (2, 9000, 28, 4, 128)}
HEADS = {
  "odd": (
    ("logp tied", jnp.float32, True, (3, 13, 10, 1100)),
    ("logp head", jnp.bfloat16, False, (3, 213, 10, 1100)),
  ),
  "7B": (
    ("logp head", jnp.bfloat16, False, (8, 1024, 3584, 152064)),
    ("logp tied", jnp.bfloat16, True, (8, 1024, 3584, 152064)),
    ("logp 135M", jnp.bfloat16, True, (8, 512, 576, 49152)),
  ),
}


def programs(which):
  """(name, function, arguments)."""
  decode = functools.partial(decode_attention, implementation="pallas")
  for name, dtype, sizes in DECODE[which]:
    for kind, int8 in ((name, False), (f"{name} int8", True)):
      yield kind, decode, decode_shapes(*sizes, dtype=dtype, int8=int8)
  yield "splash", attention_program, text_shapes(*TEXTS[which], jnp.bfloat16)
  settings = dict(temperature=0.7, banned_ids=(0,), implementation="pallas")
  for name, dtype, tied, sizes in HEADS[which]:
    arguments = logp_arguments(*sizes, tied, dtype)
    yield name, logp_program(tied, **settings), arguments


def main() -> None:
  devices = find_devices(sys.argv[1])
  on_tpu = SingleDeviceSharding(devices[0])
  results = {}
  for name, function, arguments in programs(sys.argv[2]):
    jitted = jax.jit(function, in_shardings=on_tpu, out_shardings=on_tpu)
    try:
      text = jitted.lower(*arguments).compile().as_text()
    except Exception as error:
      results[name] = f"{type(error).__name__}: {error}"
      continue
    results[name] = text.count('custom_call_target="tpu_custom_call"')
  print(json.dumps(results))


if __name__ == "__main__":
  main()
