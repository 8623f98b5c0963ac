"""Log-probs in chunks equal those of all logits and take less memory."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from small_models import PAD, TINY, random_policy, random_prompts

from pure_jax.models import policy, token_logp
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import abstract_params
from pure_jax.parallel import sharding

B, C, D, V = 4, 11, 6, 24
LENGTHS = np.array([7, 0, 3, 5])


@pytest.fixture
def batch():
  rng = np.random.default_rng(3)
  mask = np.arange(C) < LENGTHS[:, None]
  tokens = rng.integers(3, V, (B, C)) * mask
  return (
    (rng.normal(size=(V, D)) / 3).astype(np.float32),
    rng.normal(size=(B, C, D)).astype(np.float32),
    tokens.astype(np.int32),
    mask,
    rng.normal(size=(2, B, C)).astype(np.float32),
  )


def readout(tied=True, temperature=1.0, banned_ids=(), chunk=4):
  return token_logp.Readout(tied, temperature, banned_ids, chunk)


def by_hand(table, hidden, tokens, mask, temperature=1.0, banned=()):
  """(log-prob, entropy) of each token, in numpy's float64."""
  scores = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
  allowed = ~np.isin(np.arange(V), banned)
  weight = np.where(allowed, np.exp(scores / temperature), 0.0)
  p = weight / weight.sum(-1, keepdims=True)
  logs = np.log(np.where(allowed, p, 1.0))
  logp = np.take_along_axis(logs, np.asarray(tokens)[..., None], -1)[..., 0]
  return np.where(mask, logp, 0), np.where(mask, -(p * logs).sum(-1), 0)


def all_at_once(table, hidden, tokens, mask, temperature=1.0, banned=()):
  """The same from all logits, differentiable."""
  scores = jnp.einsum("BTD,VD->BTV", hidden, table) / temperature
  allowed = jnp.asarray(~np.isin(np.arange(V), banned))[None, None]
  scores = jnp.where(allowed, scores, -1e30)
  logs = jax.nn.log_softmax(scores)
  logp = jnp.take_along_axis(logs, tokens[..., None], -1)[..., 0]
  entropy = -jnp.sum(jnp.where(allowed, jnp.exp(logs) * logs, 0.0), axis=-1)
  return jnp.where(mask, logp, 0.0), jnp.where(mask, entropy, 0.0)


def weighted_sum(function, cotangents):
  """Sums both outputs of a function, weighted by their cotangents."""

  def objective(*arguments):
    logp, entropy = function(*arguments)
    return jnp.sum(logp * cotangents[0] + entropy * cotangents[1])

  return objective


def gradients(function, cotangents):
  """Gradients by table and hidden states, jitted."""
  return jax.jit(jax.grad(weighted_sum(function, cotangents), (0, 1)))


@functools.partial(jax.jit, static_argnames=("temperature", "banned"))
def gradients_at_once(given, cotangents, temperature=1.0, banned=()):
  """Gradients from all logits at once, for any chunk size."""
  plain = functools.partial(all_at_once, temperature=temperature, banned=banned)
  return jax.grad(weighted_sum(plain, cotangents), (0, 1))(*given)


