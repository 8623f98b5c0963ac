"""The fused credit and loss, held to the library's own functions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import pad_columns, random_experience

from pure_jax import losses, settings
from pure_jax.kernels import credit_loss as module
from pure_jax.kernels.credit_loss import credit_loss
from pure_jax.settings import CreditConfig, LossConfig

KERNEL = {"implementation": "pallas", "interpret": True}
PLAIN = CreditConfig(
  "min", baseline="main", group_size=3, whiten=False, count_step_end=False
)
CASES = {
  "min main": (PLAIN, LossConfig(clip_low=0.1, clip_high=0.3)),
  "softmin paper": (
    settings.paper(3)[0],
    LossConfig(aggregate="sequence_mean"),
  ),
  "sum none": (
    dataclasses.replace(
      PLAIN, form="sum", baseline="none", verifiable_estimator="none"
    ),
    LossConfig(aggregate="constant_length", constant_length=20),
  ),
  "min paper": (
    dataclasses.replace(
      PLAIN,
      baseline="paper_a",
      baseline_length=200,
      verifiable_coef=0.0,
      kl_in_reward="k3",
      kl_coef=0.3,
      kl_limit=0.02,
      zero_terminal_advantage=True,
    ),
    LossConfig(kl_in_loss="k3", kl_coef=0.3, entropy_coef=0.1),
  ),
  "softmin main": (
    dataclasses.replace(
      PLAIN,
      form="softmin",
      temperature=0.5,
      count_step_end=True,
      process_coef=0.7,
      verifiable_coef=1.5,
      verifiable_estimator="grpo",
      exclude_empty_steps=True,
    ),
    LossConfig(),
  ),
  "outcome alone": (
    dataclasses.replace(PLAIN, process_coef=0.0),
    LossConfig(),
  ),
}


def draw(width=37, max_steps=5):
  """Two prompts of three samples; rows of all lengths, 0 and C included."""
  lengths = [width, 11, 0, 1, 30, 23]
  batch, _ = random_experience(
    4,
    prompts=2,
    group_size=3,
    width=width,
    max_steps=max_steps,
    lengths=lengths,
  )
  rng = np.random.default_rng(8)
  empty = batch.steps.mask & (rng.random(batch.steps.mask.shape) < 0.3)
  batch = batch.replace(
    steps=batch.steps.replace(empty=jnp.asarray(empty)),
    has_answer=jnp.array([True] * 3 + [False, True, True]),
    # A reward that is not finite is that of a step that is not there.
    step_rewards=batch.step_rewards.at[4, 0].set(jnp.nan),
  )
  noise = jnp.asarray(rng.normal(0, 0.3, batch.old_logp.shape), jnp.float32)
  entropy = jnp.asarray(rng.uniform(0, 2, noise.shape), jnp.float32)
  return batch.old_logp + noise, entropy, batch


def value_and_gradients(function, given, credit, loss):
  """((loss, metrics), gradients by new_logp and entropy)."""

  @jax.jit
  def run(new_logp, entropy, batch):
    return jax.value_and_grad(function, argnums=(0, 1), has_aux=True)(
      new_logp, entropy, batch, credit, loss
    )

  return run(*given)


def assert_same(found, expected):
  """Loss, metrics and gradients, up to the order of sums."""
  (loss, metrics), gradients = found
  (wanted, all_metrics), wanted_gradients = expected
  np.testing.assert_allclose(loss, wanted, rtol=2e-6, atol=1e-7)
  assert set(metrics) == set(module.METRICS)
  for name, value in metrics.items():
    np.testing.assert_allclose(
      value, all_metrics[name], rtol=1e-5, atol=1e-6, err_msg=name
    )
  for x, y in zip(gradients, wanted_gradients, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_every_setting_is_the_librarys(name):
  """The gradient shows the advantage of each token, so none can be off.

  A step's end counted, or padding taken for tokens, is off by 1e-3 and more.
  """
  given = draw()
  expected = value_and_gradients(credit_loss, given, *CASES[name])
  kernel = functools.partial(credit_loss, **KERNEL)
  found = value_and_gradients(kernel, given, *CASES[name])
  assert 0 < expected[0][1]["clip_fraction"] < 1
  assert np.abs(expected[1][0]).max() > 1e-3
  assert_same(found, expected)


def test_more_lanes_than_a_vector_has():
  """130 tokens and 129 steps: a sum to go crosses from one to the next."""
  given = draw(width=130, max_steps=129)
  expected = value_and_gradients(credit_loss, given, *CASES["min paper"])
  kernel = functools.partial(credit_loss, **KERNEL)
  assert_same(value_and_gradients(kernel, given, *CASES["min paper"]), expected)


def test_what_is_masked_may_be_anything():
  """NaN in padding reaches neither value nor gradient."""
  new_logp, entropy, batch = draw()
  mask = batch.completion_mask
  wide = pad_columns(batch, 6, 2, fill=jnp.nan)
  spoiled = wide.replace(
    old_logp=jnp.where(wide.completion_mask, wide.old_logp, -jnp.inf)
  )
  more = ((0, 0), (0, 6))
  given = (
    jnp.pad(new_logp, more, constant_values=-jnp.inf),
    jnp.pad(entropy, more),
    spoiled,
  )
  kernel = functools.partial(credit_loss, **KERNEL)
  (_, _), (narrow, _) = value_and_gradients(
    kernel, (new_logp, entropy, batch), PLAIN, LossConfig()
  )
  (_, metrics), (found, _) = value_and_gradients(
    kernel, given, PLAIN, LossConfig()
  )
  np.testing.assert_array_equal(found[:, :37], narrow)
  assert not np.asarray(found)[~np.asarray(wide.completion_mask)].any()
  assert not np.asarray(narrow)[~np.asarray(mask)].any()
  assert all(np.isfinite(x) for x in metrics.values())


def test_a_batch_without_a_token():
  new_logp, entropy, batch = draw()
  nothing = batch.replace(
    completion_mask=jnp.zeros_like(batch.completion_mask),
    steps=jax.tree.map(jnp.zeros_like, batch.steps),
  )
  kernel = functools.partial(credit_loss, **KERNEL)
  found = value_and_gradients(
    kernel, (new_logp, entropy, nothing), PLAIN, LossConfig()
  )
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(found))


def test_no_gradient_by_the_experience():
  """Rewards are data, though they come from a model as well."""
  new_logp, entropy, batch = draw()

  def by_rewards(rewards):
    return credit_loss(
      new_logp,
      entropy,
      batch.replace(
        step_rewards=rewards, old_logp=batch.old_logp + rewards[0, 0]
      ),
      PLAIN,
      LossConfig(),
      **KERNEL,
    )[0]

  assert not np.asarray(jax.grad(by_rewards)(batch.step_rewards)).any()


def test_the_named_implementation_runs_or_says_why_not():
  """And None is `pure_loss`, operation by operation."""
  given = draw()

  def operations(function, credit, **options):
    def run(*arrays):
      return function(*arrays, credit, LossConfig(), **options)[0]

    return str(jax.make_jaxpr(run)(*given))

  assert "pallas_call" in operations(credit_loss, PLAIN, **KERNEL)
  plain = operations(losses.pure_loss, PLAIN)
  assert operations(credit_loss, PLAIN) == plain
  assert operations(credit_loss, PLAIN, implementation="xla") == plain
  for change, reason in (
    ({"whiten": True}, "credit.whiten is True, and the kernel knows False"),
    ({"form": "min_eq3"}, "credit.form is 'min_eq3', and the kernel knows sum"),
    ({"baseline": "step"}, "credit.baseline is 'step'"),
    ({"baseline": "paper_b", "fold_verifiable": True}, "'paper_b'"),
    ({"form": "sum", "discount": 0.9}, "credit.discount is 0.9"),
  ):
    credit = dataclasses.replace(PLAIN, **change)
    with pytest.raises(ValueError, match=reason):
      operations(credit_loss, credit, **KERNEL)
    assert operations(credit_loss, credit) == operations(
      losses.pure_loss, credit
    )
  with pytest.raises(ValueError, match="interpret mode"):
    credit_loss(*given, PLAIN, LossConfig(), implementation="pallas")


def test_shapes_that_do_not_fit_are_named():
  new_logp, entropy, batch = draw()
  run = functools.partial(credit_loss, **KERNEL)
  with pytest.raises(ValueError, match=r"entropy has shape \(6, 36\)"):
    run(new_logp, entropy[:, 1:], batch, PLAIN, LossConfig())
  with pytest.raises(ValueError, match=r"experience.correct has shape \(5,\)"):
    wrong = batch.replace(correct=batch.correct[1:])
    run(new_logp, entropy, wrong, PLAIN, LossConfig())
  four = dataclasses.replace(PLAIN, group_size=4)
  with pytest.raises(ValueError, match="6 rows are no multiple of group_size"):
    run(new_logp, entropy, batch, four, LossConfig())
