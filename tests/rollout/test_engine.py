"""The engine samples the same tokens as one loop, in any number of slots."""

import dataclasses
import functools
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import PAD, TINY, random_policy, random_prompts

from pure_jax.rollout import engine_programs, generation, sampling, scheduling
from pure_jax.rollout.engine import Engine
from pure_jax.rollout.engine_programs import EngineConfig, EngineSpec
from pure_jax.rollout.generation import GenerationSpec
from pure_jax.rollout.sampling import SamplingConfig, StopTable
from pure_jax.types import Prompts

pytestmark = pytest.mark.filterwarnings("error:Some donated buffers")

MODEL = dataclasses.replace(TINY, num_layers=1)
L, C, P, G = 5, 11, 5, 3
# Three of 22 ids: some sequences end together, some are truncated.
SAMPLER = SamplingConfig(max_new_tokens=C, pad_id=PAD, stop_ids=(14, 18, 19))
SPEC = GenerationSpec(MODEL, SAMPLER)
KEY = jax.random.key(8)


def make_prompts(count=P, seed=4):
  rng = np.random.default_rng(seed)
  tokens, mask = random_prompts(rng, rng.integers(1, L + 1, count), L)
  return Prompts(tokens, mask)


def sample_in_one_loop(spec, prompts, key, group_size=G):
  """Every row in one loop, each with its own copy of its prompt."""
  rows = prompts.tokens.shape[0] * group_size
  prompts = jax.tree.map(lambda x: np.repeat(x, group_size, axis=0), prompts)
  return jax.jit(functools.partial(generation.generate, spec=spec))(
    random_policy(spec.model),
    prompts=prompts,
    keys=sampling.row_keys(key, jnp.arange(rows)),
  )


def make_engine(slots, sync_interval, spec=SPEC, group_size=G, **options):
  config = EngineConfig(slots, sync_interval)
  return Engine(EngineSpec(spec, group_size, config, **options))


def sample(engine, prompts, key=KEY):
  params = random_policy(engine.spec.generation.model)
  return engine.generate(params, prompts, key)


def assert_same(rollout, expected):
  """Tokens are equal, log-probs up to the order of sums."""
  for name in (
    *("prompt_tokens", "prompt_mask", "tokens", "completion_mask"),
    "truncated",
  ):
    np.testing.assert_array_equal(
      getattr(rollout, name), getattr(expected, name), err_msg=name
    )
  for name in ("sampled_logp", "full_logp"):
    assert np.isfinite(getattr(rollout, name)).all()
    np.testing.assert_allclose(
      getattr(rollout, name),
      getattr(expected, name),
      rtol=1e-5,
      atol=1e-5,
      err_msg=name,
    )


@pytest.fixture(scope="module")
def expected():
  return sample_in_one_loop(SPEC, make_prompts(), KEY)


def test_the_rows_of_the_batch_differ(expected):
  """Equal rows would look right in the wrong slot."""
  lengths = np.asarray(expected.completion_mask).sum(axis=1)
  assert lengths.min() == 1 and len({*lengths.tolist()}) >= 6
  assert 0 < expected.truncated.sum() < len(lengths) / 2
  ended_last = (lengths == C) & ~np.asarray(expected.truncated)
  assert len({tuple(row) for row in np.asarray(expected.tokens)}) > 10
  assert lengths.sum() < 0.6 * lengths.size * C or ended_last.any()


@pytest.mark.parametrize(
  ("slots", "sync_interval", "shards"),
  [
    (64, 50, 1),  # More slots than rows, and one chunk.
    (12, 3, 2),  # One shard gets three of five prompts.
    pytest.param(7, 2, 1, marks=pytest.mark.slow),
    pytest.param(15, 3, 1, marks=pytest.mark.slow),  # The slots shrink.
    pytest.param(2, 1, 1, marks=pytest.mark.slow),  # Fewer than a group.
    pytest.param(9, 4, 1, marks=pytest.mark.slow),
    pytest.param(15, C, 1, marks=pytest.mark.slow),
    pytest.param(12, 5, 4, marks=pytest.mark.slow),
    pytest.param(64, 2, 8, marks=pytest.mark.slow),  # Shards without prompts.
  ],
)
def test_the_engine_samples_the_tokens_of_one_loop(
  expected, slots, sync_interval, shards
):
  engine = make_engine(slots, sync_interval, shards=shards)
  assert_same(sample(engine, make_prompts()), expected)


