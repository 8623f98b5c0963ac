"""The suites "update" and "prm": a gradient step of a policy and of a PRM."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import Options, init_policy, init_prm
from benchmarks.programs import (
  Compilation,
  Program,
  compile_call,
  compile_once,
)
from benchmarks.suites.score import SCORING, score_tokens, step_spec
from benchmarks.timing import Arm
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.parallel import sharding
from pure_jax.settings import CreditConfig
from pure_jax.training import train
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.training.packing import RowShape
from pure_jax.training.supervised import make_prm_step, split_prm_params

OPTIMIZER = OptimConfig(learning_rate=1e-6)


def credit_config(case: Case) -> CreditConfig:
  """Configures the credit of updates: all defaults.

  Args:
    case: the case; credit compares the samples of its prompts.

  Returns:
    The config.
  """
  return CreditConfig(group_size=case.samples)


def start_state(case: Case, options: Options) -> train.TrainState:
  """Makes the policy's state before its first update.

  Args:
    case: names the model.
    options: how it runs.

  Returns:
    The state, in arrays of its own.
  """
  declared = policy.declare_policy(options.model(case.model))
  params = init_policy(case.model, options)
  optimizer = make_optimizer(OPTIMIZER)
  return train.start_state(params, declared, optimizer, sharding.make_layout())


def compile_update(
  case: Case,
  options: Options,
  *arguments: Any,
  row_shape: RowShape | None = None,
) -> tuple[Any, Compilation]:
  """Compiles a gradient step of the PURE loss with AdamW.

  Args:
    case: sizes.
    options: how the model runs.
    *arguments: state, scored batch and {}, the weights that stay frozen.
    row_shape: rows that the texts are packed into; None gives each response a
      row of its own.

  Returns:
    The compiled function of these arguments, and its compilation.
  """
  spec = dataclasses.replace(
    step_spec(case, options), credit=credit_config(case)
  )
  # Whether responses end early changes nothing in the program.
  case = dataclasses.replace(case, stops="never")
  return compile_once(
    f"update {row_shape}",
    case,
    options,
    lambda: train.make_update(spec, make_optimizer(OPTIMIZER), row_shape),
    *arguments,
  )


def update_arms(case: Case, options: Options) -> dict[str, Program]:
  """Prepares a gradient step on random responses and scores.

  Args:
    case: sizes.
    options: how the model runs.

  Returns:
    One arm, "update"; its work is the tokens of prompts and responses.
  """
  model = options.model(case.model)
  rollout = batches.draw_rollout(case, model.vocab_size)
  table = batches.separator_table(model.vocab_size)
  batch = batches.draw_scored_batch(rollout, table), {}
  state = start_state(case, options)
  step, compilation = compile_update(case, options, state, *batch)
  state, metrics = step(state, *batch)
  reference = np.array([metrics["policy_loss"], metrics["grad_norm"]])
  forward = bounds.read_phase(
    model,
    case.prompt_tokens,
    [case.new_tokens] * case.rows,
    options.itemsize,
  )
  parameters = weights.count_params(policy.declare_policy(model))
  phases = bounds.gradient_phases(forward, parameters)
  seconds = timed_steps(case, step, state, *batch)
  arm = Arm(seconds, case.total_tokens, ran=True)
  return {"update": Program(arm, phases, compilation, reference)}


def prm_arms(case: Case, options: Options) -> dict[str, Program]:
  """Prepares a gradient step of a PRM with AdamW on random labels.

  Args:
    case: sizes; all rows are one micro-batch.
    options: how the model runs.

  Returns:
    One arm, "prm"; its work is the tokens of prompts and responses.
  """
  model, layout = options.model(case.model), sharding.make_layout()
  table = batches.separator_table(model.vocab_size)
  optimizer = make_optimizer(OPTIMIZER)
  rollout = batches.draw_rollout(case, model.vocab_size)
  labels = batches.draw_labels(case)
  declared, _ = split_prm_params(prm.declare_prm(model), head_only=False)
  params, frozen = split_prm_params(
    init_prm(case.model, options), head_only=False
  )
  state = train.start_state(params, declared, optimizer, layout)
  batch = jax.device_put((frozen, rollout, labels, np.ones_like(labels, bool)))
  step, compilation = compile_call(
    make_prm_step(model, SCORING, optimizer, table, layout, head_only=False),
    state,
    *batch,
  )
  state, metrics = step(state, *batch)
  reference = np.array([metrics["loss"], metrics["grad_norm"]])
  forward = bounds.read_phase(
    model,
    case.prompt_tokens,
    case.new_tokens + score_tokens(rollout, model.vocab_size),
    options.itemsize,
    logits=False,
  )
  phases = bounds.gradient_phases(forward, weights.count_params(declared))
  seconds = timed_steps(case, step, state, *batch)
  arm = Arm(seconds, case.total_tokens, ran=True)
  return {"prm": Program(arm, phases, compilation, reference)}


def timed_steps(
  case: Case, step: Callable[..., Any], state: Any, *batch: Any
) -> Callable[[], float]:
  """Makes a function that takes one more step and returns its seconds.

  Args:
    case: named in the message of an error.
    step: (state, *batch) -> (state, metrics).
    state: before the first step; each step starts from the state of the last.
    *batch: the other arguments, the same each time.

  Returns:
    The function, which raises `BenchmarkError` if the update was skipped.
  """

  def seconds() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, *batch))
    elapsed = time.perf_counter() - start
    check_applied(case, metrics)
    return elapsed

  return seconds


def check_applied(case: Case, metrics: Any) -> None:
  """Checks that an update was applied.

  Args:
    case: named in the message.
    metrics: metrics of the update.

  Raises:
    BenchmarkError: if it was skipped.
  """
  if metrics["skipped_updates"]:
    raise BenchmarkError(
      f"{case}: the loss or a gradient is not finite, so there was no update."
    )
