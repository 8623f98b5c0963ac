"""pure_jax.losses against loops and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import pad_columns, random_experience

from pure_jax import advantages as estimation
from pure_jax import losses, settings
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.types import PRMInputs

# Compiled once per config and shape: eager, every operation is a program.
pure_advantages = jax.jit(estimation.pure_advantages, static_argnums=1)
pure_loss = jax.jit(losses.pure_loss, static_argnums=(3, 4))
policy_objective = jax.jit(losses.policy_objective, static_argnums=4)
clipped_policy_loss = jax.jit(
  losses.clipped_policy_loss, static_argnames="clip_high"
)
aggregate_loss = jax.jit(losses.aggregate_loss, static_argnums=2)
prm_loss = jax.jit(losses.prm_loss)
CREDIT = CreditConfig(group_size=4, baseline="main")
AGGREGATES = [
  LossConfig(),
  LossConfig(aggregate="sequence_mean"),
  LossConfig(aggregate="constant_length", constant_length=20),
]


def _policy(batch, seed=0):
  """Log-probs near the old ones, and entropies."""
  rng = np.random.default_rng(seed)
  shape = batch.old_logp.shape
  noise = rng.normal(0, 0.3, shape).astype(np.float32)
  new_logp = np.asarray(batch.old_logp) + noise
  new_logp = np.where(batch.completion_mask, new_logp, np.float32(0))
  entropy = rng.uniform(0, 2, shape).astype(np.float32)
  return new_logp, entropy


def _loop_aggregate(values, lengths, config):
  values = np.asarray(values)
  rows = [
    np.asarray(v[:n], np.float64) for v, n in zip(values, lengths, strict=True)
  ]
  if config.aggregate == "token_mean":
    return np.concatenate(rows).mean()
  if config.aggregate == "sequence_mean":
    return np.mean([row.mean() for row in rows if len(row)])
  return np.mean([row.sum() / config.constant_length for row in rows])


@pytest.mark.parametrize("high", [0.2, 0.28])
@pytest.mark.parametrize("config", AGGREGATES, ids=lambda c: c.aggregate)
def test_objective_agrees_with_a_loop(config, high):
  config = dataclasses.replace(
    config, clip_high=high, kl_in_loss="k3", kl_coef=0.3, entropy_coef=0.1
  )
  batch, lists = random_experience(1)
  new_logp, entropy = _policy(batch)
  advantages, _ = pure_advantages(batch, CREDIT)
  loss, groups = policy_objective(new_logp, entropy, advantages, batch, config)
  metrics = groups.to_dict()
  arrays = (new_logp, batch.old_logp, batch.ref_logp, advantages)
  new, old, ref, advantage = (np.asarray(x, np.float64) for x in arrays)
  policy, clipped, kl = np.zeros((3, *new_logp.shape))
  ratios = []
  for b, length in enumerate(lists["lengths"]):
    for t in range(length):
      ratio = np.exp(new[b, t] - old[b, t])
      a = advantage[b, t]
      plain = ratio * a
      bounded = min(max(ratio, 1 - 0.2), 1 + high) * a
      policy[b, t] = -min(plain, bounded)
      clipped[b, t] = bounded < plain
      d = ref[b, t] - new[b, t]
      kl[b, t] = np.exp(d) - d - 1
      ratios.append(ratio)

  def mean(values):
    return _loop_aggregate(values, lists["lengths"], config)

  total = mean(policy) + 0.3 * mean(kl) - 0.1 * mean(np.asarray(entropy))
  np.testing.assert_allclose(loss, total, rtol=1e-5, atol=1e-6)
  for name, expected in {
    "policy_loss": mean(policy),
    "kl_reference": mean(kl),
    "entropy": mean(np.asarray(entropy)),
    "clip_fraction": mean(clipped),
    "ratio_max": max(ratios),
    "ratio_min": min(ratios),
  }.items():
    np.testing.assert_allclose(
      metrics[name], expected, rtol=1e-5, atol=1e-6, err_msg=name
    )
  assert 0 < float(metrics["clip_fraction"]) < 1


def test_aggregates_have_the_denominators_they_name():
  # Lengths 1 and 3. Dividing by mask.size would give 6 / 8 = .75 for all.
  per_token = np.float32([[3, 9, 9, 9], [1, 1, 1, 9]])
  mask = np.array([[True, False, False, False], [True, True, True, False]])
  actual = [
    float(aggregate_loss(per_token, mask, config)) for config in AGGREGATES
  ]
  np.testing.assert_allclose(actual, [6 / 4, (3 + 1) / 2, 6 / (2 * 20)])
  counts = [float(losses.loss_denominator(mask, c)) for c in AGGREGATES]
  assert counts == [4, 2, 40]


@pytest.mark.parametrize("config", AGGREGATES, ids=lambda c: c.aggregate)
@pytest.mark.parametrize("micro_batches", [2, 12])
def test_micro_batches_sum_to_the_batch(config, micro_batches):
  # Averaging the micro-batches' own token means weighs short ones too much.
  config = dataclasses.replace(config, kl_in_loss="k2", entropy_coef=0.2)
  batch, _ = random_experience(2, lengths=[9, 1, 1, 2, 0, 3, 9, 9, 1, 1, 5, 4])
  new_logp, entropy = _policy(batch)
  advantages, _ = pure_advantages(batch, CREDIT)
  denominator = losses.loss_denominator(batch.completion_mask, config)

  differentiate = jax.jit(
    jax.value_and_grad(losses.policy_objective, has_aux=True), static_argnums=4
  )
  whole = jax.device_get((new_logp, entropy, advantages, batch))
  (expected, metrics), gradient = differentiate(*whole, config)
  parts = []
  for rows in np.split(np.arange(12), micro_batches):
    part = jax.tree.map(lambda x, rows=rows: x[rows], whole)
    parts.append(jax.device_get(differentiate(*part, config, denominator)))
  np.testing.assert_allclose(
    sum(value for (value, _), _ in parts), expected, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    np.concatenate([g for _, g in parts]), gradient, rtol=1e-5, atol=1e-7
  )
  assert {"policy_loss", "kl_reference", "entropy"} < metrics.sums.keys()
  for name, expected in metrics.sums.items():
    total = sum(actual.sums[name] for (_, actual), _ in parts)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "credit",
  [
    settings.paper(4)[0],
    settings.reference_main(4)[0],
    settings.reference_verl(4)[0],
    dataclasses.replace(CREDIT, form="min", kl_in_reward="k2"),
  ],
  ids=lambda c: f"{c.form}-{c.baseline}",
)
def test_gradient_through_credit_is_exactly_zero(credit):
  # A policy that shares weights with its PRM or reference would otherwise
  # be trained to raise its own rewards.
  batch, _ = random_experience(3)
  new_logp, entropy = _policy(batch)

  def loss(rewards, correct, old_logp, ref_logp):
    changed = batch.replace(
      step_rewards=rewards,
      correct=correct,
      old_logp=old_logp,
      ref_logp=ref_logp,
    )
    config = LossConfig(kl_in_loss="k3")
    return pure_loss(new_logp, entropy, changed, credit, config)[0]

  gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(
    batch.step_rewards, batch.correct, batch.old_logp, batch.ref_logp
  )
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_gradient_through_advantages_alone_is_exactly_zero():
  batch, _ = random_experience(3)

  def total(rewards):
    changed = batch.replace(step_rewards=rewards)
    advantages, metrics = pure_advantages(changed, CREDIT)
    return jnp.sum(advantages**3) + metrics["process_outcome"]

  gradient = jax.grad(total)(batch.step_rewards)
  np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_loss_alone_has_no_gradient_to_advantages_or_old_logp():
  # `policy_objective` is public: its caller may have computed advantages
  # without stopping the gradient.
  new_logp = np.float32([0.1, -0.1])

  def loss(advantages, old_logp):
    return losses.clipped_policy_loss(new_logp, old_logp, advantages)[0].sum()

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
  for gradient in gradients(np.ones(2, np.float32), np.zeros(2, np.float32)):
    np.testing.assert_array_equal(gradient, np.zeros(2))


def test_metrics_carry_no_gradient():
  batch, _ = random_experience(3)
  new_logp, entropy = _policy(batch)

  def watched(new_logp, entropy):
    _, metrics = pure_loss(new_logp, entropy, batch, CREDIT, LossConfig())
    return sum(metrics.values())

  for gradient in jax.grad(watched, argnums=(0, 1))(new_logp, entropy):
    assert not np.asarray(gradient).any()


def test_on_policy_gradient_is_minus_advantage_over_tokens():
  batch, _ = random_experience(4)
  advantages, _ = pure_advantages(batch, CREDIT)

  def loss(new_logp):
    # The same array as old and new: without a stop the ratio is constant 1
    # and the gradient 0.
    same = batch.replace(old_logp=new_logp)
    value, _ = losses.policy_objective(
      new_logp, 0 * new_logp, advantages, same, LossConfig()
    )
    return value

  gradient = jax.jit(jax.grad(loss))(batch.old_logp)
  tokens = np.asarray(batch.completion_mask).sum()
  np.testing.assert_allclose(
    gradient, -np.asarray(advantages) / tokens, rtol=1e-6, atol=1e-8
  )


clipped_loss_and_slope = jax.jit(
  jax.value_and_grad(losses.clipped_policy_loss, has_aux=True)
)


@pytest.mark.parametrize(
  "ratio, advantage, expected, slope",
  [
    (1.5, 1.0, -1.2, 0.0),
    (1.1, 1.0, -1.1, -1.1),
    (0.5, -1.0, 0.8, 0.0),
    # Outside the range on the side that costs: never clipped.
    (1.5, -1.0, 1.5, 1.5),
    (0.5, 1.0, -0.5, -0.5),
  ],
)
def test_clipping_case_by_case(ratio, advantage, expected, slope):
  (value, clipped), gradient = clipped_loss_and_slope(
    np.log(np.float32(ratio)), np.float32(0), np.float32(advantage)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, slope, rtol=1e-6)
  assert bool(clipped) == (slope == 0.0)


def test_clip_higher_leaves_more_room_above():
  arguments = (np.log(np.float32(1.25)), np.float32(0), np.float32(1))
  narrow, clipped = clipped_policy_loss(*arguments)
  wide, free = clipped_policy_loss(*arguments, clip_high=0.28)
  np.testing.assert_allclose([narrow, wide], [-1.2, -1.25], rtol=1e-6)
  assert bool(clipped) and not bool(free)


def test_at_the_start_ratio_is_one_and_kl_zero():
  batch, _ = random_experience(5)
  batch = batch.replace(ref_logp=batch.old_logp)
  advantages, _ = pure_advantages(batch, CREDIT)
  _, metrics = policy_objective(
    batch.old_logp, np.zeros((12, 9), "f4"), advantages, batch, LossConfig()
  )
  for name, expected in {
    "ratio_max": 1,
    "ratio_min": 1,
    "kl_reference": 0,
    "clip_fraction": 0,
  }.items():
    assert float(metrics.to_dict()[name]) == expected, name


def test_pure_loss_is_its_parts():
  batch, _ = random_experience(6)
  new_logp, entropy = _policy(batch)
  config = LossConfig(kl_in_loss="k1", entropy_coef=0.01)
  advantages, credit_metrics = pure_advantages(batch, CREDIT)
  expected, objective_metrics = policy_objective(
    new_logp, entropy, advantages, batch, config
  )
  actual, metrics = pure_loss(new_logp, entropy, batch, CREDIT, config)
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)
  loss_metrics = objective_metrics.to_dict()
  assert set(metrics) == set(credit_metrics) | set(loss_metrics)
  assert not set(credit_metrics) & set(loss_metrics)


def test_padding_changes_nothing_and_its_nan_reaches_no_gradient():
  batch, _ = random_experience(7)
  new_logp, entropy = _policy(batch)
  wide = pad_columns(batch, 3, 2, np.nan)
  padding = ((0, 0), (0, 3))

  def loss(new_logp, batch, entropy):
    config = LossConfig(kl_in_loss="k3", entropy_coef=0.1)
    value, _ = pure_loss(new_logp, entropy, batch, CREDIT, config)
    return value

  value_and_grad = jax.jit(jax.value_and_grad(loss))
  expected, gradient = value_and_grad(new_logp, batch, entropy)
  actual, wide_gradient = jax.device_get(
    value_and_grad(
      np.pad(new_logp, padding, constant_values=-np.inf),
      wide,
      np.pad(entropy, padding, constant_values=np.nan),
    )
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(
    wide_gradient[:, :9], gradient, rtol=1e-5, atol=1e-7
  )
  assert not wide_gradient[:, 9:].any()


@pytest.mark.parametrize("config", AGGREGATES, ids=lambda c: c.aggregate)
def test_a_batch_without_tokens_is_zero(config):
  batch, _ = random_experience(8, lengths=[0] * 12)
  zeros = np.zeros((12, 9), np.float32)
  value, metrics = pure_loss(zeros, zeros, batch, CREDIT, config)
  assert float(value) == 0
  assert all(np.isfinite(v) for v in metrics.values())


def _prm_batch():
  rng = np.random.default_rng(9)
  logits = rng.normal(0, 2, (4, 7, 2)).astype(np.float32)
  position = np.array([[1, 4, 6], [0, 2, 0], [5, 0, 0], [0, 0, 0]])
  mask = np.array(
    [[True] * 3, [True, True, False], [True, False, False], [False] * 3]
  )
  blank = np.zeros((4, 7), np.int32)
  labels = np.array([[1, 1, 0], [1, 0, -1], [1, 1, 1], [0, 1, 1]])
  label_mask = np.array(
    [[True] * 3, [True, False, False], [True, True, False], [True] * 3]
  )
  return logits, PRMInputs(blank, blank > 0, position, mask), labels, label_mask


def test_prm_loss_agrees_with_a_loop():
  logits, inputs, labels, label_mask = _prm_batch()
  loss, metrics = prm_loss(logits, inputs, labels, label_mask)
  logits, labels, label_mask = map(np.asarray, (logits, labels, label_mask))
  position, exists = map(np.asarray, (inputs.score_position, inputs.score_mask))
  nats, right, recalls = [], [], {0: [], 1: []}
  for b in range(4):
    for s in range(3):
      if not (label_mask[b, s] and exists[b, s]):
        continue
      pair = np.asarray(logits[b, position[b, s]], np.float64)
      label = int(labels[b, s])
      nats.append(np.log(np.exp(pair).sum()) - pair[label])
      right.append(int(pair.argmax()) == label)
      recalls[label].append(right[-1])
  assert recalls[0] and recalls[1]
  np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)
  balanced = np.mean([np.mean(recalls[0]), np.mean(recalls[1])])
  np.testing.assert_allclose(metrics["balanced_accuracy"], balanced, rtol=1e-6)
  assert float(metrics["labelled_steps"]) == len(nats) == 5


def test_prm_gradient_is_zero_off_the_labelled_scores():
  logits, inputs, labels, label_mask = _prm_batch()
  gradient = jax.jit(
    jax.grad(lambda x: losses.prm_loss(x, inputs, labels, label_mask)[0])
  )(logits)
  touched = np.abs(np.asarray(gradient)).sum(-1) > 0
  expected = np.zeros((4, 7), bool)
  expected[0, [1, 4, 6]] = expected[1, 0] = expected[2, 5] = True
  np.testing.assert_array_equal(touched, expected)


def test_prm_without_labels_is_zero():
  logits, inputs, labels, label_mask = _prm_batch()
  nothing = np.zeros_like(label_mask)
  loss, metrics = prm_loss(logits, inputs, labels, nothing)
  assert float(loss) == 0
  assert all(float(value) == 0 for value in metrics.values())


def test_one_class_alone_is_balanced_over_what_is_there():
  logits, inputs, _, label_mask = _prm_batch()
  labels = np.ones((4, 3), int)
  _, metrics = prm_loss(logits, inputs, labels, label_mask)
  # Halving for the class that does not occur would cap it at .5.
  assert float(metrics["balanced_accuracy"]) == float(metrics["accuracy"])
