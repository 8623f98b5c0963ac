"""Decode attention over shared parts, held to a loop over rows in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pure_jax.kernels import decode_attention as module
from pure_jax.kernels.decode_attention import Part, decode_attention
from pure_jax.models.transformer import attend

run = jax.jit(decode_attention, static_argnames=("implementation", "interpret"))
KERNEL = {"implementation": "pallas", "interpret": True}
# P, G, N, K, H, L, M: no size divides a block or a lane.
SIZES = [(2, 3, 6, 2, 10, 37, 19), (3, 1, 4, 4, 8, 5, 1)]


def ring_mask(slot, ages, M):
  """[B, M] bool: so many of the latest slots of a ring are a row's own."""
  behind = (slot - jnp.arange(M)) % M
  return behind[None] < ages[:, None]


def draw(P, G, N, K, H, L, M, dtype=jnp.float32, int8=False):
  """Left-padded prompts and rings of rows of different ages."""
  rng = np.random.default_rng(5)
  B = P * G

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  def part(rows, slots, mask):
    shape = rows, K, slots, H
    if not int8:
      return Part(normal(*shape), normal(*shape), mask)
    data = [
      jnp.asarray(rng.integers(-127, 128, shape), jnp.int8) for _ in range(2)
    ]
    scales = [
      jnp.asarray(rng.uniform(0.005, 0.02, shape[:3]), jnp.float32)
      for _ in range(2)
    ]
    return Part(*data, mask, *scales)

  q = normal(B, N, H)
  prompt_mask = jnp.asarray(np.arange(L) >= rng.integers(0, L, P)[:, None])
  ages = jnp.asarray(rng.integers(1, M + 1, B), jnp.int32)
  own = ring_mask(rng.integers(M), ages, M)
  return q, (part(P, L, prompt_mask), part(B, M, own))


def by_hand(q, parts):
  """Row by row and head by head in float64, over what the row may see."""
  q = np.asarray(q, np.float64)
  B, N, H = q.shape
  out = np.zeros(q.shape)
  exact = []
  for part in parts:
    keys, values = (np.asarray(x, np.float64) for x in part[:2])
    if part.key_scale is not None:
      keys = keys * np.asarray(part.key_scale, np.float64)[..., None]
      values = values * np.asarray(part.value_scale, np.float64)[..., None]
    exact.append((keys, values, np.asarray(part.mask)))
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


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("options", [{}, KERNEL], ids=["xla", "pallas"])
def test_rows_attend_to_their_prompt_and_to_their_own_slots(
  sizes, options, int8
):
  """A mask of another row, or a wrong prompt, is off by 0.1 and more; so is a
  scale of another slot."""
  given = draw(*sizes, int8=int8)
  found = run(*given, **options)
  np.testing.assert_allclose(found, by_hand(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, KERNEL], ids=["xla", "pallas"])
def test_rows_without_a_shared_part(options):
  """Each has its own prompt in front of its ring, in one array."""
  q, (_, part) = draw(2, 3, 6, 2, 10, 5, 39)
  found = run(q, (part,), **options)
  np.testing.assert_allclose(found, by_hand(q, (part,)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_the_kernel_reads_only_blocks_that_some_row_needs(monkeypatch, int8):
  """The rest holds NaN, which any arithmetic would show."""
  monkeypatch.setattr(module, "BLOCK_SLOTS", 128)
  P, L, M = 2, 300, 700
  q, (prompts, rings) = draw(P, 2, 4, 2, 8, L, M, int8=int8)
  ages = jnp.array([3, 1, 200, 140])  # 128..130; 631..699 and 0..130.
  first = jnp.array([0, 260])  # The second prompt has nothing before 260.
  prompts = prompts._replace(mask=jnp.arange(L)[None] >= first[:, None])
  rings = rings._replace(mask=ring_mask(130, ages, M))
  expected = by_hand(q, (prompts, rings))

  def spoil(part, spots):
    fields = ("key_scale", "value_scale") if int8 else ("keys", "values")
    for name in fields:
      x = getattr(part, name)
      for row, slots in spots:
        x = x.at[row, :, slots].set(jnp.nan)
      part = part._replace(**{name: x})
    return part

  prompts = spoil(prompts, [(1, slice(0, 256))])
  rings = spoil(
    rings,
    [
      (0, slice(0, 128)),
      (1, slice(256, M)),
      (2, slice(256, 512)),
      (3, slice(256, 512)),
    ],
  )
  found = run(q, (prompts, rings), **KERNEL)
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


def test_it_is_the_models_attention():
  """One sample each, all slots in order: the cache of a plain decode loop."""
  q, (prompt, own) = draw(3, 1, 6, 2, 8, 7, 5)
  found = run(q, (prompt, own))
  keys, values, mask = (
    jnp.concatenate([prompt[n], own[n]], axis=axis)
    for n, axis in ((0, 2), (1, 2), (2, 1))
  )
  expected = attend(q[:, None], keys, values, mask[:, None])
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
  q, (prompts, rings) = draw(*SIZES[0])
  with pytest.raises(ValueError, match="5 rows must be a multiple of the 2"):
    decode_attention(q[:5], (prompts, rings))
  with pytest.raises(ValueError, match=r"keys of part 0 has shape \(2, 2, 37"):
    shorter = prompts._replace(mask=prompts.mask[:, 1:])
    decode_attention(q, (shorter, rings))
  with pytest.raises(ValueError, match="int8 keys have a scale"):
    whole = rings._replace(keys=rings.keys.astype(jnp.int8))
    decode_attention(q, (prompts, whole))


def test_prompts_can_be_split_over_devices():
  """Each device takes a prompt and its rows; no row reads another's prompt."""
  mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
  given = draw(*SIZES[0])
  spread = jax.shard_map(
    functools.partial(decode_attention, **KERNEL),
    mesh=mesh,
    in_specs=PartitionSpec("rows"),
    out_specs=PartitionSpec("rows"),
    check_vma=False,
  )
  found = jax.jit(spread)(*given)
  np.testing.assert_allclose(found, by_hand(*given), rtol=1e-5, atol=1e-6)
