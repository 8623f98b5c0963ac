"""Arrays of wrong shapes raise and are not broadcast."""

import jax.numpy as jnp
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
