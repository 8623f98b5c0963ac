"""Stage 1 of a training step: prompts to completions, over a layout."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pure_jax.models import columns, policy
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout import engine, generation, sampling
from pure_jax.rollout.stopping import StopTable
from pure_jax.training.micro_batches import map_rows
from pure_jax.types import Prompts, Rollout

_SLOT_MULTIPLE = 32  # Slots of a tile of a TPU, in the smallest dtype.


def decoding_copy(
  model: ModelConfig, layout: sharding.Layout
) -> generation.Prepare:
  """How the weights are copied before a loop that decodes.

  Args:
    model: the policy's architecture.
    layout: of weights while sampling.

  Returns:
    `columns.decoding_params` on one CPU in float32; elsewhere nothing is
    copied.
  """
  on_cpu = _platform(layout) == "cpu"
  if on_cpu and layout.mesh.size == 1 and model.compute_dtype == "float32":
    return columns.decoding_params
  return generation.unprepared


def _platform(layout):
  """What the devices are."""
  return layout.mesh.devices.flat[0].platform


def make_generate(
  model: ModelConfig,
  sampler: sampling.SamplingConfig,
  group_size: int,
  layout: sharding.Layout,
  rows_layout: sharding.Layout | None = None,
  rows_at_a_time: int | None = None,
  *,
  stops: StopTable | None = None,
  continuous: engine.EngineConfig | None = None,
) -> Callable[[Any, Prompts, jax.Array], Rollout]:
  """Stage 1: `group_size` samples of each prompt.

  Args:
    model: the policy's architecture.
    sampler: temperature, filters, stop ids and lengths.
    group_size: samples per prompt (G).
    layout: of weights and cache while sampling.
    rows_layout: of the rollout that comes out; None takes the same.
    rows_at_a_time: at most so many rows are sampled together, at least 1; None
      samples all P * G. Parts hold whole prompts where they can. Changes the
      memory of the cache and the time, not the samples.
    stops: texts that end a row beside the sampler's ids, or None.
    continuous: samples with continuous batching, which takes the place of
      rows_at_a_time; None in one compiled loop.

  Returns:
    A function (params, prompts [P, L], key) -> rollout [P * G, C], samples of
    one prompt contiguous: jitted, or with continuous batching, of jitted
    parts. The key is consumed; row i draws from its own key whatever the
    other rows do.
  """
  shards = layout.row_shards
  rows = sharding.batch_sharding(rows_layout or layout)
  if continuous is not None:
    return _in_turns(
      model, sampler, group_size, continuous, layout, rows, stops
    )

  sample = _one_loop(model, sampler, layout, stops)

  def generate(params, prompts, key):
    P = prompts.tokens.shape[0]
    keys = sampling.row_keys(key, jnp.arange(P * group_size))
    limit = rows_at_a_time and rows_at_a_time // group_size
    # Prompts are read once each, unless shards or parts would cut a group.
    whole = P % shards == 0 and (limit is None or limit >= shards)
    read = group_size if whole else 1
    repeats = group_size // read
    prompts = jax.tree.map(lambda x: jnp.repeat(x, repeats, axis=0), prompts)
    rollout = map_rows(
      lambda part: _sample_groups(sample, params, *part),
      (prompts, keys.reshape(-1, read)),
      limit if repeats == 1 else rows_at_a_time,
      shards,
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)

  return jax.jit(
    generate,
    in_shardings=(
      sharding.weight_shardings(policy.declare_policy(model), layout),
      sharding.replicated(layout),
      sharding.replicated(layout),
    ),
    out_shardings=rows,
  )


def _one_loop(model, sampler, layout, stops=None):
  """A function (params, prompts, keys) -> rollout, to be jitted."""

  def sample(params, prompts, keys):
    return generation.generate(
      params,
      model,
      sampler,
      prompts,
      keys,
      layout.decoding_placement,
      stops=stops,
      prepare=decoding_copy(model, layout),
    )

  return sample


def _in_turns(model, sampler, samples, config, layout, rows, stops=None):
  """The function of an engine: (params, prompts, key or keys) -> rollout."""
  return engine.Engine(
    model,
    sampler,
    samples,
    config,
    shards=layout.row_shards,
    act_sharding=layout.decoding_placement,
    stops=stops,
    prepare=decoding_copy(model, layout),
    slot_multiple=1 if _platform(layout) == "cpu" else _SLOT_MULTIPLE,
    out_shardings=rows,
  ).generate


def _sample_groups(sample, params, prompts, keys_PG):
  """The rows of each prompt: a rollout of [P, G, ...] arrays."""
  rollout = sample(params, prompts, keys_PG.reshape(-1))
  return jax.tree.map(
    lambda x: x.reshape(*keys_PG.shape, *x.shape[1:]), rollout
  )


def make_generate_rows(
  model: ModelConfig,
  sampler: sampling.SamplingConfig,
  layout: sharding.Layout,
  *,
  group_size: int = 1,
  continuous: engine.EngineConfig | None = None,
) -> Callable[[Any, Prompts, jax.Array], Rollout]:
  """One completion per row, each from its own key, as an evaluation draws them.

  Args:
    model: the policy's architecture.
    sampler: temperature, filters, stop ids and lengths.
    layout: mesh and rules.
    group_size: rows of each prompt (G), contiguous; 1 in one loop.
    continuous: samples with continuous batching; None in one compiled loop.

  Returns:
    A function (params, prompts [P, L], keys [P * G]) -> rollout [P * G, C]:
    jitted, its prompts split as rows are, or with continuous batching of
    jitted parts, its prompts everywhere. The keys are consumed; which rows
    stand beside a row changes nothing in it.

  Raises:
    ValueError: for rows that share a prompt in one loop.
  """
  if continuous is None and group_size != 1:
    raise ValueError(
      f"group_size={group_size} needs continuous batching: in one loop each "
      "row has a prompt of its own, so set it to 1."
    )
  rows = sharding.batch_sharding(layout)
  if continuous is not None:
    return _in_turns(model, sampler, group_size, continuous, layout, rows)
  return jax.jit(
    _one_loop(model, sampler, layout),
    in_shardings=(
      sharding.weight_shardings(policy.declare_policy(model), layout),
      rows,
      rows,
    ),
    out_shardings=rows,
  )