@pytest.mark.parametrize(
  ("tied", "chunk", "temperature", "banned"),
  [
    (True, 4, 0.6, (0, 2)),
    (False, 1, 0.6, (0, 2)),
    (True, 11, 1.0, ()),
    (False, 100, 1.0, ()),
  ],
)
def test_chunked_values_and_gradients_equal_those_of_all_logits(
  batch, tied, chunk, temperature, banned
):
  *given, cotangents = batch
  one = readout(tied, temperature, banned, chunk)

  @jax.jit
  def chunked(table, *rest):
    table = table if tied else table.T
    return token_logp.chunked_logp(one, table, *rest)

  actual = chunked(*given)
  for x, y in zip(actual, by_hand(*given, temperature, banned), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
  expected = gradients_at_once(given, cotangents, temperature, banned)
  actual = gradients(chunked, cotangents)(*given)
  for x, y in zip(actual, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def test_each_output_has_its_own_gradient(batch):
  """Swapped cotangents would cancel in a sum of both."""
  *given, _ = batch
  run = functools.partial(token_logp.chunked_logp, readout())
  for cotangents in ((1.0, 0.0), (0.0, 1.0)):
    actual = gradients(run, cotangents)(*given)
    expected = gradients_at_once(given, cotangents)
    assert np.abs(expected[0]).max() > 0.1
    for x, y in zip(actual, expected, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def test_chunks_of_padding_are_not_computed(batch, monkeypatch):
  table, hidden, tokens, mask, _ = batch
  computed, read = [], token_logp._read_states

  def reading(hidden, mask, index, chunk):
    jax.debug.callback(lambda number: computed.append(int(number)), index)
    return read(hidden, mask, index, chunk)

  monkeypatch.setattr(token_logp, "_read_states", reading)
  run = functools.partial(token_logp.chunked_logp, readout(chunk=4))
  jax.block_until_ready(jax.jit(run)(table, hidden, tokens, mask))
  jax.effects_barrier()
  # No token after column 7 is kept.
  assert sorted(computed) == [0, 1] and tokens.shape[1] > 8


def test_masked_slots_are_zero(batch):
  table, hidden, tokens, mask, cotangents = batch
  hidden[:, 8:] = np.nan
  # Masked tokens of a computed chunk: no cotangent may reach them.
  loud = np.where(mask, cotangents, np.float32(1e9))
  run = functools.partial(token_logp.chunked_logp, readout(chunk=4))
  logp, entropy = jax.jit(run)(table, hidden, tokens, mask)
  assert (np.asarray(logp)[~mask] == 0).all()
  assert (np.asarray(entropy)[~mask] == 0).all()
  by_table, by_hidden = gradients(run, loud)(table, hidden, tokens, mask)
  assert np.isfinite(by_table).all()
  assert np.abs(by_table).max() < 1e3
  assert (np.asarray(by_hidden)[~mask] == 0).all()


def test_a_batch_with_nothing_to_score_is_zero(batch):
  table, hidden, tokens, mask, cotangents = batch
  run = functools.partial(token_logp.chunked_logp, readout())
  nothing = np.zeros_like(mask)
  arrays = jax.jit(run)(table, hidden, tokens, nothing)
  arrays += gradients(run, cotangents)(table, hidden, tokens, nothing)
  assert not any(np.asarray(x).any() for x in arrays)


def test_a_kept_token_that_is_banned_is_impossible_and_leaves_no_nan(batch):
  table, hidden, _, mask, cotangents = batch
  tokens = np.full((B, C), 9)
  run = functools.partial(token_logp.chunked_logp, readout(banned_ids=(9,)))
  logp, entropy = jax.jit(run)(table, hidden, tokens, mask)
  assert (np.asarray(logp)[mask] == -np.inf).all()
  assert np.isfinite(entropy).all()
  actual = jax.device_get(
    gradients(run, cotangents)(table, hidden, tokens, mask)
  )
  assert all(np.isfinite(x).all() for x in actual)
  assert (actual[0][9] == 0).all()


def test_products_of_bfloat16_are_summed_in_float32(batch):
  table, hidden, tokens, mask, cotangents = batch
  short = table.astype(jnp.bfloat16), hidden.astype(jnp.bfloat16)
  exact = tuple(x.astype(np.float32) for x in short)
  run = functools.partial(token_logp.chunked_logp, readout(chunk=1))
  actual = jax.jit(run)(*short, tokens, mask)
  for x, y in zip(actual, by_hand(*exact, tokens, mask), strict=True):
    assert x.dtype == jnp.float32
    # Inputs are the same: only logits rounded to 8 bits would differ more.
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
  actual = gradients(run, cotangents)(*short, tokens, mask)
  expected = gradients_at_once((*exact, tokens, mask), cotangents)
  for x, y in zip(actual, expected, strict=True):
    assert x.dtype == jnp.bfloat16
    error = np.abs(np.asarray(x, np.float32) - y).max()
    assert error < 2**-7 * np.abs(y).max()


def test_the_policy_computes_the_same_log_probs_in_chunks():
  rng = np.random.default_rng(11)
  prompts = random_prompts(rng, [5, 3, 1], 5)
  mask = np.arange(6) < np.array([[6], [0], [3]])
  tokens = rng.integers(1, TINY.vocab_size, (3, 6)).astype(np.int32) * mask
  config = dataclasses.replace(TINY, tied_embeddings=False)
  params = random_policy(config)

  def objective(params, config):
    logp, entropy = policy.token_logp(
      params,
      config,
      *prompts,
      tokens,
      mask,
      temperature=0.7,
      banned_ids=(PAD,),
    )
    return jnp.sum(logp) + 0.3 * jnp.sum(entropy), (logp, entropy)

  run = jax.jit(jax.grad(objective, has_aux=True), static_argnums=1)
  expected, expected_values = run(params, config)
  chunked = dataclasses.replace(config, logits_chunk=4)
  actual, values = run(params, chunked)
  for x, y in zip(values, expected_values, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
  # Gradients of up to 20 have come through two layers: 1e-6 of the largest.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=0, atol=1e-6 * max(1.0, np.abs(y).max())
    ),
    actual,
    expected,
  )


@pytest.mark.usefixtures("compiled_well")
@pytest.mark.parametrize(
  ("tied", "shape", "rules", "local"),
  [
    (True, (1, 4, 2, 1), "fsdp+tensor", "f32[1,4,12]"),
    (False, (1, 4, 2, 1), "fsdp+tensor", "f32[1,4,12]"),
    (False, (1, 4, 1, 2), "fsdp+sequence", "f32[1,2,24]"),
    pytest.param(
      *(True, (2, 2, 1, 1), "fsdp", "f32[1,4,24]"), marks=pytest.mark.slow
    ),
  ],
)
def test_rows_tokens_and_vocabulary_may_be_split(
  batch, tied, shape, rules, local
):
  """Values equal those of one device, which holds its share of the logits.

  If an axis were not split, every device would hold all logits.
  """
  layout = sharding.make_layout(*shape, rules=rules)
  table, *rest, cotangents = batch
  table = table if tied else table.T
  names = ("vocab", None) if tied else (None, "vocab")
  run = functools.partial(readout, tied, 0.7, (0,))

  def grad(one):
    chunked = functools.partial(token_logp.chunked_logp, one)
    return jax.value_and_grad(weighted_sum(chunked, cotangents), (0, 1))

  expected = jax.jit(grad(run()))(table, *rest)
  rows = sharding.batch_sharding(layout)
  split = sharding.partition_spec(
    "table", table.shape, names, layout.mesh, layout.table
  )
  shardings = NamedSharding(layout.mesh, split), rows, rows, rows
  compiled = (
    jax.jit(
      grad(dataclasses.replace(run(), act_sharding=layout.act_sharding)),
      in_shardings=shardings,
      out_shardings=(sharding.replicated(layout), shardings[:2]),
    )
    .lower(table, *rest)
    .compile()
  )
  # [B, c, V]: no larger array over three axes than a device's share.
  shapes = set(re.findall(r"f32\[\d+,\d+,(?:12|24)\]", compiled.as_text()))
  assert shapes == {local}
  actual = compiled(*jax.device_put((table, *rest), shardings))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=2e-6),
    actual,
    expected,
  )


