"""Rows of a batch that take turns in a smaller number of places.

Letters: P prompts, G samples of each, B = P G rows of the batch; R places, in
contiguous shards; C tokens at most, L of a prompt.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pure_jax.models import kv_cache
from pure_jax.models.activation_sharding import LOCAL, ActivationSharding
from pure_jax.models.config import ModelConfig
from pure_jax.rollout import generation, sampling
from pure_jax.rollout.generation import Drawn, Rows
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.rollout.stopping import StopTable
from pure_jax.types import Prompts, Rollout


@struct.dataclass
class Places:
  """The rows at a time, and which rows of the batch they are.

  Attributes:
    numbers: [R] int32, 0..B-1, or B where there is none.
    rows: the rows.
  """

  numbers: Array
  rows: Rows


@struct.dataclass
class Results:
  """Completions of the whole batch so far.

  Attributes:
    drawn: of [B, C] arrays, padding and zeros where nothing is drawn.
    lengths: [B] int32, 0..C.
    stopped: [B] bool, True where a row has ended by itself.
  """

  drawn: Drawn
  lengths: Array
  stopped: Array


def no_results(rows: int, config: SamplingConfig) -> Results:
  """Nothing yet.

  Args:
    rows: B.
    config: the limit and the padding id.

  Returns:
    Empty completions.
  """
  shape = (rows, config.max_new_tokens)
  return Results(
    drawn=Drawn(
      tokens=jnp.full(shape, config.pad_id, jnp.int32),
      sampled_logp=jnp.zeros(shape, jnp.float32),
      full_logp=jnp.zeros(shape, jnp.float32),
    ),
    lengths=jnp.zeros(rows, jnp.int32),
    stopped=jnp.zeros(rows, bool),
  )


def record(
  results: Results, places: Places, ages: Array, drawn: Drawn
) -> Results:
  """Writes down what was drawn.

  Args:
    results: completions so far.
    places: the rows after the draws.
    ages: [R] int32, tokens that each row had before.
    drawn: [n, R] arrays.

  Returns:
    The completions with the new tokens.
  """
  steps, limit = drawn.tokens.shape[0], results.drawn.tokens.shape[1]
  rows, numbers = places.rows, places.numbers
  step = jnp.arange(steps)[:, None]
  is_new = step < (rows.ages - ages)[None]
  column = jnp.where(is_new, ages[None] + step, limit)

  def write(buffer, new):
    return buffer.at[numbers[None], column].set(new, mode="drop")

  return Results(
    drawn=jax.tree.map(write, results.drawn, drawn),
    lengths=results.lengths.at[numbers].set(rows.ages, mode="drop"),
    stopped=results.stopped.at[numbers].set(rows.stopped, mode="drop"),
  )


def begin_prompts(
  params: Any,
  model: ModelConfig,
  config: SamplingConfig,
  prompts: Prompts,
  key: Array,
  chosen: Array,
  samples: int,
  slots: int,
  shared: bool,
  stops: StopTable | None = None,
  act_sharding: ActivationSharding = LOCAL,
) -> tuple[Places, Drawn]:
  """Reads some prompts of a batch and draws their samples' first tokens.

  Args:
    params: policy weights, layers stacked.
    model: the architecture.
    config: how to draw.
    prompts: of the whole batch, [P, L].
    key: typed key of the whole batch.
    chosen: [n] int32, numbers of prompts; P is none.
    samples: G.
    slots: of the cache's ring.
    shared: True keeps one copy of each prompt's keys and values.
    stops: texts that end a row, or None.
    act_sharding: of activations, cache and rows.

  Returns:
    (n G places, first tokens [1, n G]). A row of no prompt has ended.
  """
  total = prompts.tokens.shape[0] * samples
  some = jax.tree.map(
    lambda x: jnp.take(x, chosen, axis=0, mode="clip"), prompts
  )
  numbers = chosen[:, None] * samples + jnp.arange(samples)[None]
  numbers = jnp.minimum(numbers.reshape(-1), total)
  rows, drawn = generation.begin(
    params,
    model,
    config,
    some,
    sampling.row_keys(key, numbers),
    slots,
    shared,
    stops,
    act_sharding,
  )
  rows = rows.replace(done=rows.done | (numbers == total))
  return Places(numbers, rows), drawn


def take_places(
  places: Places, index: Array, act_sharding: ActivationSharding = LOCAL
) -> Places:
  """Some rows only.

  Args:
    places: rows in contiguous shards, each with its own copy of its prompt.
    index: [shards, r] int32, rows within each shard.
    act_sharding: of rows and cache.

  Returns:
    shards * r places.
  """
  cache = kv_cache.take_rows(places.rows.cache, index, act_sharding)
  flat = jax.tree.map(
    lambda x: kv_cache.take_by_shard(x, index), _without_cache(places)
  )
  return with_cache(flat, cache)


def put_places(
  places: Places,
  new: Places,
  index: Array,
  act_sharding: ActivationSharding = LOCAL,
) -> Places:
  """Rows that begin where others have ended.

  Args:
    places: rows in contiguous shards, each with its own copy of its prompt.
    new: rows that hold their prompts, each its own.
    index: [shards, r] int32, where they go within each shard; an index that
      is no row drops one.
    act_sharding: of rows and cache.

  Returns:
    As many places as before.
  """
  cache = kv_cache.put_rows(
    places.rows.cache, new.rows.cache, index, act_sharding
  )
  flat = jax.tree.map(
    lambda x, y: kv_cache.put_by_shard(x, y, index),
    _without_cache(places),
    _without_cache(new),
  )
  return with_cache(flat, cache)


def with_cache(places: Places, cache: kv_cache.KVCache) -> Places:
  """The same rows with another cache.

  Args:
    places: the rows.
    cache: of as many rows.

  Returns:
    The places.
  """
  return places.replace(rows=places.rows.replace(cache=cache))


def _without_cache(places):
  """The arrays [R] alone."""
  return with_cache(places, None)


def place(places: Places, act_sharding: ActivationSharding) -> Places:
  """Rows where the layout wants them.

  Args:
    places: whose cache is there already.
    act_sharding: of rows.

  Returns:
    The same places.
  """
  flat = jax.tree.map(
    lambda x: act_sharding.constrain(x, ("rows",)),
    _without_cache(places),
  )
  return with_cache(flat, places.rows.cache)


def copied(tree: Any, act_sharding: ActivationSharding) -> Any:
  """The same arrays on every device.

  Args:
    tree: pytree of arrays.
    act_sharding: that knows the devices.

  Returns:
    The same tree.
  """
  return jax.tree.map(
    lambda x: act_sharding.constrain(x, (None,) * x.ndim), tree
  )


def as_rollout(prompts: Prompts, results: Results) -> Rollout:
  """A batch that is complete.

  Args:
    prompts: P, of which B is a multiple.
    results: completions of B rows.

  Returns:
    The rollout.
  """
  rows, limit = results.drawn.tokens.shape
  samples = rows // prompts.tokens.shape[0]
  return Rollout(
    prompt_tokens=jnp.repeat(prompts.tokens, samples, axis=0),
    prompt_mask=jnp.repeat(prompts.mask, samples, axis=0),
    tokens=results.drawn.tokens,
    completion_mask=jnp.arange(limit)[None] < results.lengths[:, None],
    sampled_logp=results.drawn.sampled_logp,
    full_logp=results.drawn.full_logp,
    truncated=~results.stopped,
  )
