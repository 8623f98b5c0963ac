"""Decode attention over a shared prefix, held to a loop over rows in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pure_jax.kernels import decode_attention as module
from pure_jax.kernels.decode_attention import decode_attention
from pure_jax.models.transformer import attend

run = jax.jit(decode_attention, static_argnames=("implementation", "interpret"))
KERNEL = {"implementation": "pallas", "interpret": True}
# P, G, N, K, H, L, M: no size divides a block or a lane.
SIZES = [(2, 3, 6, 2, 10, 37, 19), (3, 1, 4, 4, 8, 5, 1)]


def draw(P, G, N, K, H, L, M, dtype=jnp.float32):
  """Random arguments: left-padded prompts, rows of different ages."""
  rng = np.random.default_rng(5)
  B = P * G

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  return (
    *(normal(B, N, H), normal(P, K, L, H), normal(P, K, L, H)),
    jnp.asarray(np.arange(L) >= rng.integers(0, L, P)[:, None]),
    *(normal(B, K, M, H), normal(B, K, M, H)),
    jnp.int32(rng.integers(M)),
    jnp.asarray(rng.integers(1, M + 1, B), jnp.int32),
  )


def by_hand(q, prefix_k, prefix_v, prefix_mask, k, v, slot, ages):
  """Row by row and head by head in float64, over what the row may see."""
  q, prefix_k, prefix_v, k, v = (
    np.asarray(x, np.float64) for x in (q, prefix_k, prefix_v, k, v)
  )
  (B, N, H), M = q.shape, k.shape[2]
  G, R = B // len(prefix_k), N // k.shape[1]
  out = np.zeros(q.shape)
  for b, n in np.ndindex(B, N):
    seen = np.asarray(prefix_mask[b // G])
    own = [(int(slot) - back) % M for back in range(int(ages[b]))]
    keys = np.concatenate([prefix_k[b // G, n // R, seen], k[b, n // R, own]])
    values = np.concatenate([prefix_v[b // G, n // R, seen], v[b, n // R, own]])
    weight = np.exp(keys @ q[b, n] / np.sqrt(H))
    out[b, n] = weight @ values / weight.sum()
  return out


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("options", [{}, KERNEL], ids=["xla", "pallas"])
def test_rows_attend_to_their_prompt_and_to_their_own_slots(sizes, options):
  """A ring read from its start, or a wrong prompt, is off by 0.1 and more."""
  given = draw(*sizes)
  found = run(*given, **options)
  np.testing.assert_allclose(found, by_hand(*given), rtol=1e-5, atol=1e-6)


def test_the_kernel_reads_only_blocks_that_some_row_needs(monkeypatch):
  """The rest holds NaN, which any arithmetic would show."""
  monkeypatch.setattr(module, "BLOCK_SLOTS", 128)
  P, L, M, slot = 2, 300, 700, 130
  given = list(draw(P, 2, 4, 2, 8, L, M))
  ages = jnp.array([3, 1, 200, 140])  # 128..130; 631..699 and 0..130.
  first = jnp.array([0, 260])  # The second prompt has nothing before 260.
  prefix_mask = jnp.arange(L)[None] >= first[:, None]
  given[3], given[6], given[7] = prefix_mask, jnp.int32(slot), ages
  expected = by_hand(*given)

  def spoil(x, row, slots):
    return x.at[row, :, slots].set(jnp.nan)

  for name in (1, 2):
    given[name] = spoil(given[name], 1, slice(0, 256))
  for name in (4, 5):
    for row, slots in ((0, slice(0, 128)), (1, slice(256, M)),
                       (2, slice(256, 512)), (3, slice(256, 512))):  # fmt: skip
      given[name] = spoil(given[name], row, slots)
  found = run(*given, **KERNEL)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, KERNEL], ids=["xla", "pallas"])
def test_in_bfloat16_only_products_are(options):
  """Within an ulp of values near 1 of the exact result of rounded inputs.

  A softmax in bfloat16 over 56 keys is off by 0.03.
  """
  given = draw(*SIZES[0], dtype=jnp.bfloat16)
  found = run(*given, **options)
  assert found.dtype == jnp.bfloat16
  found = found.astype(jnp.float32)
  np.testing.assert_allclose(found, by_hand(*given), atol=2**-7)


def test_without_shared_prompts_it_is_the_models_attention():
  """One sample each, all slots in order: the cache of a plain decode loop."""
  q, prefix_k, prefix_v, mask, k, v, *_ = draw(3, 1, 6, 2, 8, 7, 5)
  ages = jnp.array([5, 4, 1])
  found = run(q, prefix_k, prefix_v, mask, k, v, jnp.int32(4), ages)
  own = jnp.arange(5)[None] >= 5 - ages[:, None]
  expected = attend(
    q[:, None],
    jnp.concatenate([prefix_k, k], axis=2),
    jnp.concatenate([prefix_v, v], axis=2),
    jnp.concatenate([mask, own], axis=1)[:, None],
  )
  np.testing.assert_allclose(found, expected[:, 0], rtol=1e-6, atol=1e-6)


def test_the_named_implementation_runs_or_says_why_not():
  """A fall-back in silence would time XLA under the kernel's name."""
  given = draw(*SIZES[0])
  attend_to = functools.partial(decode_attention, *given)

  def operations(**options):
    return str(jax.make_jaxpr(lambda: attend_to(**options))())

  assert "pallas_call" in operations(**KERNEL)
  for name in (None, "xla"):
    assert "pallas_call" not in operations(implementation=name)
  with pytest.raises(ValueError, match="must be None or one of"):
    attend_to(implementation="triton")
  with pytest.raises(ValueError, match="interpret mode"):
    attend_to(implementation="pallas")  # This is a CPU.
  large = jax.eval_shape(lambda: draw(1, 512, 1, 1, 128, 8, 128))
  with pytest.raises(ValueError, match="more than the 2097152 of a block"):
    jax.eval_shape(functools.partial(decode_attention, **KERNEL), *large)


def test_shapes_that_do_not_fit_are_named():
  q, prefix_k, prefix_v, mask, *rest = draw(*SIZES[0])
  with pytest.raises(ValueError, match="5 rows must be a multiple of 2"):
    decode_attention(q[:5], prefix_k, prefix_v, mask, *rest)
  with pytest.raises(ValueError, match=r"prefix_mask_PL has shape \(2, 36\)"):
    decode_attention(q, prefix_k, prefix_v, mask[:, 1:], *rest)


def test_prompts_can_be_split_over_devices():
  """Each device takes a prompt and its rows; no row reads another's prompt."""
  mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
  split = PartitionSpec("rows")
  given = draw(*SIZES[0])
  spread = jax.shard_map(
    functools.partial(decode_attention, **KERNEL),
    mesh=mesh,
    in_specs=(*[split] * 6, PartitionSpec(), split),
    out_specs=split,
    check_vma=False,
  )
  found = jax.jit(spread)(*given)
  np.testing.assert_allclose(found, by_hand(*given), rtol=1e-5, atol=1e-6)
