"""Scores and update of a run, in rows as long as the texts of a batch need.

Without `rl.length_buckets` and `rl.packed_tokens` each is one compiled
function; with them one for each length. See `pure_jax.training.packing`.
"""

import functools
from collections.abc import Callable
from typing import Any

import optax

from pure_jax.runs import workspace
from pure_jax.training import packed, packing, score, train


def make_score(
  space: workspace.Workspace, old_logp: str = "score"
) -> Callable[..., Any]:
  """Stage 2.

  Args:
    space: the open run.
    old_logp: see `pure_jax.training.score.make_score`.

  Returns:
    What `pure_jax.training.score.make_score` returns, or an equal of it.
  """
  layouts = space.rl_layouts
  config = space.settings.prm.score
  make = functools.partial(
    score.make_score,
    space.rl_model,
    space.prm_model,
    space.sampler,
    config,
    space.table,
    space.layout,
    _rows_at_a_time(space),
    reference_layout=layouts.reference,
    prm_layout=layouts.prm,
    old_logp=old_logp,
  )
  if not _packs(space):
    return make()
  measure = score.make_measure(config, space.table, space.layout)
  return packing.by_length(
    lambda *shapes: make(row_shapes=shapes),
    lambda params, reference, prm, *batch: measure(*batch),
    _policy_rows(space),
    _prm_rows(space),
  )


def make_update(
  space: workspace.Workspace, optimizer: optax.GradientTransformation
) -> Callable[..., Any]:
  """Stage 3.

  Args:
    space: the open run.
    optimizer: the optax transformation.

  Returns:
    What `pure_jax.training.train.make_update` returns, or an equal of it.
  """
  rl = space.settings.rl
  make = functools.partial(
    train.make_update,
    space.rl_model,
    space.sampler,
    rl.credit,
    rl.loss,
    optimizer,
    space.table,
    space.layout,
    rl.micro_batches,
  )
  if not _packs(space):
    return make()
  measure = packed.make_measure(space.layout)
  return packing.by_length(
    lambda shape: make(row_shape=shape),
    lambda state, rollout, *rest: measure(rollout),
    _policy_rows(space),
  )


def _packs(space: workspace.Workspace) -> bool:
  """Whether rows have other lengths than the rollout gave them."""
  rl = space.settings.rl
  return rl.length_buckets > 1 or rl.packed_tokens is not None


def _responses(space: workspace.Workspace) -> int:
  """Of a batch."""
  return space.settings.rl.prompts * space.settings.rl.samples_per_prompt


def _rows_at_a_time(space: workspace.Workspace) -> int:
  """Responses of the longest kind that are read together."""
  return _responses(space) // space.settings.rl.micro_batches


def _policy_rows(space: workspace.Workspace) -> tuple[packing.RowShape, ...]:
  """Rows of prompts with their responses."""
  return _rows(space, space.task.prompt_tokens)


def _prm_rows(space: workspace.Workspace) -> tuple[packing.RowShape, ...]:
  """Rows of what the PRM reads; without one they hold anything."""
  inserted = 0
  if space.settings.prm.score.separator == "insert":
    inserted = space.settings.prm.score.max_steps
  shapes = _rows(space, space.task.prm_prompt_tokens + inserted)
  if space.prm_model is None:
    return (shapes[0],) * len(shapes)
  return shapes


def _rows(
  space: workspace.Workspace, tokens: int
) -> tuple[packing.RowShape, ...]:
  """Rows of texts with so many tokens beside the response."""
  rl = space.settings.rl
  return packing.row_shapes(
    tokens + rl.sampler.max_new_tokens,
    _responses(space),
    _rows_at_a_time(space),
    rl.length_buckets,
    rl.packed_tokens,
  )
