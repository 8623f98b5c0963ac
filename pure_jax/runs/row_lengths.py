"""Scores and update of a run, in rows as long as the texts of a batch need.

Without `rl.length_buckets` and `rl.packed_tokens` each is one compiled
function; with them one for each length. See `pure_jax.training.packing`.
"""

import functools
from collections.abc import Callable
from typing import Any

import optax

from pure_jax.runs.spec import RunSpec
from pure_jax.training import packed, packing, score, train


def make_score(spec: RunSpec, old_logp: str = "score") -> Callable[..., Any]:
  """Stage 2.

  Args:
    spec: what the run computes.
    old_logp: see `pure_jax.training.score.make_score`.

  Returns:
    What `pure_jax.training.score.make_score` returns, or an equal of it.
  """
  rl, layouts = spec.settings.rl, spec.layouts
  config = rl.score_config(spec.settings.prm.separator)
  make = functools.partial(
    score.make_score,
    spec.rl_model,
    spec.prm_model,
    spec.sampler,
    config,
    spec.table,
    spec.layouts.training,
    _rows_at_a_time(spec),
    reference_layout=layouts.reference,
    prm_layout=layouts.prm,
    old_logp=old_logp,
  )
  if not _packs(spec):
    return make()
  measure = score.make_measure(config, spec.table, spec.layouts.training)
  return packing.by_length(
    lambda *shapes: make(row_shapes=shapes),
    lambda params, reference, prm, *batch: measure(*batch),
    _policy_rows(spec),
    _prm_rows(spec),
  )


def make_update(
  spec: RunSpec, optimizer: optax.GradientTransformation
) -> Callable[..., Any]:
  """Stage 3.

  Args:
    spec: what the run computes.
    optimizer: the optax transformation.

  Returns:
    What `pure_jax.training.train.make_update` returns, or an equal of it.
  """
  rl = spec.settings.rl
  make = functools.partial(
    train.make_update,
    spec.rl_model,
    spec.sampler,
    rl.credit_config(),
    rl.loss_config(),
    optimizer,
    spec.table,
    spec.layouts.training,
    rl.micro_batches,
  )
  if not _packs(spec):
    return make()
  measure = packed.make_measure(spec.layouts.training)
  return packing.by_length(
    lambda shape: make(row_shape=shape),
    lambda state, rollout, *rest: measure(rollout),
    _policy_rows(spec),
  )


def _packs(spec: RunSpec) -> bool:
  """Whether rows have other lengths than the rollout gave them."""
  rl = spec.settings.rl
  return rl.length_buckets > 1 or rl.packed_tokens is not None


def _responses(spec: RunSpec) -> int:
  """Of a batch."""
  return spec.settings.rl.prompts * spec.settings.rl.samples_per_prompt


def _rows_at_a_time(spec: RunSpec) -> int:
  """Responses of the longest kind that are read together."""
  return _responses(spec) // spec.settings.rl.micro_batches


def _policy_rows(spec: RunSpec) -> tuple[packing.RowShape, ...]:
  """Rows of prompts with their responses."""
  return _rows(spec, spec.prompt_tokens)


def _prm_rows(spec: RunSpec) -> tuple[packing.RowShape, ...]:
  """Rows of what the PRM reads; without one they hold anything."""
  inserted = 0
  if spec.settings.prm.separator == "insert":
    inserted = spec.settings.rl.max_steps
  shapes = _rows(spec, spec.prm_prompt_tokens + inserted)
  if spec.prm_model is None:
    return (shapes[0],) * len(shapes)
  return shapes


def _rows(spec: RunSpec, tokens: int) -> tuple[packing.RowShape, ...]:
  """Rows of texts with so many tokens beside the response."""
  rl = spec.settings.rl
  return packing.row_shapes(
    tokens + rl.max_new_tokens,
    _responses(spec),
    _rows_at_a_time(spec),
    rl.length_buckets,
    rl.packed_tokens,
  )