def test_a_second_batch_compiles_nothing(expected, caplog, monkeypatch):
  """Slots and ring entries are halved and doubled, so sizes are few."""
  engine, sizes = make_engine(7, 3), set()  # 7 slots hold two prompts: 6.
  decode = generation.decode

  def record_sizes(params, spec, state, max_tokens):
    sizes.add((state.done.shape[0], state.cache.ring_length))
    return decode(params, spec, state, max_tokens)

  monkeypatch.setattr(engine_programs.generation, "decode", record_sizes)

  def count_compilations(seed):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
      rollout = sample(engine, make_prompts(), jax.random.key(seed))
    if seed == 8:
      assert_same(rollout, expected)
    return sum("Compiling" in record.message for record in caplog.records)

  assert count_compilations(8) > 0
  assert count_compilations(8) == 0
  for seed in range(3):
    count_compilations(seed)
  assert {slots for slots, _ in sizes} <= {6, 3, 1}
  assert min(slots for slots, _ in sizes) < 6
  assert {ring for _, ring in sizes} <= {3, 6, C - 1}
  assert (6, 3) in sizes and max(ring for _, ring in sizes) == C - 1


@pytest.mark.slow
def test_a_ring_that_has_wrapped_around_grows_in_order():
  """A long sequence that begins late would lose tokens that it still needs.

  Few seeds show the fault; with this one the tokens differ.
  """
  key, prompts = jax.random.key(18), make_prompts(12, seed=18)
  engine = make_engine(3, 1, group_size=1)
  rollout = sample(engine, prompts, key)
  assert_same(rollout, sample_in_one_loop(SPEC, prompts, key, group_size=1))


@pytest.mark.slow
def test_two_layers_cpu_weights_and_groups_of_one():
  spec = GenerationSpec(TINY, SAMPLER, cpu_weights=True)
  key, prompts = jax.random.key(2), make_prompts(7, seed=1)
  rollout = sample(make_engine(4, 3, spec, group_size=1), prompts, key)
  assert_same(rollout, sample_in_one_loop(spec, prompts, key, group_size=1))


def test_ring_lengths_are_multiples_with_room_for_the_longest_sequence():
  """The token that is sampled last needs no entry."""
  spec = EngineSpec(SPEC, G, EngineConfig(6, 3))
  assert [spec.ring_length(n) for n in (3, 6, 10, 20)] == [3, 6, 10, 10]
  padded = dataclasses.replace(spec, ring_multiple=4)
  assert [padded.ring_length(n) for n in (3, 6, 10, 20)] == [4, 8, 12, 12]


def run_with_fake_programs(slots, tokens_per_row):
  """Runs the host loop without a model: (program, ring length) per call."""
  engine, calls = make_engine(slots, 6), []

  def fake_slots(ring_length, num_slots, generated=1, shared=True):
    cache = types.SimpleNamespace(
      prompt_mask=True if shared else None, ring_length=ring_length
    )
    return types.SimpleNamespace(
      state=types.SimpleNamespace(cache=cache),
      num_slots=num_slots,
      generated=generated,
    )

  def change(slots, **changes):
    fields = {
      "ring_length": slots.state.cache.ring_length,
      "num_slots": slots.num_slots,
      "generated": slots.generated,
      "shared": slots.state.cache.prompt_mask is not None,
    }
    return fake_slots(**fields | changes)

  def record(name, slots, **changes):
    calls.append((name, slots.state.cache.ring_length))
    return change(slots, **changes)

  def status(slots):
    done = np.full(slots.num_slots, slots.generated >= tokens_per_row)
    return np.full(slots.num_slots, slots.generated), done

  engine.programs = engine_programs.EnginePrograms(
    to_decoding_params=None,
    start=lambda params, prompts, key, ids, ring: (
      fake_slots(ring, len(ids) * G),
      None,
    ),
    refill=lambda *args: (record("refill", args[5], generated=1), None),
    decode=lambda params, slots, _: (
      record("decode", slots, generated=min(slots.generated + 6, C)),
      None,
    ),
    unshare=lambda slots: record("unshare", slots, shared=False),
    grow=lambda slots, ring: record("grow", slots, ring_length=ring),
    shrink=None,
    status=status,
    finish=lambda prompts, _: None,
  )
  engine.generate(None, make_prompts(), KEY)
  return calls


