"""AdamW by hand and by torch, and values no optimizer can use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from pure_jax.host.checkpoints.checkpointer import Checkpoints
from pure_jax.models import lora, params, policy, prm
from pure_jax.models.config import LoraConfig, ModelConfig
from pure_jax.training import optim, train

# With every kind of weight: norms of queries and keys, and biases.
MODEL = ModelConfig(
  vocab_size=7,
  width=4,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=2,
  mlp_width=6,
  attention_bias=True,
  qk_norm=True,
  tied_embeddings=False,
)
# Last parts of the names of weights that transformers' Trainer does not decay.
UNDECAYED = {
  *("attention_norm", "mlp_norm", "final_norm", "query_norm", "key_norm"),
  *("query_bias", "key_bias", "value_bias", "bias"),
}
DECAYING = optim.OptimConfig(
  learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1e9
)


def names_of(tree):
  """The last part of every leaf's name, in the order of the leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=params.is_weight)
  return [path[-1].key for path, _ in leaves]


def declarations():
  """Declared weights of each kind of training, by its name."""
  adapted = dataclasses.replace(MODEL, lora=LoraConfig(2, 4.0, ("query", "up")))
  adapters, _ = lora.split_adapters(policy.declare_policy(adapted))
  return {
    "policy": policy.declare_policy(MODEL),
    "prm": prm.declare_prm(MODEL),
    "prm head": {"score": prm.declare_prm(MODEL)["score"]},
    "adapters": adapters,
  }


def updater(optimizer):
  """One update: (weights, state, gradients) -> (weights, state)."""

  @jax.jit
  def update(values, state, grads):
    updates, state = optimizer.update(grads, state, values)
    return optax.apply_updates(values, updates), state

  return update


@pytest.mark.parametrize("kind", declarations())
def test_weights_that_are_declared_so_do_not_decay(kind):
  """100 updates without gradient; all weights would be .905 before."""
  declared = declarations()[kind]
  values = jax.tree.map(
    lambda weight: np.ones(weight.shape, np.float32),
    declared,
    is_leaf=params.is_weight,
  )
  optimizer = optim.make_optimizer(DECAYING, declared)
  zero = jax.tree.map(np.zeros_like, values)
  update, state = updater(optimizer), jax.jit(optimizer.init)(values)
  for _ in range(100):
    values, state = update(values, state, zero)
  expected = {True: 1.0, False: (1 - 1e-2 * 0.1) ** 100}
  assert expected[False] == pytest.approx(0.905, abs=5e-4)
  for name, value in zip(
    names_of(values), jax.tree.leaves(values), strict=True
  ):
    np.testing.assert_allclose(
      value, expected[name in UNDECAYED], rtol=1e-5, err_msg=name
    )


def test_updates_equal_those_of_torch_with_two_groups_of_parameters():
  """As transformers' Trainer groups them, which trained the paper's PRM."""
  declared = prm.declare_prm(MODEL)
  values = jax.jit(lambda key: params.init_params(key, declared))(
    jax.random.key(0)
  )
  leaves, tree = jax.tree.flatten(values)
  tensors = [torch.nn.Parameter(torch.tensor(np.asarray(x))) for x in leaves]
  is_bare = [name in UNDECAYED for name in names_of(values)]
  groups = [
    {
      "params": [
        x for x, bare in zip(tensors, is_bare, strict=True) if not bare
      ],
      "weight_decay": 0.1,
    },
    {
      "params": [x for x, bare in zip(tensors, is_bare, strict=True) if bare],
      "weight_decay": 0.0,
    },
  ]
  peer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
  optimizer = optim.make_optimizer(DECAYING, declared)
  update, state = updater(optimizer), jax.jit(optimizer.init)(values)
  rng = np.random.default_rng(0)
  for _ in range(3):
    grads = [rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    for tensor, grad in zip(tensors, grads, strict=True):
      tensor.grad = torch.tensor(grad)
    peer.step()
    values, state = update(values, state, jax.tree.unflatten(tree, grads))
  for ours, theirs in zip(jax.tree.leaves(values), tensors, strict=True):
    np.testing.assert_allclose(
      ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6
    )


def test_a_checkpoint_from_before_weights_were_masked_is_restored(tmp_path):
  """The state has the same arrays under the same names."""
  declared = policy.declare_policy(MODEL)
  values = params.init_params(jax.random.key(1), declared)
  older = train.new_state(
    values, optim.make_optimizer(dataclasses.replace(DECAYING, weight_decay=0))
  )
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, older, {})
  masked = optim.make_optimizer(DECAYING, declared)
  abstract = jax.eval_shape(lambda: train.new_state(values, masked))
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore_latest(abstract)
  jax.tree.map(
    np.testing.assert_array_equal, restored.state.params, older.params
  )


