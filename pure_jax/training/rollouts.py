"""The first function of an iteration: sampling completions, on any layout.

`make_generate` samples a batch in one compiled loop, `make_engine` samples it
with continuous batching, and `make_generate_together` in chunks of tokens, all
rows at the same time, so that the host can report. In each, row i samples with
its own key and does not depend on the other rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout import generation, sampling
from pure_jax.rollout.engine import Engine, OnProgress
from pure_jax.rollout.engine_programs import EngineConfig, EngineSpec
from pure_jax.rollout.generation import GenerationSpec
from pure_jax.training.micro_batches import map_rows
from pure_jax.types import Prompts, Rollout

# (params, prompts [P, L], key or keys [P * G]) -> rollout [P * G, C]
Generate = Callable[[Any, Prompts, jax.Array], Rollout]
# The same, which also calls its last argument on the way, if it is not None.
ReportingGenerate = Callable[
  [Any, Prompts, jax.Array, OnProgress | None], Rollout
]

_TPU_TILE_ROWS = 32  # Rows of a tile of a TPU, in the smallest dtype.


def generation_spec(
  model: ModelConfig,
  sampler: sampling.SamplingConfig,
  layout: sharding.Layout,
  stops: sampling.StopTable | None = None,
) -> GenerationSpec:
  """Describes how completions are sampled on a layout.

  Args:
    model: the policy's architecture.
    sampler: temperature, filters, stop ids and lengths.
    layout: layout of weights and cache while sampling.
    stops: texts that end a sequence in addition to the stop ids, or None.

  Returns:
    The specification, with weights in the CPU layout on one CPU.
  """
  return GenerationSpec(
    model=model,
    sampler=sampler,
    stops=stops,
    act_sharding=layout.decoding_act_sharding,
    cpu_weights=_platform(layout) == "cpu" and layout.mesh.size == 1,
  )


def _platform(layout):
  """Name of the devices' platform."""
  return layout.mesh.devices.flat[0].platform


def make_generate(
  model: ModelConfig,
  sampler: sampling.SamplingConfig,
  group_size: int,
  layout: sharding.Layout,
  rows_layout: sharding.Layout | None = None,
  rows_at_a_time: int | None = None,
  *,
  stops: sampling.StopTable | None = None,
) -> Generate:
  """Makes `generate` as one compiled loop: G samples of each prompt.

  Args:
    model: the policy's architecture.
    sampler: temperature, filters, stop ids and lengths.
    group_size: G, samples of each prompt.
    layout: layout of weights and cache while sampling.
    rows_layout: layout of the rollout; None takes `layout`.
    rows_at_a_time: the most rows that are sampled together, at least 1; None
      samples all P * G. Micro-batches hold whole prompts if they can. This
      changes the memory of the cache and the time, not the samples.
    stops: texts that end a sequence in addition to the stop ids, or None.

  Returns:
    A jitted function (params, prompts [P, L], key) -> rollout [P * G, C],
    samples of one prompt contiguous. The key is consumed.
  """
  shards = layout.row_shards
  spec = generation_spec(model, sampler, layout, stops)

  def generate(params, prompts, key):
    P = prompts.tokens.shape[0]
    keys = sampling.row_keys(key, jnp.arange(P * group_size))
    limit = rows_at_a_time and rows_at_a_time // group_size
    # A prompt is read once for its group, unless shards or micro-batches would
    # split the group. Then each row gets a copy of the prompt.
    whole_groups = P % shards == 0 and (limit is None or limit >= shards)
    rows_per_prompt = group_size if whole_groups else 1
    copies = group_size // rows_per_prompt
    prompts = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), prompts)
    rollout = map_rows(
      lambda micro_batch: _sample_groups(spec, params, *micro_batch),
      (prompts, keys.reshape(-1, rows_per_prompt)),
      limit if copies == 1 else rows_at_a_time,
      shards,
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)

  weights = sharding.weight_shardings(policy.declare_policy(model), layout)
  everywhere = sharding.replicated(layout)
  return jax.jit(
    generate,
    in_shardings=(weights, everywhere, everywhere),
    out_shardings=sharding.batch_sharding(rows_layout or layout),
  )


def _sample_groups(spec, params, prompts, keys_PG):
  """The rows of each prompt: a rollout of [P, G, ...] arrays."""
  rollout = generation.generate(params, spec, prompts, keys_PG.reshape(-1))
  return jax.tree.map(
    lambda x: x.reshape(*keys_PG.shape, *x.shape[1:]), rollout
  )


def make_engine(
  model: ModelConfig,
  sampler: sampling.SamplingConfig,
  group_size: int,
  layout: sharding.Layout,
  config: EngineConfig,
  rows_layout: sharding.Layout | None = None,
  *,
  stops: sampling.StopTable | None = None,
) -> Engine:
  """Makes `generate` with continuous batching: G samples of each prompt.

  Args:
    model: the policy's architecture.
    sampler: temperature, filters, stop ids and lengths.
    group_size: G, samples of each prompt.
    layout: layout of weights and cache while sampling.
    config: slots and host sync interval.
    rows_layout: layout of the rollout; None takes `layout`.
    stops: texts that end a sequence in addition to the stop ids, or None.

  Returns:
    The engine; its `generate` samples as the function of `make_generate` does.
  """
  return Engine(
    EngineSpec(
      generation_spec(model, sampler, layout, stops),
      group_size,
      config,
      shards=layout.row_shards,
      ring_multiple=1 if _platform(layout) == "cpu" else _TPU_TILE_ROWS,
      out_shardings=sharding.batch_sharding(rows_layout or layout),
    )
  )


def make_generate_together(
  model: ModelConfig,
  sampler: sampling.SamplingConfig,
  layout: sharding.Layout,
  sync_interval: int,
  *,
  stops: sampling.StopTable | None = None,
) -> ReportingGenerate:
  """Makes a sampler of one completion per row, all at the same time.

  Args:
    model: the policy's architecture.
    sampler: temperature, filters, stop ids and lengths.
    layout: mesh and rules.
    sync_interval: tokens between two reports, at least 1.
    stops: texts that end a sequence in addition to the stop ids, or None.

  Returns:
    A function (params, prompts [B, L] on every device, keys [B], on_progress)
    -> rollout [B, C]; the row shards divide B. See `Engine.generate_together`.
  """
  # Slots do not matter: none is filled again.
  config = EngineConfig(slots=1, sync_interval=sync_interval)
  engine = make_engine(model, sampler, 1, layout, config, stops=stops)
  return engine.generate_together
