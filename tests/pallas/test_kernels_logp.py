"""Log-prob and entropy without logits, compared with float64 in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.kernels import linear_logp_tiles as tiled
from pure_jax.kernels.linear_logp import linear_logp
from pure_jax.models import token_logp

KERNEL = {"implementation": "pallas", "interpret": True}
BANNED = (*range(128), 299)  # A whole tile and the last id.
# B, C, D, V: no size is a multiple of a tile, 16 tokens or 128 ids.
SIZES = (3, 13, 10, 300)
LENGTHS = np.array([13, 0, 5])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
  """Makes several tiles of tokens and of ids, the last of each not full."""
  monkeypatch.setattr(tiled, "TILE_TOKENS", 16)
  monkeypatch.setattr(tiled, "TILE_IDS", 128)


def draw(tied, dtype=jnp.float32, scale=0.5):
  """(table, hidden, tokens, mask), and cotangents of both outputs."""
  B, C, D, V = SIZES
  rng = np.random.default_rng(7)
  table = rng.normal(size=(V, D)) * scale
  inputs = (
    (table if tied else table.T).astype(dtype),
    rng.normal(size=(B, C, D)).astype(dtype),
    rng.integers(3, V, (B, C)).astype(np.int32),
    np.arange(C) < LENGTHS[:, None],
  )
  return inputs, rng.normal(size=(2, B, C)).astype(np.float32)


def define(table, hidden, tokens, mask, tied, temperature, banned_ids):
  """(logp, entropy) in float64."""
  table, hidden = (np.asarray(x, np.float64) for x in (table, hidden))
  scores = hidden @ (table.T if tied else table) / temperature
  allowed = ~np.isin(np.arange(scores.shape[-1]), banned_ids)
  weight = np.exp(scores - scores[..., allowed].max(-1, keepdims=True))
  p = weight * allowed / (weight * allowed).sum(-1, keepdims=True)
  logs = np.log(np.where(allowed, p, 1.0))
  logp = np.take_along_axis(logs, np.asarray(tokens)[..., None], -1)[..., 0]
  return np.where(mask, logp, 0), np.where(mask, -(p * logs).sum(-1), 0)


@functools.partial(jax.jit, static_argnames="head")
def chunked(inputs, cotangents, head):
  """((logp, entropy), gradients by table and hidden states) of XLA's chunks."""
  return _differentiate(
    functools.partial(token_logp.chunked_logp, head), inputs, cotangents
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    *("tied", "temperature", "banned_ids"),
    *("implementation", "interpret"),
  ),
)
def differentiated(inputs, cotangents, **settings):
  """((logp, entropy), gradients by table and hidden states)."""
  return _differentiate(
    functools.partial(linear_logp, **settings), inputs, cotangents
  )


def _differentiate(function, inputs, cotangents):
  table, hidden, tokens, mask = inputs
  outputs, back = jax.vjp(
    lambda table, hidden: function(table, hidden, tokens, mask), table, hidden
  )
  return outputs, back(tuple(cotangents))


