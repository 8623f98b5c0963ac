"""The suites "score", "update", "packing" and "prm": steps on given responses.

Responses, rewards, outcomes and labels are random.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import init_cast_policy, init_policy, init_prm
from benchmarks.timing import Arm, compile_call, timed
from pure_jax.models import policy, prm
from pure_jax.models.params import count_params
from pure_jax.settings import CreditConfig, ScoreConfig
from pure_jax.training import train
from pure_jax.training.micro_batches import count_micro_batches
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.training.packing import RowShape
from pure_jax.training.score import make_score
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.training.supervised import make_prm_step
from pure_jax.types import Prompts, Rollout

SCORING = ScoreConfig(batches.MAX_STEPS)
OPTIMIZER = OptimConfig(learning_rate=1e-6)


def step_spec(case: Case) -> StepSpec:
  """Specifies the scores and the update of a case, with the default credit."""
  model = case.model_config
  return StepSpec(
    model,
    model,
    batches.plain_sampler(case.new_tokens),
    SCORING,
    batches.separator_table(case),
    Layouts.same(case.layout),
    credit=CreditConfig(group_size=case.samples),
    micro_batch_rows=case.options.rows_at_a_time,
  )


def prm_prompts(rollout: Rollout) -> Prompts:
  """Uses the policy's prompts as the PRM's prompts, [B, L]."""
  return Prompts(rollout.prompt_tokens, rollout.prompt_mask)


def count_steps(case: Case, rollout: Rollout) -> np.ndarray:
  """Counts the steps of each response, [B]: a PRM reads a token for each."""
  batch = batches.draw_scored_batch(case, rollout)
  return np.asarray(batch.scores.steps.mask).sum(axis=1)


def score_arms(case: Case) -> dict[str, Arm]:
  """Prepares old and reference log-probs and rewards of a PRM.

  The one arm is "score"; its work is the tokens of prompts and responses.
  """
  rollout = batches.draw_rollout(case)
  arguments = (
    init_cast_policy(case),
    init_cast_policy(case),  # The reference.
    init_prm(case, cast=True),
    rollout,
    prm_prompts(rollout),
  )
  score = make_score(step_spec(case))
  compiled, compilation = compile_call(score, *arguments)
  lengths = [case.new_tokens] * case.rows
  phases = bounds.score_phases(case, lengths, count_steps(case, rollout))
  run = timed(compiled, *arguments)
  return {"score": Arm(run, case.total_tokens, phases, compilation)}


def start_state(case: Case) -> train.TrainState:
  """Makes the policy's state before its first update."""
  declared = policy.declare_policy(case.model_config)
  params = init_policy(case)
  optimizer = make_optimizer(OPTIMIZER)
  return train.start_state(params, declared, optimizer, case.layout)


def update_arms(case: Case) -> dict[str, Arm]:
  """Prepares an update on responses of the full length.

  The one arm is "update"; its work is the tokens of prompts and responses.
  """
  rollout = batches.draw_rollout(case)
  return _updates(case, rollout, {"update": None})


def packing_arms(case: Case) -> dict[str, Arm]:
  """Prepares an update on texts of different lengths, in three layouts.

  "own rows" has one text in each row of L + C columns; "shorter rows" one text
  in each row, which is as long as the longest text; "packed rows" several
  texts in each row of L + C columns. A micro-batch has the same number of rows
  in each. The work is the tokens of prompts and responses without padding.
  """
  rollout = batches.draw_unequal_rollout(case)
  longest = int(sum(_text_lengths(rollout)).max())
  columns = case.prompt_tokens + case.new_tokens
  rows = case.rows // count_micro_batches(
    case.rows, case.options.rows_at_a_time
  )
  row_shapes = {
    "own rows": None,
    "shorter rows": RowShape(longest, rows, shared=False),
    "packed rows": RowShape(columns, rows),
  }
  return _updates(case, rollout, row_shapes)


def _text_lengths(rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
  """Tokens [B] of prompts and of responses."""
  masks = rollout.prompt_mask, rollout.completion_mask
  prompts, responses = (np.asarray(mask).sum(axis=1) for mask in masks)
  return prompts, responses


def _updates(
  case: Case, rollout: Rollout, row_shapes: Mapping[str, RowShape | None]
) -> dict[str, Arm]:
  """Arms of one update in several layouts; the first is not a variant."""
  prompts, responses = _text_lengths(rollout)
  forward = bounds.read_phase(case, responses, prompts)
  weights = bounds.count_weights(case.model_config)
  batch = batches.draw_scored_batch(case, rollout), {}
  spec = step_spec(case)
  first, arms = next(iter(row_shapes)), {}
  for name, row_shape in row_shapes.items():
    update = train.make_update(spec, make_optimizer(OPTIMIZER), row_shape)
    arms[name] = dataclasses.replace(
      _step_arm(case, "policy_loss", update, start_state(case), *batch),
      work=int((prompts + responses).sum()),
      phases=bounds.gradient_phases(forward, weights),
      compared_with=None if name == first else first,
    )
  return arms


def prm_arms(case: Case) -> dict[str, Arm]:
  """Prepares a gradient step of a PRM with AdamW; all rows are one micro-batch.

  The one arm is "prm"; its work is the tokens of prompts and responses.
  """
  model, layout = case.model_config, case.layout
  table, optimizer = batches.separator_table(case), make_optimizer(OPTIMIZER)
  rollout, labels = batches.draw_rollout(case), batches.draw_labels(case)
  declared = prm.declare_prm(model)
  state = train.start_state(init_prm(case), declared, optimizer, layout)
  # No weight is frozen.
  batch = jax.device_put(({}, rollout, labels, np.ones_like(labels, bool)))
  step = make_prm_step(
    model, SCORING, optimizer, table, layout, head_only=False
  )
  scored = case.new_tokens + count_steps(case, rollout)
  forward = bounds.read_phase(case, scored, logits=False)
  arm = dataclasses.replace(
    _step_arm(case, "loss", step, state, *batch),
    phases=bounds.gradient_phases(forward, count_params(declared)),
  )
  return {"prm": arm}


def _step_arm(
  case: Case, loss: str, function: Any, state: Any, *batch: Any
) -> Arm:
  """Compiles a step and takes the first; each run takes one more.

  The jitted function takes the state and the batch and returns the next state
  and metrics, one of which is named `loss`.
  """
  step, compilation = compile_call(function, state, *batch)
  state, metrics = step(state, *batch)
  reference = np.array([metrics[loss], metrics["grad_norm"]])

  def run() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, *batch))
    elapsed = time.perf_counter() - start
    check_applied(case, metrics)
    return elapsed

  return Arm(
    run,
    case.total_tokens,
    compilation=compilation,
    reference=reference,
    ran=True,
  )


def check_applied(case: Case, metrics: Mapping[str, Any]) -> None:
  """Raises `BenchmarkError` if an update was skipped."""
  if metrics["skipped_updates"]:
    raise BenchmarkError(
      f"{case}: the loss or a gradient is not finite, so there was no update."
    )