def test_prompts_are_copied_before_the_ring_grows_for_the_last_time():
  """Copying them later would hold the longest cache twice."""
  first_round = [
    *(("decode", 6), ("unshare", 6), ("grow", 6), ("decode", C - 1)),
    *(("refill", C - 1), ("decode", C - 1)),
  ]
  calls = run_with_fake_programs(slots=6, tokens_per_row=C)
  assert calls[: len(first_round)] == first_round
  assert calls.count(("refill", C - 1)) == 2  # Five prompts, two at a time.


def test_prompts_stay_shared_if_none_waits():
  calls = run_with_fake_programs(slots=64, tokens_per_row=C)
  assert calls == [("decode", 6), ("grow", 6), ("decode", C - 1)]


def test_a_limit_of_one_token(expected):
  """No token is fed back, and the first one alone can end a sequence."""
  sampler = dataclasses.replace(SAMPLER, max_new_tokens=1)
  engine = make_engine(6, 4, GenerationSpec(MODEL, sampler))
  rollout = sample(engine, make_prompts())
  np.testing.assert_array_equal(rollout.tokens, expected.tokens[:, :1])
  assert rollout.completion_mask.all()
  stopped = np.isin(rollout.tokens[:, 0], SAMPLER.stop_ids)
  np.testing.assert_array_equal(rollout.truncated, ~stopped)
  assert stopped.any()


@pytest.mark.parametrize(
  "end", [pytest.param("limit", marks=pytest.mark.slow), "first token"]
)
def test_all_sequences_end_together(expected, end):
  """At the limit, or before anything is decoded, in refilled slots too."""
  stop_ids = ()
  if end == "first token":
    stop_ids = tuple(np.unique(expected.tokens[:, 0]).tolist())
  sampler = dataclasses.replace(SAMPLER, stop_ids=stop_ids)
  spec = GenerationSpec(MODEL, sampler)
  rollout = sample(make_engine(6, 4, spec), make_prompts())
  lengths = rollout.completion_mask.sum(axis=1)
  assert (lengths == (C if end == "limit" else 1)).all()
  assert (rollout.truncated == (end == "limit")).all()
  np.testing.assert_array_equal(rollout.tokens[:, 0], expected.tokens[:, 0])


def test_filters_stop_texts_and_a_ring_in_multiples_of_four():
  """The stop text is any two even ids in a row."""
  even = (np.arange(MODEL.vocab_size) % 2 == 0).astype(np.int32)
  next_state = np.stack([even, 2 * even, np.full_like(even, 2)], axis=1)
  sampler = dataclasses.replace(
    SAMPLER, stop_ids=(), temperature=0.7, top_k=9, top_p=0.9, min_p=0.05
  )
  spec = GenerationSpec(MODEL, sampler, StopTable(next_state))
  prompts, key = make_prompts(), jax.random.key(5)
  rollout = sample(make_engine(6, 3, spec, ring_multiple=4), prompts, key)
  assert_same(rollout, sample_in_one_loop(spec, prompts, key))
  assert not np.allclose(rollout.sampled_logp, rollout.full_logp, atol=1e-2)
  for row, mask, truncated in zip(
    *map(
      np.asarray, (rollout.tokens, rollout.completion_mask, rollout.truncated)
    ),
    strict=True,
  ):
    is_even = row[mask] % 2 == 0
    pairs = np.flatnonzero(is_even[1:] & is_even[:-1]) + 1
    assert pairs.tolist() == ([] if truncated else [len(is_even) - 1])
  assert 0 < rollout.truncated.sum() < P * G


