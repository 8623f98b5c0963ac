"""Models compute the same with kernels, on one device and on eight.

Kernels are interpreted here. Their sums have another order.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plan
import pytest
from configs import arithmetic
from kernel_inputs import draw_texts, model_attention, value_and_gradients
from layout_steps import MODEL, assert_same, one_step
from ml_collections import ConfigDict
from train_boundary import SAMPLER, grown, prompts

from pure_jax.kernels.linear_logp import linear_logp
from pure_jax.models import decoding, kv_cache, policy, prm
from pure_jax.models.params import abstract_params, init_params
from pure_jax.parallel import sharding
from pure_jax.parallel.kernel_calls import Kernels
from pure_jax.rollout import engine_programs
from pure_jax.runs import spec
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.training import rollouts
from pure_jax.training.step_spec import Layouts

ALL = Kernels("splash", "pallas", "pallas", interpret=True)
SPLASH = Kernels(attention="splash", interpret=True)
DECODE = Kernels(decode_attention="pallas", interpret=True)
ROWS = dict(data=2, fsdp=4)
HEADS = dict(fsdp=2, tensor=2, rules="fsdp+tensor")
# Each of four shards has both key heads and reads one.
COPIED = dict(data=2, tensor=4, rules="tensor")


def assert_close(actual, expected, atol=1e-5):
  for x, y in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
  "sizes", [HEADS, COPIED], ids=["heads", "copied heads"]
)
def test_attention_over_devices_is_that_of_one(sizes):
  """With a wrong key head, a shard is off by more than 0.1.

  A gradient that is summed over the wrong devices is off by a factor.
  """
  inputs = draw_texts(8, 20, 8, 2, 4)
  layout = sharding.make_layout(**sizes, kernels=SPLASH)
  actual = value_and_gradients(layout.act_sharding.attention, *inputs)
  assert_close(actual, value_and_gradients(model_attention, *inputs))


@pytest.mark.parametrize(
  ("sizes", "shared", "dtype"),
  [
    ({}, True, "int8"),
    (HEADS, False, "float32"),
    (COPIED, True, "int8"),
  ],
  ids=["one device", "heads", "copied heads"],
)
def test_decode_attention_over_devices_is_that_of_one(sizes, shared, dtype):
  """With a wrong key head, row or scale, a shard is off by 0.1."""
  rng = np.random.default_rng(7)

  def stored(rows, slots):
    x = jnp.asarray(rng.normal(size=(rows, 2, slots, 4)), jnp.float32)
    return kv_cache.store(x, dtype)

  q = jnp.asarray(rng.normal(size=(8, 1, 8, 4)), jnp.float32)
  mask = jnp.asarray(rng.random((8, 9)) < 0.5).at[:, 3].set(True)
  segments = [kv_cache.KVSegment(stored(8, 9), stored(8, 9), mask)]
  if shared:
    prompt_mask = jnp.arange(6)[None] >= jnp.array([[0], [5], [2], [3]])
    prompt = kv_cache.KVSegment(stored(4, 6), stored(4, 6), prompt_mask)
    segments.insert(0, prompt)
  layout = sharding.make_layout(**sizes, kernels=DECODE)
  attend = layout.decoding_act_sharding.decode_attention
  actual = jax.jit(attend)(q, segments)
  assert_close(actual, decoding.attend_to_cache(q, segments), atol=1e-6)


def test_log_probs_over_devices_are_those_of_one():
  """Each device adds the gradient of its rows to the table's once."""
  rng = np.random.default_rng(2)
  table, hidden = rng.normal(size=(40, 6)), rng.normal(size=(8, 5, 6))
  table, hidden = (jnp.asarray(x, jnp.float32) for x in (table, hidden))
  tokens = jnp.asarray(rng.integers(1, 40, (8, 5)))
  mask = jnp.asarray(rng.random((8, 5)) < 0.7)

  def value_and_gradient(function):
    def objective(table, hidden):
      logp, entropy = function(
        *(table, hidden, tokens, mask),
        **dict(tied=True, temperature=0.8, banned_ids=(0,)),
      )
      return jnp.sum(logp * jnp.arange(5.0)[None] + entropy), (logp, entropy)

    take = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
    return jax.jit(take)(table, hidden)

  layout = sharding.make_layout(
    data=2, fsdp=4, kernels=Kernels(logp="pallas", interpret=True)
  )
  actual = value_and_gradient(layout.act_sharding.head_logp)
  assert_close(actual, value_and_gradient(linear_logp))


def texts():
  """Prompts and completions of several lengths, as `token_logp` takes them."""
  rng = np.random.default_rng(4)
  tokens = jnp.asarray(rng.integers(1, MODEL.vocab_size, (3, 18)))
  prompt_mask = jnp.arange(7)[None] >= jnp.array([[0], [5], [2]])
  mask = jnp.arange(11)[None] < jnp.array([[11], [1], [6]])
  return tokens[:, :7], prompt_mask, tokens[:, 7:], mask


def test_log_probs_and_gradients_with_kernels_equal_those_without():
  """With remat, and with chunk sizes that the kernels ignore."""
  model = dataclasses.replace(MODEL, num_layers=1, remat="layer")
  params = init_params(jax.random.key(0), policy.declare_policy(model))
  weights = jnp.asarray(np.random.default_rng(5).normal(size=(2, 3, 11)))

  def run(layout, model):
    def objective(params, *given):
      actual = policy.token_logp(
        params,
        model,
        *given,
        temperature=0.8,
        act_sharding=layout.act_sharding,
      )
      return jnp.mean(weights * jnp.stack(actual)), actual

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(
      params, *texts()
    )

  chunked = dataclasses.replace(model, attention_chunk=4, logits_chunk=2)
  actual = run(sharding.make_layout(kernels=ALL), chunked)
  assert_close(actual, run(sharding.make_layout(), model), atol=1e-6)