@pytest.mark.parametrize(
  "tied", [pytest.param(True, marks=pytest.mark.slow), False]
)
def test_a_large_vocabulary_takes_a_tenth_of_the_memory(tied):
  """Compiled only: 4 rows of 512 tokens over 152,064 ids, with gradient.

  All logits at once are 1.2 GB, and several such arrays exist together.
  """
  rows, prompt, length = 4, 32, 512

  def temporary_bytes(chunk):
    config = ModelConfig(
      vocab_size=152_064,
      width=64,
      num_layers=1,
      num_heads=2,
      num_kv_heads=1,
      head_dim=16,
      mlp_width=64,
      tied_embeddings=tied,
      logits_chunk=chunk,
    )

    def objective(params, *batch):
      logp, entropy = policy.token_logp(params, config, *batch, banned_ids=(0,))
      return jnp.sum(logp + entropy)

    batch = [
      jax.ShapeDtypeStruct((rows, columns), dtype)
      for columns in (prompt, length)
      for dtype in (jnp.int32, jnp.bool_)
    ]
    params = abstract_params(policy.declare_policy(config))
    compiled = jax.jit(jax.grad(objective)).lower(params, *batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  everything = temporary_bytes(None)
  assert everything > 5 * rows * length * 152_064 * 4
  assert temporary_bytes(32) < everything / 10


def test_a_chunk_needs_a_token():
  with pytest.raises(ValueError, match="logits_chunk must be at least 1"):
    dataclasses.replace(TINY, logits_chunk=0)


def test_entropy_of_equal_scores_is_the_log_of_their_number():
  scores = jnp.array([[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, -jnp.inf, -jnp.inf]])
  logp, entropy = token_logp.logp_and_entropy(scores, jnp.array([1, 0]))
  np.testing.assert_allclose(entropy, np.log([4, 2]), rtol=1e-6)
  np.testing.assert_allclose(logp, -np.log([4, 2]), rtol=1e-6)


@pytest.mark.parametrize(
  ("banned", "message"),
  [((23,), "not in 0..22"), ((-1,), "not in 0..22"), (range(23), "All 23")],
)
def test_banned_ids_must_be_some_of_the_vocabulary(banned, message):
  with pytest.raises(ValueError, match=message):
    token_logp.ban_tokens(jnp.zeros((2, 23)), tuple(banned))
