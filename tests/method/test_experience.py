"""Fields of an experience: wrong shapes, and log-probs that are left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import random_experience

from pure_jax.losses import policy_objective, pure_loss
from pure_jax.settings import CreditConfig, LossConfig

CREDIT = CreditConfig("min", baseline="main", group_size=4)


@pytest.mark.parametrize(
  ("field", "cut", "message"),
  [
    ("step_rewards", (slice(None), slice(1)), r"\(12, 1\), not \(12, 4\)"),
    ("old_logp", (0,), r"\(9,\), not \(12, 9\)"),
    ("correct", (slice(None), None), r"\(12, 1\), not \(12,\)"),
    ("terminal_mask", (slice(None), slice(8)), r"\(12, 8\), not \(12, 9\)"),
  ],
)
def test_a_field_of_a_wrong_shape_raises(field, cut, message):
  """Rewards [B, 1] would be broadcast to all steps."""
  batch, _ = random_experience(1)
  wrong = batch.replace(**{field: getattr(batch, field)[cut]})
  logp = jnp.zeros(batch.completion_mask.shape)
  with pytest.raises(ValueError, match=rf"experience\.{field} has.*{message}"):
    pure_loss(logp, logp, wrong, CREDIT, LossConfig())


@pytest.mark.parametrize("name", ["new_logp", "entropy", "advantages"])
def test_an_argument_of_a_wrong_shape_raises(name):
  batch, _ = random_experience(1)
  right = jnp.zeros(batch.completion_mask.shape)
  given = dict.fromkeys(("new_logp", "entropy", "advantages"), right)
  given[name] = right[:, :1]
  with pytest.raises(ValueError, match=rf"{name} has shape \(12, 1\)"):
    policy_objective(**given, experience=batch, config=LossConfig())


def test_without_old_log_probs_those_of_the_update_are_the_old_ones():
  """Every ratio is 1, and the gradient is that of the log-probs."""
  batch, _ = random_experience(5)
  batch = batch.replace(sampled_logp=batch.old_logp)
  noise = np.random.default_rng(0).normal(0, 0.3, batch.old_logp.shape)
  new_logp = jnp.asarray(batch.old_logp + noise, jnp.float32)
  config = LossConfig(importance_cap=2.0)

  def loss(new_logp, batch):
    return pure_loss(new_logp, jnp.zeros_like(new_logp), batch, CREDIT, config)

  compute = jax.value_and_grad(loss, has_aux=True)
  own = batch.replace(old_logp=None)
  (ours, metrics), gradient = compute(new_logp, own)
  (expected, _), other = compute(new_logp, batch.replace(old_logp=new_logp))
  np.testing.assert_array_equal(ours, expected)
  np.testing.assert_array_equal(gradient, other)
  assert np.abs(gradient).max() > 1e-3
  ratios = [metrics[name] for name in ("ratio_max", "ratio_min")]
  assert ratios == [1, 1]
  penalized = dataclasses.replace(CREDIT, kl_in_reward="k1")
  with pytest.raises(ValueError, match=r"reads experience\.old_logp"):
    pure_loss(new_logp, jnp.zeros_like(new_logp), own, penalized, config)
