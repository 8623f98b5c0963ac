"""Plans of several updates per rollout."""

import dataclasses

import jax
import pytest
from planned_runs import smoke_settings

from pure_jax.parallel import sharding
from pure_jax.runs.planning import estimates
from pure_jax.runs.planning.execution_plan import (
  ExecutionPlan,
  nearest_micro_batches,
  with_plan,
)
from pure_jax.runs.planning.planned_spec import read_spec
from pure_jax.runs.spec import Layouts


def spec_of(mini_batches, epochs=1):
  """The specification of the smoke run, 32 responses, with such updates."""
  updates = {
    "rl.updates.mini_batches": mini_batches,
    "rl.updates.epochs": epochs,
  }
  return read_spec(smoke_settings(**updates), jax.devices())


@pytest.fixture(scope="module")
def layouts():
  return Layouts.same(sharding.make_layout(fsdp=8))


def test_mini_batches_that_the_row_shards_do_not_divide_are_an_error(layouts):
  with pytest.raises(ValueError, match="mini_batches=4 is not divisible by"):
    nearest_micro_batches(spec_of(8), layouts, 1)


@pytest.mark.parametrize(
  ("mini_batches", "micro_batches", "rows"),
  [(1, 1, 4), (2, 1, 2), (2, 2, 2), (2, 4, 1), (4, 1, 1), (4, 4, 1)],
)
def test_an_update_keeps_the_activations_of_a_mini_batch_at_most(
  layouts, mini_batches, micro_batches, rows
):
  """On each of 8 row shards are 4 of the 32 responses."""
  given = spec_of(mini_batches)
  model = dataclasses.replace(given.model, remat="layer")
  given = dataclasses.replace(given, model=model)
  planned = with_plan(given, ExecutionPlan(layouts, micro_batches, 1))
  tokens = given.prompt_tokens + given.sampler.max_new_tokens
  kept = model.num_layers * rows * tokens * model.width * 4
  assert estimates.kept_bytes(planned) == kept


def test_every_epoch_needs_the_flops_of_an_update():
  once = estimates.model_flops(spec_of(1))
  assert estimates.model_flops(spec_of(4)) == once
  often = estimates.model_flops(spec_of(2, epochs=3))
  assert often == (*once[:2], 3 * once[2])
