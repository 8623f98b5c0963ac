"""Rollouts on any layout, in micro-batches and with continuous batching."""

import dataclasses
import functools

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
# Ids of even numbers open a box, odd ones close it.
STOPS = boxed_stops(["", *([r"\boxed{1", "}"] * 12)][: MODEL.vocab_size])
KEY = jax.random.key(6)
RULES = {
  "fsdp": dict(data=2, fsdp=4),
  "tensor": dict(data=2, tensor=4),
  "fsdp+tensor": dict(fsdp=2, tensor=4),
  "fsdp+sequence": dict(data=2, fsdp=2, sequence=2),
}


def make_prompts():
  rng = np.random.default_rng(3)
  tokens, mask = random_prompts(
    rng, rng.integers(1, L + 1, 6), L, MODEL.vocab_size
  )
  return Prompts(tokens, mask)


@functools.cache
def one_loop(stops_at_texts):
  """A loop on one device: (params, prompts, keys) -> rollout."""
  stops = STOPS if stops_at_texts else None
  spec = generation.GenerationSpec(MODEL, SAMPLER, stops)
  return jax.jit(lambda params, *rest: generation.generate(params, spec, *rest))


def sample_in_one_loop(stops_at_texts=False, row_ids=None):
  """Every row with its own copy of its prompt."""
  row_ids = jnp.arange(6 * G) if row_ids is None else row_ids
  prompts = jax.tree.map(lambda x: np.repeat(x, G, axis=0), make_prompts())
  keys = sampling.row_keys(KEY, row_ids)
  return one_loop(stops_at_texts)(random_policy(MODEL), prompts, keys)


@pytest.fixture(scope="module")
def expected():
  rollout = sample_in_one_loop()
  lengths = np.asarray(rollout.completion_mask).sum(axis=1)
  assert len({*lengths.tolist()}) > 4 and 0 < rollout.truncated.sum() < 12
  return jax.device_get(rollout)


def assert_same(rollout, expected):
  for field in dataclasses.fields(expected):
    one, two = getattr(rollout, field.name), getattr(expected, field.name)
    if one.dtype == np.float32:
      np.testing.assert_allclose(
        one, two, rtol=1e-5, atol=1e-5, err_msg=field.name
      )
    else:
      np.testing.assert_array_equal(one, two, err_msg=field.name)


def sample(generate, layout, key=KEY):
  """Samples with weights in their shardings."""
  shardings = sharding.weight_shardings(policy.declare_policy(MODEL), layout)
  params = jax.device_put(random_policy(MODEL), shardings)
  prompts = jax.device_put(make_prompts(), sharding.replicated(layout))
  return generate(params, prompts, key)


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
def test_continuous_batching_under_every_rule_set(rules, expected):
  """Six prompts in slots on 8, 2 or 4 row shards, some uneven."""
  layout = sharding.make_layout(**RULES[rules], rules=rules)
  engine = rollouts.make_engine(MODEL, SAMPLER, G, layout, EngineConfig(8, C))
  rollout = sample(engine.generate, layout)
  assert_same(rollout, expected)
  rows = sharding.batch_sharding(layout)
  assert rollout.tokens.sharding.is_equivalent_to(rows, 2)


@pytest.mark.slow
def test_the_rollout_comes_out_in_another_layout(expected):
  """Sampled on tensor shards, scored with rows split."""
  layout = sharding.make_layout(tensor=2, data=4, rules="tensor")
  rows_layout = sharding.make_layout(fsdp=8)
  engine = rollouts.make_engine(
    MODEL, SAMPLER, G, layout, EngineConfig(24, C), rows_layout
  )
  rollout = sample(engine.generate, layout)
  assert_same(rollout, expected)
  rows = sharding.batch_sharding(rows_layout)
  assert rollout.tokens.sharding.is_equivalent_to(rows, 2)


@pytest.mark.parametrize(
  ("shape", "limit"),
  [
    ({}, 8),  # Two prompts at a time.
    ({"fsdp": 4}, None),  # Six prompts on four shards: prompts are repeated.
    pytest.param({}, 3, marks=pytest.mark.slow),  # Less than a group.
    pytest.param({"fsdp": 2}, 8, marks=pytest.mark.slow),
    pytest.param({"fsdp": 2}, 4, marks=pytest.mark.slow),
  ],
)
def test_micro_batches_sample_the_rows_of_one_batch(shape, limit, expected):
  """A micro-batch with the first rows' keys would repeat their samples."""
  layout = sharding.make_layout(**shape)
  generate = rollouts.make_generate(
    MODEL, SAMPLER, G, layout, rows_at_a_time=limit
  )
  assert_same(sample(generate, layout), expected)


