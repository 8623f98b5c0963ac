"""Log-prob and entropy without logits, held to a definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.kernels import linear_logp_tiles as tiled
from pure_jax.kernels.linear_logp import linear_logp
from pure_jax.models import token_logp

KERNEL = {"implementation": "pallas", "interpret": True}
# B, C, D, V with tiles of 16 tokens and 128 ids: no size divides one.
SIZES = (3, 13, 10, 300)
LENGTHS = np.array([13, 0, 5])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
  """Several tiles both ways, the last of each not full."""
  monkeypatch.setattr(tiled, "TILE_TOKENS", 16)
  monkeypatch.setattr(tiled, "TILE_IDS", 128)


def draw(tied, dtype=jnp.float32, scale=0.5):
  """(table, hidden, tokens, mask), and cotangents of both outputs."""
  B, C, D, V = SIZES
  rng = np.random.default_rng(7)
  table = rng.normal(size=(V, D)) * scale
  given = (
    jnp.asarray(table if tied else table.T, dtype),
    jnp.asarray(rng.normal(size=(B, C, D)), dtype),
    jnp.asarray(rng.integers(3, V, (B, C)), jnp.int32),
    jnp.asarray(np.arange(C) < LENGTHS[:, None]),
  )
  return given, jnp.asarray(rng.normal(size=(2, B, C)), jnp.float32)


def by_hand(table, hidden, tokens, mask, tied, temperature, banned_ids):
  """(logp, entropy) in float64."""
  table, hidden = (np.asarray(x, np.float64) for x in (table, hidden))
  scores = hidden @ (table.T if tied else table) / temperature
  allowed = ~np.isin(np.arange(scores.shape[-1]), banned_ids)
  weight = np.exp(scores - scores[..., allowed].max(-1, keepdims=True))
  p = weight * allowed / (weight * allowed).sum(-1, keepdims=True)
  logs = np.log(np.where(allowed, p, 1.0))
  logp = np.take_along_axis(logs, np.asarray(tokens)[..., None], -1)[..., 0]
  return np.where(mask, logp, 0), np.where(mask, -(p * logs).sum(-1), 0)


def value_and_gradients(function, given, cotangents):
  """((logp, entropy), gradients by table and hidden states)."""

  @jax.jit
  def run(table, hidden):
    found, back = jax.vjp(
      lambda *two: function(*two, *given[2:]), table, hidden
    )
    return found, back(tuple(cotangents))

  return run(*given[:2])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
  ("temperature", "banned"), [(1.0, ()), (0.6, (*range(128), 299))]
)
def test_values_and_gradients_are_those_of_all_logits(
  tied, temperature, banned
):
  """With a whole tile banned, and no sum that reaches beyond the last id.

  The oracles are numpy for values, jax's own derivative for gradients.
  """
  settings = dict(tied=tied, temperature=temperature, banned_ids=banned)
  given, cotangents = draw(tied)
  # Of a banned id the log-prob is -inf, as tested below.
  tokens = jnp.where(jnp.isin(given[2], jnp.array(banned, int)), 200, given[2])
  given = (*given[:2], tokens, given[3])
  plain, expected = value_and_gradients(
    functools.partial(linear_logp, **settings), given, cotangents
  )
  values, gradients = value_and_gradients(
    functools.partial(linear_logp, **settings, **KERNEL), given, cotangents
  )
  exact = by_hand(*given, tied, temperature, banned)
  for found in (plain, values):
    for x, y in zip(found, exact, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6)
  for x, y in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
  masked = ~np.asarray(given[3])
  assert not np.asarray(gradients[1])[masked].any()


@pytest.mark.parametrize("tied", [True, False])
def test_in_bfloat16_it_rounds_where_the_chunked_scores_do(tied):
  """Products of bfloat16 with float32 sums, the logits' gradient rounded.

  Logits in bfloat16 would be off by 0.02; gradients of two orders of sums
  differ by the rounding of the results, one part in 256.
  """
  given, cotangents = draw(tied, jnp.bfloat16)
  readout = token_logp.Readout(tied, 0.8, (0,), 4)
  expected = value_and_gradients(
    functools.partial(token_logp.chunked_logp, readout), given, cotangents
  )
  found = value_and_gradients(
    functools.partial(
      linear_logp, tied=tied, temperature=0.8, banned_ids=(0,), **KERNEL
    ),
    given,
    cotangents,
  )
  for x, y in zip(found[0], expected[0], strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
  for x, y in zip(found[1], expected[1], strict=True):
    assert x.dtype == jnp.bfloat16
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    np.testing.assert_allclose(x, y, rtol=2**-7, atol=2e-3)


def test_large_logits_do_not_cancel_in_the_entropy():
  """All near 65,536, as small integers make them, exactly.

  Log-sum less mean score is a multiple of 1/128 there.
  """
  (_, hidden, tokens, mask), _ = draw(True)
  table = np.random.default_rng(1).integers(-2, 3, (SIZES[3], SIZES[2]))
  table[128:] += 1  # A later tile has the largest.
  table[:, 0] = 2**16
  hidden = jnp.round(hidden).at[..., 0].set(1)
  given = jnp.asarray(table, jnp.float32), hidden, tokens, mask
  _, entropy = linear_logp(*given, tied=True, **KERNEL)
  exact = by_hand(*given, True, 1.0, ())[1]
  assert exact.max() > 1
  np.testing.assert_allclose(entropy, exact, rtol=1e-5, atol=1e-6)


def test_a_batch_without_a_token_and_a_banned_one():
  """Zeros with zero gradients, not NaN; -inf where there is no chance."""
  given, cotangents = draw(True)
  nothing = (*given[:3], jnp.zeros_like(given[3]))
  run = functools.partial(linear_logp, tied=True, **KERNEL)
  for x in jax.tree.leaves(value_and_gradients(run, nothing, cotangents)):
    assert not np.asarray(x).any()
  banned = int(given[2][0, 0])
  logp, entropy = linear_logp(*given, tied=True, banned_ids=(banned,), **KERNEL)
  assert logp[0, 0] == -np.inf
  assert np.isfinite(entropy).all()


def test_tiles_without_a_token_are_not_read():
  """Hidden states there are NaN: even a product with 0 would show."""
  given, cotangents = draw(False)
  hidden = given[1].reshape(-1, SIZES[2])  # Tile 1 is row 1 and padding.
  mask = given[3].at[1].set(False).reshape(-1).at[16:32].set(False)
  hidden = hidden.at[16:32].set(jnp.nan).reshape(given[1].shape)
  given = (given[0], hidden, given[2], mask.reshape(given[3].shape))
  found = value_and_gradients(
    functools.partial(linear_logp, tied=False, **KERNEL), given, cotangents
  )
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_the_named_implementation_runs_or_says_why_not():
  """And no array of the compiled kernel's program is as large as the logits."""
  given, _ = draw(True)
  B, C, _, V = SIZES

  def operations(**options):
    run = functools.partial(linear_logp, tied=True, **options)
    return str(jax.make_jaxpr(run)(*given))

  assert "pallas_call" in operations(**KERNEL)
  assert f"{B},{C},{V}" not in operations(**KERNEL)
  for name in (None, "xla"):
    assert "pallas_call" not in operations(implementation=name)
    assert f"{B},{C},{V}" in operations(implementation=name)
  with pytest.raises(ValueError, match="interpret mode"):
    linear_logp(*given, tied=True, implementation="pallas")
  with pytest.raises(ValueError, match="hidden is float32 and table bfloat16"):
    table = given[0].astype(jnp.bfloat16)
    linear_logp(table, *given[1:], tied=True, **KERNEL)


def test_arguments_without_sense_are_named():
  given, _ = draw(True)
  with pytest.raises(ValueError, match=r"table has shape .*: tied=False"):
    linear_logp(*given, tied=False)
  with pytest.raises(ValueError, match=r"Banned ids \[300\] are not in 0..299"):
    linear_logp(*given, tied=True, banned_ids=(300,))
  with pytest.raises(ValueError, match="All 300 ids are banned"):
    linear_logp(*given, tied=True, banned_ids=tuple(range(300)))
  with pytest.raises(ValueError, match="temperature must be > 0, not 0"):
    linear_logp(*given, tied=True, temperature=0)
