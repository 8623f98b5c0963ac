"""Samples over layouts, in parts and in turns: those of one device's loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import PAD, random_policy, random_prompts

from pure_jax.host.text.stop_texts import boxed_stops
from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout import generation, sampling
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import rollouts
from pure_jax.types import Prompts

pytestmark = pytest.mark.filterwarnings("error:Some donated buffers")

# Eight query heads and two key heads: more tensor shards than key heads.
MODEL = ModelConfig(
  vocab_size=24,
  width=16,
  num_layers=1,
  num_heads=8,
  num_kv_heads=2,
  head_dim=4,
  mlp_width=24,
  tied_embeddings=False,
)
L, C, G = 4, 9, 4
SAMPLER = SamplingConfig(max_new_tokens=C, pad_id=PAD, stop_ids=(19, 21, 22))
RULES = {
  "fsdp": dict(data=2, fsdp=4),
  "tensor": dict(data=2, tensor=4),
  "fsdp+tensor": dict(fsdp=2, tensor=4),
  "fsdp+sequence": dict(data=2, fsdp=2, sequence=2),
}


def some_prompts(count):
  rng = np.random.default_rng(3)
  tokens, mask = random_prompts(
    rng, rng.integers(1, L + 1, count), L, MODEL.vocab_size
  )
  return Prompts(tokens, mask)


def expected_rollout(count, stops=None):
  """One loop on one device, every row with a copy of its prompt."""
  prompts = jax.tree.map(lambda x: np.repeat(x, G, axis=0), some_prompts(count))
  spec = generation.GenerationSpec(MODEL, SAMPLER, stops)
  return jax.jit(lambda *args: generation.generate(args[0], spec, *args[1:]))(
    random_policy(MODEL),
    prompts,
    sampling.row_keys(jax.random.key(6), jnp.arange(count * G)),
  )


@pytest.fixture(scope="module")
def expected():
  found = expected_rollout(6)
  lengths = np.asarray(found.completion_mask).sum(axis=1)
  assert len({*lengths.tolist()}) > 4 and 0 < found.truncated.sum() < 12
  return jax.device_get(found)


def assert_same(found, expected):
  for field in dataclasses.fields(expected):
    one, two = getattr(found, field.name), getattr(expected, field.name)
    if one.dtype == np.float32:
      np.testing.assert_allclose(
        one, two, rtol=1e-5, atol=1e-5, err_msg=field.name
      )
    else:
      np.testing.assert_array_equal(one, two, err_msg=field.name)


def sampled(layout, count=6, config=None, **options):
  """Samples with weights where the layout wants them."""
  shardings = sharding.weight_shardings(policy.declare_policy(MODEL), layout)
  params = jax.device_put(random_policy(MODEL), shardings)
  if config is None:
    generate = rollouts.make_generate(MODEL, SAMPLER, G, layout, **options)
  else:
    generate = rollouts.make_engine(
      MODEL, SAMPLER, G, layout, config, **options
    ).generate
  prompts = jax.device_put(some_prompts(count), sharding.replicated(layout))
  return generate(params, prompts, jax.random.key(6))


@pytest.mark.parametrize(
  "rules",
  [
    "fsdp+tensor",
    *(
      pytest.param(rules, marks=pytest.mark.slow)
      for rules in ("fsdp", "tensor", "fsdp+sequence")
    ),
  ],
)
def test_rows_take_turns_under_every_rule_set(rules, expected):
  """Six prompts that 8, 2 or 4 row shards take in turns, uneven ones too."""
  layout = sharding.make_layout(**RULES[rules], rules=rules)
  found = sampled(layout, config=EngineConfig(8, 5))
  assert_same(found, expected)
  place = sharding.batch_sharding(layout)
  assert found.tokens.sharding.is_equivalent_to(place, 2)


@pytest.mark.slow
def test_the_rollout_comes_out_in_another_layout(expected):
  """Sampled on tensor shards, scored where rows are split."""
  layout = sharding.make_layout(tensor=2, data=4, rules="tensor")
  rows_layout = sharding.make_layout(fsdp=8)
  found = sampled(
    layout,
    rows_layout=rows_layout,
    config=EngineConfig(24, C),
  )
  assert_same(found, expected)
  place = sharding.batch_sharding(rows_layout)
  assert found.tokens.sharding.is_equivalent_to(place, 2)


@pytest.mark.parametrize(
  ("shape", "limit"),
  [
    ({}, 8),  # Two prompts at a time.
    ({}, 3),  # Less than a group: each row has its prompt.
    ({"fsdp": 4}, None),  # Six prompts on four shards: repeated.
    pytest.param({"fsdp": 2}, 8, marks=pytest.mark.slow),
    pytest.param({"fsdp": 2}, 4, marks=pytest.mark.slow),
  ],
)
def test_prompts_shared_or_repeated_in_parts_or_whole(shape, limit, expected):
  """A part that took the first rows' keys would repeat their samples."""
  layout = sharding.make_layout(**shape)
  assert_same(sampled(layout, rows_at_a_time=limit), expected)


def test_stops_reach_both_ways_to_sample():
  """Ids of an even number open a box, odd ones close it."""
  pieces = ["", *([r"\boxed{1", "}"] * 12)][: MODEL.vocab_size]
  stops = boxed_stops(pieces)
  expected = expected_rollout(6, stops)
  by_text = ~np.asarray(expected.truncated) & ~np.isin(
    [row[m][-1] for row, m in zip(*map(
      np.asarray, (expected.tokens, expected.completion_mask)
    ), strict=True)],
    SAMPLER.stop_ids,
  )  # fmt: skip
  assert by_text.sum() > 3
  layout = sharding.make_layout()
  for config in (None, EngineConfig(8, 4)):
    found = sampled(layout, stops=stops, config=config)
    assert_same(found, expected)


def test_a_row_of_its_own_key():
  """As evaluations draw: a row's key says what it is, not its place."""
  layout = sharding.make_layout()
  generate = rollouts.make_generate_rows(MODEL, SAMPLER, layout)
  keys = sampling.row_keys(jax.random.key(6), jnp.arange(6))
  params = random_policy(MODEL)
  whole = generate(params, some_prompts(6), keys)
  order = np.array([4, 0, 3, 5, 2, 1])
  turned = generate(
    params, jax.tree.map(lambda x: x[order], some_prompts(6)), keys[order]
  )
  assert_same(turned, jax.tree.map(lambda x: x[order], whole))


def test_rows_of_their_own_keys_take_turns():
  """Places' keys in place of rows' would draw other samples."""
  keys = sampling.row_keys(jax.random.key(6), jnp.arange(30, 30 + 6 * G))
  params, prompts = random_policy(MODEL), some_prompts(6)
  repeated = jax.tree.map(lambda x: np.repeat(x, G, axis=0), prompts)
  layout = sharding.make_layout()
  one_loop = rollouts.make_generate_rows(MODEL, SAMPLER, layout)
  engine = rollouts.make_engine(MODEL, SAMPLER, G, layout, EngineConfig(8, 4))
  assert_same(
    engine.generate(params, prompts, keys), one_loop(params, repeated, keys)
  )


def test_weights_are_laid_out_in_columns_where_it_is_faster():
  """On one CPU in float32; sharded weights must stay in their shards."""
  one, many = sharding.make_layout(), sharding.make_layout(fsdp=2)
  half = dataclasses.replace(MODEL, compute_dtype="bfloat16")
  assert rollouts.generation_spec(MODEL, SAMPLER, one).cpu_weights
  for model, layout in ((MODEL, many), (half, one)):
    assert not rollouts.generation_spec(model, SAMPLER, layout).cpu_weights
