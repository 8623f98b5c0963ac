"""Decode attention over shared segments, compared with a loop in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from kernel_inputs import decode_shapes, draw_decode, ring_mask

from pure_jax.kernels import decode_attention as module
from pure_jax.kernels.decode_attention import decode_attention
from pure_jax.models.transformer import attend

run = jax.jit(decode_attention, static_argnames=("implementation", "interpret"))
KERNEL = {"implementation": "pallas", "interpret": True}
XLA = {"implementation": "xla"}
# P, G, N, K, H, L, M: no size is a multiple of a block or of the lanes.
SIZES = [(2, 3, 6, 2, 10, 37, 19), (3, 1, 4, 4, 8, 5, 1)]


def attend_by_hand(q, segments):
  """Row by row and head by head in float64, over the unmasked slots."""
  q = np.asarray(q, np.float64)
  B, N, H = q.shape
  out = np.zeros(q.shape)
  exact = []
  for segment in segments:
    keys = np.asarray(segment.keys, np.float64)
    values = np.asarray(segment.values, np.float64)
    if segment.key_scale is not None:
      keys = keys * np.asarray(segment.key_scale, np.float64)[..., None]
      values = values * np.asarray(segment.value_scale, np.float64)[..., None]
    exact.append((keys, values, segment.mask))
  for b, n in np.ndindex(B, N):
    keys, values = [], []
    for k, v, mask in exact:
      row, head = b * len(k) // B, n * k.shape[1] // N
      keys.append(k[row, head, mask[row]])
      values.append(v[row, head, mask[row]])
    keys, values = np.concatenate(keys), np.concatenate(values)
    weight = np.exp(keys @ q[b, n] / np.sqrt(H))
    out[b, n] = weight @ values / weight.sum()
  return out


@pytest.mark.parametrize(
  ("sizes", "int8"),
  [(SIZES[0], False), (SIZES[0], True), (SIZES[1], False)],
  ids=["float", "int8", "one sample"],
)
def test_rows_attend_to_their_prompt_and_to_their_own_slots(sizes, int8):
  """The mask of another row, a wrong prompt or the scale of another slot would
  change the result by 0.1 or more."""
  inputs = draw_decode(*sizes, int8=int8)
  exact = attend_by_hand(*inputs)
  for options in (XLA, KERNEL):
    out = run(*inputs, **options)
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-6)


def test_a_cache_without_a_shared_segment():
  """Each row has its own prompt before its ring, in one array."""
  q, (_, segment) = draw_decode(2, 3, 6, 2, 10, 5, 39)
  exact = attend_by_hand(q, (segment,))
  for options in (XLA, KERNEL):
    out = run(q, (segment,), **options)
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_the_kernel_reads_no_fully_masked_block(monkeypatch, int8):
  """Masked blocks hold NaN, which any arithmetic on them would show."""
  monkeypatch.setattr(module, "BLOCK_SLOTS", 128)
  P, L, M = 2, 300, 700
  q, (prompts, rings) = draw_decode(P, 2, 4, 2, 8, L, M, int8=int8)
  num_generated = [3, 1, 200, 140]  # 128..130; 631..699 and 0..130.
  first = np.array([0, 260])  # The second prompt has nothing before 260.
  prompts = prompts._replace(mask=np.arange(L)[None] >= first[:, None])
  rings = rings._replace(mask=ring_mask(130, num_generated, M))
  expected = attend_by_hand(q, (prompts, rings))
  names = ("key_scale", "value_scale") if int8 else ("keys", "values")
  for name in names:
    getattr(prompts, name)[1, :, :256] = np.nan
    x = getattr(rings, name)
    x[0, :, :128] = np.nan
    x[1, :, 256:] = np.nan
    x[2:, :, 256:512] = np.nan
  out = run(q, (prompts, rings), **KERNEL)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [XLA, KERNEL], ids=["xla", "pallas"])
def test_bfloat16_products_have_a_float32_softmax(options):
  """The error is below an ulp of values near 1, for rounded inputs.

  A softmax in bfloat16 over 56 keys would be off by 0.03.
  """
  inputs = draw_decode(*SIZES[0], dtype=jnp.bfloat16)
  out = run(*inputs, **options)
  assert out.dtype == jnp.bfloat16
  exact = attend_by_hand(*inputs)
  np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=2**-7)


def test_it_equals_the_attention_of_the_model():
  """With one sample a prompt and slots in order, as a plain decode loop has."""
  q, (prompt, own) = draw_decode(3, 1, 6, 2, 8, 7, 5)
  out = run(q, (prompt, own), **XLA)
  keys = np.concatenate([prompt.keys, own.keys], axis=2)
  values = np.concatenate([prompt.values, own.values], axis=2)
  mask = np.concatenate([prompt.mask, own.mask], axis=1)
  expected = jax.jit(attend)(q[:, None], keys, values, mask[:, None])
  np.testing.assert_allclose(out, expected[:, 0], rtol=1e-6, atol=1e-6)


def test_a_named_implementation_runs_or_raises():
  """A silent fall-back would time XLA under the kernel's name."""
  inputs = draw_decode(*SIZES[0])
  attend_to = functools.partial(decode_attention, *inputs)

  def operations(**options):
    return str(jax.make_jaxpr(lambda: attend_to(**options))())

  assert "pallas_call" in operations(**KERNEL)
  for name in (None, "xla"):
    assert "pallas_call" not in operations(implementation=name)
  with pytest.raises(ValueError, match="must be None or one of"):
    attend_to(implementation="triton")
  with pytest.raises(ValueError, match="interpret mode"):
    attend_to(implementation="pallas")  # This is a CPU.
  large = decode_shapes(1, 512, 1, 1, 128, 8, 128)
  with pytest.raises(ValueError, match="more than the 2097152 of a block"):
    jax.eval_shape(functools.partial(decode_attention, **KERNEL), *large)


def test_shapes_that_do_not_match_are_named():
  q, (prompts, rings) = draw_decode(*SIZES[0])
  with pytest.raises(ValueError, match="5 rows must be a multiple of the 2"):
    decode_attention(q[:5], (prompts, rings))
  shorter = prompts._replace(mask=prompts.mask[:, 1:])
  with pytest.raises(ValueError, match=r"keys of segment 0 has .*\(2, 2, 37"):
    decode_attention(q, (shorter, rings))
  int8 = rings._replace(keys=rings.keys.astype(np.int8))
  with pytest.raises(ValueError, match="int8 keys have a scale"):
    decode_attention(q, (prompts, int8))


def test_prompts_can_be_split_over_devices():
  """Each device gets a prompt and its rows: no row reads another prompt."""
  mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
  inputs = draw_decode(*SIZES[0])
  spread = jax.shard_map(
    functools.partial(decode_attention, **KERNEL),
    mesh=mesh,
    in_specs=PartitionSpec("rows"),
    out_specs=PartitionSpec("rows"),
    check_vma=False,
  )
  out = jax.jit(spread)(*inputs)
  exact = attend_by_hand(*inputs)
  np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-6)