def test_stop_texts_end_rows_in_the_loop_and_in_the_engine():
  """The engine takes a key for each row, too.

  The keys of slots in place of the keys of rows would give other samples.
  """
  expected = sample_in_one_loop(stops_at_texts=True)
  last_tokens = [
    row[mask][-1]
    for row, mask in zip(
      np.asarray(expected.tokens),
      np.asarray(expected.completion_mask),
      strict=True,
    )
  ]
  by_text = ~np.asarray(expected.truncated)
  by_text &= ~np.isin(last_tokens, SAMPLER.stop_ids)
  assert by_text.sum() > 3
  layout = sharding.make_layout()
  generate = rollouts.make_generate(MODEL, SAMPLER, G, layout, stops=STOPS)
  assert_same(sample(generate, layout), expected)
  engine = rollouts.make_engine(
    MODEL, SAMPLER, G, layout, EngineConfig(8, 4), stops=STOPS
  )
  row_ids = jnp.arange(30, 30 + 6 * G)
  rollout = sample(engine.generate, layout, sampling.row_keys(KEY, row_ids))
  assert_same(rollout, sample_in_one_loop(True, row_ids))


def test_a_row_is_sampled_from_its_own_key():
  """A row's key, not its place in the batch, decides its tokens."""
  generate = rollouts.make_generate_together(
    MODEL, SAMPLER, sharding.make_layout(), sync_interval=4
  )
  keys = sampling.row_keys(KEY, jnp.arange(6))
  params, prompts = random_policy(MODEL), make_prompts()
  rollout = generate(params, prompts, keys, None)
  order = np.array([4, 0, 3, 5, 2, 1])
  reordered = jax.tree.map(lambda x: x[order], prompts)
  assert_same(
    generate(params, reordered, keys[order], None),
    jax.tree.map(lambda x: x[order], rollout),
  )


@pytest.mark.parametrize(
  ("shape", "sync_interval"), [({}, 1), ({}, 100), ({"data": 2}, 4)]
)
def test_together_in_chunks_is_one_loop_and_reports(shape, sync_interval):
  """Reports must not change a token; the last one is of the whole batch."""
  layout = sharding.make_layout(**shape)
  params, prompts = random_policy(MODEL), make_prompts()
  keys = sampling.row_keys(KEY, jnp.arange(6))
  generate = rollouts.make_generate_together(
    MODEL, SAMPLER, layout, sync_interval
  )
  reports = []
  everywhere = sharding.replicated(layout)
  rollout = generate(
    jax.device_put(
      params, sharding.weight_shardings(policy.declare_policy(MODEL), layout)
    ),
    jax.device_put(prompts, everywhere),
    jax.device_put(keys, everywhere),
    lambda *report: reports.append(report),
  )
  spec = generation.GenerationSpec(MODEL, SAMPLER)
  expected = jax.jit(functools.partial(generation.generate, spec=spec))(
    params, prompts=prompts, keys=keys
  )
  assert_same(rollout, expected)
  lengths, ended = zip(*reports, strict=True)
  whole = np.asarray(expected.completion_mask).sum(1)
  np.testing.assert_array_equal(lengths[0], np.ones(6))
  np.testing.assert_array_equal(lengths[-1], whole)
  assert ended[-1].all()
  for report, (length, end) in enumerate(reports):
    written = np.minimum(1 + report * sync_interval, whole)
    np.testing.assert_array_equal(length, written)
    np.testing.assert_array_equal(end, written == whole)


def test_the_engine_reports_each_row_of_the_batch():
  """Also rows that wait, and those whose slots have other rows by now."""
  engine = rollouts.make_engine(
    MODEL, SAMPLER, G, sharding.make_layout(), EngineConfig(8, 4)
  )
  reports = []
  rollout = engine.generate(
    random_policy(MODEL),
    make_prompts(),
    KEY,
    lambda *report: reports.append(report),
  )
  whole = np.asarray(rollout.completion_mask).sum(1)
  before = np.zeros(6 * G, int), np.zeros(6 * G, bool)
  for length, ended in reports:
    assert (length >= before[0]).all() and (ended >= before[1]).all()
    np.testing.assert_array_equal(ended, length == whole)
    before = length, ended
  assert ended.all() and not reports[0][1].all()
  assert (reports[0][0] == 0).sum() == 4 * G  # Four prompts wait.


def test_weights_get_the_cpu_layout_where_it_is_faster():
  """On one CPU; sharded weights must stay in their shards."""
  one, many = sharding.make_layout(), sharding.make_layout(fsdp=2)
  assert rollouts.generation_spec(MODEL, SAMPLER, one).cpu_weights
  assert not rollouts.generation_spec(MODEL, SAMPLER, many).cpu_weights
