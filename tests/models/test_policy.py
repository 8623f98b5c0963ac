"""Log-probs of completions against one unpadded forward pass per token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import (
  PAD,
  TINY,
  next_token_logits,
  random_policy,
  random_prompts,
)

from pure_jax.models import policy

L, C = 5, 6

token_logp = jax.jit(
  policy.token_logp,
  static_argnums=1,
  static_argnames=("temperature", "banned_ids"),
)
PROMPT_LENGTHS = [5, 3, 1]
LENGTHS = [6, 0, 3]


@pytest.fixture
def batch():
  rng = np.random.default_rng(11)
  prompt_tokens, prompt_mask = random_prompts(rng, PROMPT_LENGTHS, L)
  mask = np.arange(C)[None] < np.asarray(LENGTHS)[:, None]
  tokens = rng.integers(1, TINY.vocab_size, size=(3, C)).astype(np.int32)
  tokens = np.where(mask, tokens, PAD).astype(np.int32)
  return tuple(
    jnp.asarray(x) for x in (prompt_tokens, prompt_mask, tokens, mask)
  )


def distribution_by_hand(scores, temperature, banned):
  """Probabilities in float64; nothing for banned ids."""
  scores = scores.astype(np.float64) / temperature
  allowed = np.ones(len(scores), bool)
  allowed[list(banned)] = False
  weight = np.where(allowed, np.exp(scores - scores[allowed].max()), 0.0)
  return weight / weight.sum()


@pytest.mark.parametrize(
  ("temperature", "banned"), [(1.0, (PAD,)), (0.6, (PAD, 7)), (1.7, ())]
)
def test_log_probs_are_those_of_growing_prefixes(batch, temperature, banned):
  prompt_tokens, prompt_mask, tokens, mask = (np.asarray(x) for x in batch)
  params = random_policy()
  tokens = np.where(np.isin(tokens, banned) & mask, 3, tokens)
  logp, entropy = token_logp(
    params,
    TINY,
    *batch[:2],
    jnp.asarray(tokens),
    batch[3],
    temperature=temperature,
    banned_ids=banned,
  )
  expected_logp, expected_entropy = np.zeros((3, C)), np.zeros((3, C))
  for row in range(3):
    text = prompt_tokens[row][prompt_mask[row]].tolist()
    for t in range(LENGTHS[row]):
      p = distribution_by_hand(
        next_token_logits(params, TINY, text), temperature, banned
      )
      expected_logp[row, t] = np.log(p[tokens[row, t]])
      expected_entropy[row, t] = -np.sum(p[p > 0] * np.log(p[p > 0]))
      text.append(tokens[row, t])
  np.testing.assert_allclose(logp, expected_logp, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(entropy, expected_entropy, rtol=1e-5, atol=1e-5)


def test_banned_ids_take_no_probability_however_large_their_logit(batch):
  config = dataclasses.replace(TINY, tied_embeddings=False)
  params = random_policy(config)
  banned = token_logp(params, config, *batch, banned_ids=(PAD,))
  change = 0.0
  # One of the two signs makes the logit of the padding huge.
  for factor in (1000.0, -1000.0):
    loud = dict(params, head=params["head"].at[:, PAD].multiply(factor))
    also = token_logp(loud, config, *batch, banned_ids=(PAD,))
    np.testing.assert_array_equal(banned[0], also[0])
    np.testing.assert_array_equal(banned[1], also[1])
    unbanned = token_logp(loud, config, *batch)
    change = max(change, np.abs(unbanned[0] - banned[0]).max())
  assert change > 10


def test_gradients_are_finite_and_skip_banned_and_masked(batch):
  config = dataclasses.replace(TINY, tied_embeddings=False)
  params = random_policy(config)
  # A weight on masked entries: they must not reach the gradient.
  weight = jnp.where(batch[3], 1.0, 1e6)

  @jax.jit
  def objective(params):
    logp, entropy = token_logp(params, config, *batch, banned_ids=(PAD, 4))
    kept = jnp.where(batch[2] == 4, 0.0, logp)
    return jnp.sum(weight * (kept + entropy))

  gradient = jax.grad(objective)(params)
  for leaf in jax.tree.leaves(gradient):
    assert np.isfinite(leaf).all()
  assert (gradient["head"][:, jnp.array([PAD, 4])] == 0).all()
  assert np.abs(gradient["head"]).max() < 1e3
  assert np.abs(gradient["head"][:, 5]).max() > 0


def test_a_batch_with_nothing_to_score_is_zero(batch):
  params = random_policy()
  nothing = jnp.zeros_like(batch[3])
  logp, entropy = token_logp(
    params, TINY, *batch[:3], nothing, banned_ids=(PAD,)
  )
  assert (logp == 0).all()
  assert (entropy == 0).all()


def test_a_kept_token_that_is_banned_is_impossible(batch):
  logp, _ = token_logp(
    random_policy(),
    TINY,
    *batch[:2],
    jnp.full_like(batch[2], 9),
    batch[3],
    banned_ids=(9,),
  )
  assert (np.asarray(logp)[np.asarray(batch[3])] == -np.inf).all()


def test_logits_of_bfloat16_are_float32(batch):
  config = dataclasses.replace(TINY, compute_dtype="bfloat16")
  logp, entropy = token_logp(random_policy(), config, *batch)
  assert logp.dtype == entropy.dtype == jnp.float32
  exact, _ = token_logp(random_policy(), TINY, *batch)
  # Rounding the logits themselves to 8 bits would cost 2^-9 of the largest,
  # about 0.01; that and the trunk's rounding stay below this.
  assert 0 < np.abs(logp - exact).max() < 0.2


def test_a_temperature_of_zero_has_no_log_probs(batch):
  with pytest.raises(ValueError, match="temperature must be between"):
    token_logp(random_policy(), TINY, *batch, temperature=0.0)
