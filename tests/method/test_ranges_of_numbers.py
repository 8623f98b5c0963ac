"""At both ends of every range, loss and gradient of the method are finite.

python -m pytest -m slow tests/method/test_ranges_of_numbers.py
"""

import dataclasses
import re

import jax
import numpy as np
import pytest
from factories import random_experience

from pure_jax.losses import pure_loss
from pure_jax.settings import CreditConfig, LossConfig

CONFIGS = {
  "credit": CreditConfig(
    group_size=4, form="softmin", kl_in_reward="k3", kl_limit=10.0
  ),
  # Every field is read; a ratio may be as large as its limit.
  "loss": LossConfig(
    kl_in_loss="k3", entropy_coef=0.01, importance_cap=2.0, dual_clip=3.0
  ),
}
FIELDS = [
  (group, field.name)
  for group, config in CONFIGS.items()
  for field in dataclasses.fields(config)
  if isinstance(getattr(config, field.name), float)
  or field.name == "ratio_guard"
]


def ends_of(config, name):
  """The ends of a range, as the message of the config gives them."""
  with pytest.raises(ValueError, match="must be between") as error:
    dataclasses.replace(config, **{name: 1e300})
  found = re.search(r"between (\S+) and ([^\s,]+),", str(error.value))
  return map(float, found.groups())


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), FIELDS)
def test_loss_and_gradient_are_finite_at_both_ends_of_a_range(group, name):
  """The policy is up to a hundred nats from the old and the reference one."""
  batch, _ = random_experience(3, width=5)
  shape = batch.completion_mask.shape
  moved = np.random.default_rng(0).normal(0, 40, shape).astype("f4")
  new_logp = np.minimum(batch.old_logp + moved, 0)
  batch = batch.replace(sampled_logp=batch.old_logp)
  for end in ends_of(CONFIGS[group], name):
    changes = {name: end}
    if name == "discount":
      changes["form"] = "sum"
    configs = CONFIGS | {group: dataclasses.replace(CONFIGS[group], **changes)}

    def loss(new_logp, configs=configs):
      entropy = np.ones(shape, "f4")
      return pure_loss(new_logp, entropy, batch, *configs.values())[0]

    value, slope = jax.jit(jax.value_and_grad(loss))(new_logp)
    assert np.isfinite(value) and np.isfinite(slope).all(), (name, end)