@pytest.mark.parametrize(
  "settings",
  [
    dict(tied=True, temperature=1.0, banned_ids=()),
    dict(tied=False, temperature=0.6, banned_ids=BANNED),
  ],
  ids=["tied", "untied, ids banned"],
)
def test_values_and_gradients_equal_those_from_all_logits(settings):
  """A whole tile may be banned, and no sum reaches beyond the last id.

  Values are compared with numpy, gradients with jax's own derivative.
  """
  inputs, cotangents = draw(settings["tied"])
  table, hidden, tokens, mask = inputs
  # The log-prob of a banned id is -inf, as tested below.
  banned = np.isin(tokens, settings["banned_ids"])
  inputs = table, hidden, np.where(banned, np.int32(200), tokens), mask
  plain, expected = differentiated(inputs, cotangents, **settings)
  values, gradients = differentiated(inputs, cotangents, **settings, **KERNEL)
  exact = define(*inputs, **settings)
  for outputs in (plain, values):
    for x, y in zip(outputs, exact, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6)
  for x, y in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
  assert not np.asarray(gradients[1])[~mask].any()


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_rounds_where_chunked_logits_do(tied):
  """Products of bfloat16 with float32 sums, the logits' gradient rounded.

  Logits in bfloat16 would be off by 0.02. Gradients differ by the rounding of
  the results, one part in 256, since the sums have another order.
  """
  inputs, cotangents = draw(tied, jnp.bfloat16)
  expected = chunked(
    inputs, cotangents, head=token_logp.Readout(tied, 0.8, (0,), 4)
  )
  outputs = differentiated(
    inputs, cotangents, tied=tied, temperature=0.8, banned_ids=(0,), **KERNEL
  )
  for x, y in zip(outputs[0], expected[0], strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
  for x, y in zip(outputs[1], expected[1], strict=True):
    assert x.dtype == jnp.bfloat16
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    np.testing.assert_allclose(x, y, rtol=2**-7, atol=2e-3)


# The tests below use the programs of the first test.
TIED = dict(tied=True, temperature=1.0, banned_ids=(), **KERNEL)
UNTIED = dict(tied=False, temperature=0.6, banned_ids=BANNED, **KERNEL)


def test_large_logits_do_not_cancel_in_the_entropy():
  """Small integers give exact logits near 65,536.

  There, log-sum less mean score would be a multiple of 1/128.
  """
  (_, hidden, tokens, mask), cotangents = draw(True)
  table = np.random.default_rng(1).integers(-2, 3, (SIZES[3], SIZES[2]))
  table[128:] += 1  # A later tile has the largest.
  table[:, 0] = 2**16
  hidden = np.round(hidden)
  hidden[..., 0] = 1
  inputs = table.astype(np.float32), hidden, tokens, mask
  (_, entropy), _ = differentiated(inputs, cotangents, **TIED)
  exact = define(*inputs, True, 1.0, ())[1]
  assert exact.max() > 1
  np.testing.assert_allclose(entropy, exact, rtol=1e-5, atol=1e-6)


def test_an_empty_batch_has_zeros_and_zero_gradients():
  """Not NaN."""
  (table, hidden, tokens, mask), cotangents = draw(True)
  empty = table, hidden, tokens, np.zeros_like(mask)
  for x in jax.tree.leaves(differentiated(empty, cotangents, **TIED)):
    assert not np.asarray(x).any()


def test_a_banned_token_has_no_probability():
  (table, hidden, tokens, mask), cotangents = draw(False)
  tokens[0, :2] = 7, 200
  inputs = table, hidden, tokens, mask
  (logp, entropy), _ = differentiated(inputs, cotangents, **UNTIED)
  assert logp[0, 0] == -np.inf and np.isfinite(logp[0, 1])
  assert np.isfinite(entropy).all()


def test_masked_tiles_are_not_read():
  """Their hidden states are NaN, which even a product with 0 would show."""
  inputs, cotangents = draw(False)
  _, hidden, tokens, mask = inputs
  hidden.reshape(-1, SIZES[2])[16:32] = np.nan  # Tile 1: row 1 and padding.
  mask.reshape(-1)[16:32] = False
  tokens[:] = 200
  for x in jax.tree.leaves(differentiated(inputs, cotangents, **UNTIED)):
    assert np.isfinite(x).all()


def test_a_named_implementation_runs_or_raises():
  """No array of the kernel's program is as large as the logits."""
  inputs, _ = draw(True)
  B, C, _, V = SIZES

  def operations(**options):
    run = functools.partial(linear_logp, tied=True, **options)
    return str(jax.make_jaxpr(run)(*inputs))

  assert "pallas_call" in operations(**KERNEL)
  assert f"{B},{C},{V}" not in operations(**KERNEL)
  for name in (None, "xla"):
    assert "pallas_call" not in operations(implementation=name)
    assert f"{B},{C},{V}" in operations(implementation=name)
  with pytest.raises(ValueError, match="interpret mode"):
    linear_logp(*inputs, tied=True, implementation="pallas")
  with pytest.raises(ValueError, match="hidden is float32 and table bfloat16"):
    table = inputs[0].astype(jnp.bfloat16)
    linear_logp(table, *inputs[1:], tied=True, **KERNEL)


def test_invalid_arguments_are_named():
  inputs, _ = draw(True)
  with pytest.raises(ValueError, match=r"table has shape .*: tied=False"):
    linear_logp(*inputs, tied=False)
  with pytest.raises(ValueError, match=r"Banned ids \[300\] are not in 0..299"):
    linear_logp(*inputs, tied=True, banned_ids=(300,))
  with pytest.raises(ValueError, match="All 300 ids are banned"):
    linear_logp(*inputs, tied=True, banned_ids=tuple(range(300)))
  with pytest.raises(ValueError, match="temperature must be > 0, not 0"):
    linear_logp(*inputs, tied=True, temperature=0)