def operations(layout, function, *given):
  return str(jax.make_jaxpr(functools.partial(function, layout))(*given))


def of_prompts(layout, params, tokens, mask):
  return decoding.prefill(
    params, MODEL, tokens, mask, act_sharding=layout.decoding_act_sharding
  )


def of_a_prm(layout, params, tokens, mask):
  ids = mask.astype(jnp.int32)
  return prm.token_scores(params, MODEL, tokens, ids, ids, layout.act_sharding)


def of_packed_texts(layout, params, tokens, mask):
  ids = mask.astype(jnp.int32)
  return policy.packed_logp(
    params,
    MODEL,
    tokens,
    ids,
    ids,
    mask,
    act_sharding=layout.act_sharding,
  )


@pytest.mark.parametrize("sizes", [{}, dict(data=2, fsdp=4)])
def test_every_forward_pass_calls_the_chosen_kernels(sizes):
  """Without kernels the program has no Pallas call."""
  shape = jax.ShapeDtypeStruct
  given = shape((8, 12), jnp.int32), shape((8, 12), bool)
  of_policy = abstract_params(policy.declare_policy(MODEL))
  of_prm = abstract_params(prm.declare_prm(MODEL))
  chosen = sharding.make_layout(**sizes, kernels=ALL)
  plain = sharding.make_layout(**sizes)
  for function, params, kernels in (
    (of_prompts, of_policy, {"splash"}),
    (of_a_prm, of_prm, {"splash"}),
    (of_packed_texts, of_policy, {"splash", "logp_forward"}),
  ):
    text = operations(chosen, function, params, *given)
    for name in ("splash", "logp_forward"):
      assert (name in text) == (name in kernels), function
    assert "pallas_call" not in operations(plain, function, params, *given)
  assert sharding.make_layout().act_sharding == policy.LOCAL


def test_kernels_are_validated_before_anything_is_compiled():
  make = sharding.make_layout
  with pytest.raises(ValueError, match="attention='splash' runs on a TPU only"):
    make(kernels=Kernels(attention="splash"))
  with pytest.raises(ValueError, match=r"'cudnn' runs on a GPU only.*'cpu'"):
    make(kernels=Kernels(attention="cudnn", interpret=True))
  with pytest.raises(ValueError, match="logp='pallas' runs on a TPU only"):
    make(kernels=Kernels(logp="pallas"))
  with pytest.raises(ValueError, match="over sequence=2 devices: set it to 1"):
    make(sequence=2, rules="fsdp+sequence", kernels=SPLASH)
  with pytest.raises(ValueError, match=r"whole vocabulary.*tensor=2 devices"):
    make(tensor=2, rules="tensor", kernels=ALL)
  with pytest.raises(ValueError, match=r"kernels\.attention must be one of"):
    Kernels(attention="flash")


def test_a_run_reads_its_kernels_from_the_config():
  """A layout that splits heads gets the attention kernels only."""
  config = arithmetic.get_config("smoke")
  for name in ("decode_attention", "logp"):
    config.kernels[name] = "pallas"
  config.kernels.attention = "splash"
  with pytest.raises(ConfigError, match="attention='splash' runs on a TPU"):
    spec.make_layouts(settings_from_config(config))
  config.kernels.interpret = True
  config.mesh.fsdp = 2
  config.rl.rollout_mesh = ConfigDict({"tensor": 2, "rules": "tensor"})
  layouts = spec.make_layouts(settings_from_config(config))
  assert {
    layouts.training.kernels,
    layouts.reference.kernels,
    layouts.prm.kernels,
  } == {ALL}
  assert layouts.rollout.kernels == dataclasses.replace(ALL, logp="xla")


def test_a_plan_raises_for_kernels_whose_cost_it_cannot_count():
  config = arithmetic.get_config("smoke")
  config.kernels.attention = "splash"
  with pytest.raises(ConfigError, match="nothing within a kernel"):
    plan.Planner(settings_from_config(config), None)


@pytest.mark.slow
def test_a_training_step_with_kernels_equals_one_without():
  """Rollout, scores and update, rows over eight devices."""
  layout = sharding.make_layout(data=2, fsdp=4, kernels=ALL)
  expected = one_step(Layouts.same(sharding.make_layout()))
  assert_same(one_step(Layouts.same(layout)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("sizes", [{}, HEADS], ids=["one", "four"])
def test_continuous_batching_with_kernels_samples_the_same(sizes, dtype):
  """Slots are refilled, and the ring wraps around."""
  model = dataclasses.replace(MODEL, cache_dtype=dtype)
  params = init_params(jax.random.key(0), policy.declare_policy(model))
  params = grown(params)

  def samples(layout):
    engine = rollouts.make_engine(
      model, SAMPLER, 4, layout, engine_programs.EngineConfig(16, 3)
    )
    return engine.generate(params, prompts(8), jax.random.key(2))

  actual = samples(sharding.make_layout(**sizes, kernels=DECODE))
  expected = samples(sharding.make_layout(**sizes))
  np.testing.assert_array_equal(actual.tokens, expected.tokens)
  assert_close(actual.full_logp, expected.full_logp)