def test_a_decay_without_declarations_is_refused():
  with pytest.raises(ValueError, match="needs the weights' declarations"):
    optim.make_optimizer(DECAYING)


def test_two_steps_equal_adamw_written_out():
  config = optim.OptimConfig(
    learning_rate=0.1, weight_decay=0.2, beta1=0.8, beta2=0.9, max_grad_norm=1
  )
  declared = {"w": params.Weight((2,), "float32", (None,), params.ONES)}
  optimizer = optim.make_optimizer(config, declared)
  weight = np.array([1.0, -2.0], np.float64)
  values = {"w": jnp.asarray(weight, jnp.float32)}
  state = optimizer.init(values)
  first, second = np.zeros(2), np.zeros(2)
  for step, grad in enumerate(([3.0, 4.0], [0.3, -0.1]), 1):
    updates, state = optimizer.update(
      {"w": jnp.asarray(grad, jnp.float32)}, state, values
    )
    values = {"w": values["w"] + updates["w"]}
    grad = np.asarray(grad)
    # Unclipped, [3, 4] would enter with norm 5 instead of 1.
    grad = grad / max(1.0, np.linalg.norm(grad))
    first = 0.8 * first + 0.2 * grad
    second = 0.9 * second + 0.1 * grad**2
    direction = (first / (1 - 0.8**step)) / (
      np.sqrt(second / (1 - 0.9**step)) + 1e-8
    )
    weight = weight - 0.1 * (direction + 0.2 * weight)
    np.testing.assert_allclose(values["w"], weight, rtol=1e-6)


def test_schedules():
  constant = optim.learning_rate_schedule(optim.OptimConfig(0.5))
  assert [constant(step) for step in (0, 10, 10_000)] == [0.5] * 3
  warm = optim.learning_rate_schedule(optim.OptimConfig(0.5, warmup_steps=10))
  np.testing.assert_allclose(
    [warm(step) for step in (0, 5, 10, 99)], [0, 0.25, 0.5, 0.5]
  )
  cosine = optim.learning_rate_schedule(
    optim.OptimConfig(0.5, warmup_steps=10, decay_steps=110)
  )
  np.testing.assert_allclose(
    [cosine(step) for step in (0, 10, 60, 110, 500)],
    [0, 0.5, 0.25, 0, 0],
    atol=1e-7,
  )
  without_warmup = optim.learning_rate_schedule(
    optim.OptimConfig(0.5, decay_steps=100)
  )
  np.testing.assert_allclose(
    [without_warmup(step) for step in (0, 50, 100)], [0.5, 0.25, 0], atol=1e-7
  )


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_linear_decay_is_that_of_transformers(warmup):
  """Its Trainer's default, with which the paper's PRM was trained."""
  weight = torch.nn.Parameter(torch.zeros(1))
  peer = torch.optim.SGD([weight], lr=0.5)
  schedule = transformers.get_linear_schedule_with_warmup(peer, warmup, 8)
  ours = optim.learning_rate_schedule(
    optim.OptimConfig(0.5, warmup_steps=warmup, decay_steps=8, decay="linear")
  )
  for step in range(10):
    np.testing.assert_allclose(ours(step), schedule.get_last_lr()[0], rtol=1e-6)
    peer.step()
    schedule.step()


@pytest.mark.parametrize(
  "changes",
  [
    {"decay": "step"},
    {"learning_rate": 0.0},
    {"learning_rate": float("inf")},
    {"max_grad_norm": -1.0},
    {"beta2": 1.0},
    {"beta1": -0.1},
    {"weight_decay": -1.0},
    {"decay_steps": -1},
    {"decay_steps": 40, "warmup_steps": 50},
    {"decay_steps": 40, "warmup_steps": 40},
  ],
)
def test_impossible_values_are_named(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    optim.OptimConfig(**({"learning_rate": 0.1} | changes))


def test_the_rate_is_above_0_in_every_update_of_a_stage():
  """A cosine of 2,000 updates left 2,000 of 4,000 without effect."""
  config = optim.OptimConfig(1.0, warmup_steps=3, decay_steps=10)
  config.check_updates("optim", 10)
  schedule = optim.learning_rate_schedule(config)
  assert all(schedule(step) > 0 for step in range(1, 10))
  with pytest.raises(
    ValueError, match=r"full_optim\.decay_steps=10 ends before"
  ):
    config.check_updates("full_optim", 11)
  optim.OptimConfig(1.0, warmup_steps=3).check_updates("optim", 10**9)
