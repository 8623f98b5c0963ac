"""Rows that take turns are those of one loop, token for token."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import PAD, TINY, random_policy, random_prompts

from pure_jax.rollout import engine_programs as engine
from pure_jax.rollout import generation, sampling, scheduling
from pure_jax.rollout.engine import Engine
from pure_jax.rollout.engine_programs import EngineConfig, EngineSpec
from pure_jax.rollout.sampling import SamplingConfig, StopTable
from pure_jax.types import Prompts

pytestmark = pytest.mark.filterwarnings("error:Some donated buffers")

MODEL = dataclasses.replace(TINY, num_layers=1)
L, C, P, G = 5, 11, 5, 3
# Three of 22 ids: a few rows end at once, a few are truncated.
SAMPLER = SamplingConfig(max_new_tokens=C, pad_id=PAD, stop_ids=(14, 18, 19))


def one_loop(params, spec, prompts, keys):
  return jax.jit(lambda *args: generation.generate(args[0], spec, *args[1:]))(
    params, prompts, keys
  )


def some_prompts(count=P, seed=4):
  rng = np.random.default_rng(seed)
  tokens, mask = random_prompts(rng, rng.integers(1, L + 1, count), L)
  return Prompts(tokens, mask)


def expected_rollout(
  prompts, key, sampler=SAMPLER, model=MODEL, samples=G, stops=None
):
  """Every row in one loop, each with a copy of its prompt."""
  rows = prompts.tokens.shape[0] * samples
  repeated = jax.tree.map(lambda x: np.repeat(x, samples, axis=0), prompts)
  keys = sampling.row_keys(key, jnp.arange(rows))
  spec = generation.GenerationSpec(model, sampler, stops)
  return one_loop(random_policy(model), spec, repeated, keys)


def make(
  rows,
  chunk,
  sampler=SAMPLER,
  model=MODEL,
  samples=G,
  stops=None,
  cpu_weights=False,
  **options,
):
  spec = generation.GenerationSpec(
    model, sampler, stops, cpu_weights=cpu_weights
  )
  return Engine(EngineSpec(spec, samples, EngineConfig(rows, chunk), **options))


def assert_same(found, expected):
  """Tokens exactly, log-probs but for the order of sums."""
  for name in (
    *("prompt_tokens", "prompt_mask", "tokens", "completion_mask"),
    "truncated",
  ):
    np.testing.assert_array_equal(
      getattr(found, name), getattr(expected, name), err_msg=name
    )
  for name in ("sampled_logp", "full_logp"):
    assert np.isfinite(getattr(found, name)).all()
    np.testing.assert_allclose(
      getattr(found, name),
      getattr(expected, name),
      rtol=1e-5,
      atol=1e-5,
      err_msg=name,
    )


@pytest.fixture(scope="module")
def whole():
  return expected_rollout(some_prompts(), jax.random.key(8))


def test_the_batch_tells_rows_apart(whole):
  """Or rows in the wrong place would look right."""
  lengths = np.asarray(whole.completion_mask).sum(axis=1)
  assert lengths.min() == 1 and len({*lengths.tolist()}) >= 6
  assert 0 < whole.truncated.sum() < len(lengths) / 2
  ended_last = (lengths == C) & ~np.asarray(whole.truncated)
  assert len({tuple(row) for row in np.asarray(whole.tokens)}) > 10
  assert lengths.sum() < 0.6 * lengths.size * C or ended_last.any()


@pytest.mark.parametrize(
  ("rows", "chunk", "shards"),
  [
    (7, 2, 1),  # Two prompts at a time: not a multiple of the group.
    pytest.param(15, 3, 1, marks=pytest.mark.slow),  # Fewer and fewer.
    (64, 50, 1),  # More than there are, and one chunk.
    (12, 3, 2),  # One shard gets three of five prompts.
    pytest.param(2, 1, 1, marks=pytest.mark.slow),  # Less than a group.
    pytest.param(9, 4, 1, marks=pytest.mark.slow),
    pytest.param(15, C, 1, marks=pytest.mark.slow),
    pytest.param(12, 5, 4, marks=pytest.mark.slow),
    pytest.param(64, 2, 8, marks=pytest.mark.slow),  # Shards without prompts.
  ],
)
def test_rows_that_take_turns_are_those_of_one_loop(whole, rows, chunk, shards):
  found = make(rows, chunk, shards=shards).generate(
    random_policy(MODEL), some_prompts(), jax.random.key(8)
  )
  assert_same(found, whole)


def test_a_ring_that_has_gone_round_grows_in_order():
  """Long after short: tokens that a row needs would be written over.

  With few seeds they would; of this one the tokens come out otherwise.
  """
  key, prompts = jax.random.key(18), some_prompts(12, seed=18)
  found = make(3, 1, samples=1).generate(random_policy(MODEL), prompts, key)
  assert_same(found, expected_rollout(prompts, key, samples=1))


@pytest.mark.slow
def test_layers_weights_and_prompts_of_their_own():
  """Caches of two layers, weights laid out in columns, one sample each."""
  key, prompts = jax.random.key(2), some_prompts(7, seed=1)
  found = make(4, 3, model=TINY, samples=1, cpu_weights=True).generate(
    random_policy(TINY), prompts, key
  )
  assert_same(found, expected_rollout(prompts, key, model=TINY, samples=1))


def test_a_second_batch_compiles_nothing(caplog):
  """Sizes that a batch alone decides are halved and doubled, so few."""
  sampler = make(6, 3)
  traced = set()
  decode = generation.decode

  def watched(params, spec, state, max_tokens):
    traced.add((state.done.shape[0], state.cache.ring_length))
    return decode(params, spec, state, max_tokens)

  def compiled(seed):
    caplog.clear()
    with (
      jax.log_compiles(),
      caplog.at_level(logging.WARNING),
      pytest.MonkeyPatch.context() as patch,
    ):
      patch.setattr(engine.generation, "decode", watched)
      sampler.generate(params, prompts, jax.random.key(seed))
    return sum("Compiling" in record.message for record in caplog.records)

  params, prompts = random_policy(MODEL), some_prompts()
  assert compiled(8) > 0
  assert compiled(8) == 0
  for seed in range(3):
    compiled(seed)
  # Rows that go on in half as many places; rings of 3, 6 and C - 1 slots.
  assert {rows for rows, _ in traced} <= {6, 3, 1}
  assert min(rows for rows, _ in traced) < 6
  assert {ring for _, ring in traced} <= {3, 6, C - 1}
  assert (6, 3) in traced and max(traced, key=lambda x: x[1])[1] == C - 1


def test_rings_in_multiples_of_slots(whole):
  """The longest, too: of C - 1 slots a TPU would copy it for every chunk."""
  found, traced = make(6, 3, ring_multiple=4), set()
  decode = generation.decode

  def watched(params, spec, state, max_tokens):
    traced.add(state.cache.ring_length)
    return decode(params, spec, state, max_tokens)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine.generation, "decode", watched)
    rollout = found.generate(
      random_policy(MODEL), some_prompts(), jax.random.key(8)
    )
  assert_same(rollout, whole)
  longest = -(-(C - 1) // 4) * 4
  assert longest > C - 1
  assert traced == {4, 8, longest}


@pytest.mark.parametrize(
  ("rows", "expected"),
  [
    (6, 6),  # Of rings of 6 and C - 1 slots; others are of prompts that begin.
    (64, 0),  # No prompt waits: none is copied, for all rows end together.
  ],
)
def test_prompts_are_copied_before_the_cache_is_at_its_longest(rows, expected):
  """Where prompts wait; else the longest cache would be there twice."""
  sampler = dataclasses.replace(SAMPLER, stop_ids=())
  prompts, key, copied = some_prompts(), jax.random.key(8), []
  copy = engine.kv_cache.with_own_prompts

  def watched(cache, act_sharding):
    copied.append(cache.ring_length)
    return copy(cache, act_sharding)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine.kv_cache, "with_own_prompts", watched)
    found = make(rows, 6, sampler).generate(random_policy(MODEL), prompts, key)
  assert_same(found, expected_rollout(prompts, key, sampler))
  assert max(copied, default=0) == expected


def test_a_limit_of_one_token(whole):
  """No token is fed back, and the first alone may end a row by itself."""
  sampler = dataclasses.replace(SAMPLER, max_new_tokens=1)
  found = make(6, 4, sampler).generate(
    random_policy(MODEL), some_prompts(), jax.random.key(8)
  )
  np.testing.assert_array_equal(found.tokens, whole.tokens[:, :1])
  assert found.completion_mask.all()
  stopped = np.isin(found.tokens[:, 0], SAMPLER.stop_ids)
  np.testing.assert_array_equal(found.truncated, ~stopped)
  assert stopped.any()


@pytest.mark.parametrize(
  "ends", [pytest.param("never", marks=pytest.mark.slow), "at once"]
)
def test_all_rows_end_together(whole, ends):
  """At the limit, or before anything is decoded, refilled places too."""
  stops = {"never": (), "at once": np.unique(whole.tokens[:, 0]).tolist()}
  sampler = dataclasses.replace(SAMPLER, stop_ids=tuple(stops[ends]))
  key = jax.random.key(8)
  found = make(6, 4, sampler).generate(
    random_policy(MODEL), some_prompts(), key
  )
  lengths = found.completion_mask.sum(axis=1)
  assert (lengths == (C if ends == "never" else 1)).all()
  assert (found.truncated == (ends == "never")).all()
  assert_same(found, expected_rollout(some_prompts(), key, sampler))


def test_filters_greedy_and_texts_that_end_a_row():
  """A table whose text is any two even ids in a row."""
  even = (np.arange(MODEL.vocab_size) % 2 == 0).astype(np.int32)
  following = np.stack([even, 2 * even, np.full_like(even, 2)], axis=1)
  stops = StopTable(following)
  key, prompts = jax.random.key(5), some_prompts()
  sampler = dataclasses.replace(
    SAMPLER, stop_ids=(), temperature=0.7, top_k=9, top_p=0.9, min_p=0.05
  )
  expected = expected_rollout(prompts, key, sampler, stops=stops)
  found = make(6, 3, sampler, stops=stops).generate(
    random_policy(MODEL), prompts, key
  )
  assert_same(found, expected)
  assert not np.allclose(found.sampled_logp, found.full_logp, atol=1e-2)
  for row, mask, truncated in zip(
    *map(np.asarray, (found.tokens, found.completion_mask, found.truncated)),
    strict=True,
  ):
    is_even = (row[mask] % 2 == 0).tolist()
    pairs = [
      i for i in range(1, len(is_even)) if is_even[i - 1 : i + 1] == [1, 1]
    ]
    assert pairs == ([] if truncated else [len(is_even) - 1])
  assert 0 < found.truncated.sum() < P * G


@pytest.mark.slow
def test_greedy_rows_of_one_prompt_are_equal():
  sampler = dataclasses.replace(SAMPLER, temperature=0.0)
  key, prompts = jax.random.key(5), some_prompts()
  found = make(6, 3, sampler).generate(random_policy(MODEL), prompts, key)
  assert_same(found, expected_rollout(prompts, key, sampler))
  tokens = np.asarray(found.tokens).reshape(P, G, C)
  assert (tokens == tokens[:, :1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_small_caches_take_turns_too(dtype):
  """Scales that stayed behind their rows would move tokens and log-probs."""
  model = dataclasses.replace(MODEL, cache_dtype=dtype)
  key, prompts = jax.random.key(3), some_prompts()
  found = make(6, 3, model=model).generate(random_policy(model), prompts, key)
  assert_same(found, expected_rollout(prompts, key, model=model))


def oracle_places(done, shards, samples, waiting, total):
  """Which prompt begins in which places, one place after the other."""
  begins, width = {}, len(done) // shards
  for shard in range(shards):
    free = [
      place
      for place in range(shard * width, (shard + 1) * width)
      if done[place]
    ]
    while len(free) >= samples and waiting < total:
      begins[waiting], free = free[:samples], free[samples:]
      waiting += 1
  return begins, waiting


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_free_places_against_a_loop(shards):
  rng = np.random.default_rng(shards)
  seen = 0
  for _ in range(300):
    samples, each = map(int, rng.integers(1, (4, 5)))
    width = samples * each - int(rng.random() < 0.3 and each > 1)
    done = rng.random(shards * width) < rng.random()
    total = int(rng.integers(1, 12))
    waiting = int(rng.integers(0, total))
    begins, after = oracle_places(done, shards, samples, waiting, total)
    found = scheduling.assign_free_slots(done, shards, samples, waiting, total)
    if not begins:
      assert found is None
      continue
    chosen, index, then = found.prompt_ids, found.index, found.next_prompt
    seen += 1
    assert then == after
    count = len(chosen) // shards
    assert count & (count - 1) == 0  # So that few sizes are compiled.
    assert index.shape == (shards, count * samples)
    put = {}
    for shard, prompts in enumerate(chosen.reshape(shards, count)):
      for number, prompt in enumerate(prompts):
        places = index[shard, number * samples : (number + 1) * samples]
        if prompt == total:
          assert (places == len(done)).all()  # Of no shard: dropped.
        else:
          put[int(prompt)] = (places + shard * width).tolist()
    assert put == begins
    most = max(
      sum(places[0] // width == shard for places in begins.values())
      for shard in range(shards)
    )
    assert count < 2 * most
  assert seen > 100


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_unfinished_places_against_a_search(shards):
  """Every row that goes on, in the same shard, in the fewest halvings."""
  rng = np.random.default_rng(shards)
  seen = 0
  for _ in range(300):
    width = int(rng.integers(1, 14))
    done = rng.random(shards * width) < rng.random()
    if done.all():
      continue
    goes_on = [
      {*np.flatnonzero(~part).tolist()} for part in done.reshape(shards, -1)
    ]
    wanted = width
    while wanted // 2 >= max(map(len, goes_on)):
      wanted //= 2
    found = scheduling.select_unfinished(done, shards)
    if wanted == width:
      assert found is None
      continue
    seen += 1
    assert found.shape == (shards, wanted)
    for kept, needed in zip(found.tolist(), goes_on, strict=True):
      assert needed <= {*kept} <= {*range(width)}
      assert len({*kept}) == wanted  # None twice.
  assert seen > 50


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_an_engine_that_would_not_move_is_refused(sizes):
  with pytest.raises(ValueError, match="must be at least 1"):
    EngineConfig(*sizes)