@pytest.mark.slow
def test_greedy_samples_of_one_prompt_are_equal():
  sampler = dataclasses.replace(SAMPLER, temperature=0.0)
  spec, prompts = GenerationSpec(MODEL, sampler), make_prompts()
  rollout = sample(make_engine(6, 3, spec), prompts)
  assert_same(rollout, sample_in_one_loop(spec, prompts, KEY))
  tokens = np.asarray(rollout.tokens).reshape(P, G, C)
  assert (tokens == tokens[:, :1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_caches_of_short_dtypes_move_with_their_scales(dtype):
  """A scale that stays behind its row would change tokens and log-probs."""
  model = dataclasses.replace(MODEL, cache_dtype=dtype)
  spec, prompts = GenerationSpec(model, SAMPLER), make_prompts()
  rollout = sample(make_engine(6, 3, spec), prompts)
  assert_same(rollout, sample_in_one_loop(spec, prompts, KEY))


def assign_by_loop(done, shards, group_size, next_prompt, num_prompts):
  """Assigns prompts to free slots one after the other."""
  slots_of, width = {}, len(done) // shards
  for shard in range(shards):
    slots = range(shard * width, (shard + 1) * width)
    free = [slot for slot in slots if done[slot]]
    while len(free) >= group_size and next_prompt < num_prompts:
      slots_of[next_prompt], free = free[:group_size], free[group_size:]
      next_prompt += 1
  return slots_of, next_prompt


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_free_slots_are_assigned_as_by_a_loop(shards):
  rng = np.random.default_rng(shards)
  assigned = 0
  for _ in range(300):
    group_size, groups = map(int, rng.integers(1, (4, 5)))
    width = group_size * groups - int(rng.random() < 0.3 and groups > 1)
    done = rng.random(shards * width) < rng.random()
    num_prompts = int(rng.integers(1, 12))
    waiting = int(rng.integers(0, num_prompts))
    arguments = done, shards, group_size, waiting, num_prompts
    expected, next_prompt = assign_by_loop(*arguments)
    free = scheduling.assign_free_slots(*arguments)
    if not expected:
      assert free is None
      continue
    assigned += 1
    assert free.next_prompt == next_prompt
    count = len(free.prompt_ids) // shards
    assert count & (count - 1) == 0  # So that few sizes are compiled.
    assert free.index.shape == (shards, count * group_size)
    slots_of = {}
    for shard, prompt_ids in enumerate(free.prompt_ids.reshape(shards, count)):
      groups = free.index[shard].reshape(count, group_size)
      for prompt, slots in zip(prompt_ids.tolist(), groups, strict=True):
        if prompt == num_prompts:
          assert (slots == len(done)).all()  # Beyond the shard: dropped.
        else:
          slots_of[prompt] = (slots + shard * width).tolist()
    assert slots_of == expected
    per_shard = np.bincount([s[0] // width for s in expected.values()])
    assert count < 2 * per_shard.max()
  assert assigned > 100


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_unfinished_slots_are_selected_in_the_fewest_halvings(shards):
  rng = np.random.default_rng(shards)
  shrunk = 0
  for _ in range(300):
    width = int(rng.integers(1, 14))
    done = rng.random(shards * width) < rng.random()
    if done.all():
      continue
    unfinished = [
      {*np.flatnonzero(~shard).tolist()} for shard in done.reshape(shards, -1)
    ]
    expected_width = width
    while expected_width // 2 >= max(map(len, unfinished)):
      expected_width //= 2
    index = scheduling.select_unfinished(done, shards)
    if expected_width == width:
      assert index is None
      continue
    shrunk += 1
    assert index.shape == (shards, expected_width)
    for selected, needed in zip(index.tolist(), unfinished, strict=True):
      assert needed <= {*selected} <= {*range(width)}
      assert len({*selected}) == expected_width  # None twice.
  assert shrunk > 50


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_an_engine_needs_slots_and_tokens(sizes):
  with pytest.raises(ValueError, match="must be at least 1"):
    EngineConfig(*sizes)
