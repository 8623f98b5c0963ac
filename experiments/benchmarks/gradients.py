"""The suites of gradient steps: of a policy, and of a PRM."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import BenchmarkError, Case
from benchmarks.programs import (
  Compilation,
  Compiled,
  Options,
  compile_call,
  compile_once,
  init_policy,
  init_prm,
)
from benchmarks.scoring import CONFIG
from benchmarks.timing import Arm
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.parallel import sharding
from pure_jax.settings import CreditConfig, ScoreConfig
from pure_jax.training import train
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.training.score import ScoredBatch
from pure_jax.training.stages import make_prm_step, split_prm_params
from pure_jax.training.step_spec import Layouts, StepSpec

OPTIMIZER = OptimConfig(learning_rate=1e-6)


def credit_settings(case: Case) -> CreditConfig:
  """How updates give credit: as `CreditConfig` does without further words.

  Args:
    case: whose samples are compared.

  Returns:
    The settings.
  """
  return CreditConfig(group_size=case.samples)


def start_state(case: Case, options: Options) -> train.TrainState:
  """The policy before its first update.

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


def update_program(
  case: Case, options: Options, *arguments: Any
) -> tuple[Any, Compilation]:
  """One gradient step of the PURE loss with AdamW.

  Args:
    case: sizes.
    options: how the model runs.
    *arguments: state, scored batch and {}.

  Returns:
    The compiled function of these, and what the compiler says of it.
  """
  model = options.model(case.model)

  def make():
    return train.make_update(
      StepSpec(
        model,
        None,
        batches.plain_sampler(case),
        ScoreConfig(batches.MAX_STEPS),
        batches.separator_table(model.vocab_size),
        Layouts.same(sharding.make_layout()),
        credit_settings(case),
        micro_batch_rows=case.rows
        // batches.micro_batches(case.rows, options.rows_at_a_time),
      ),
      make_optimizer(OPTIMIZER),
    )

  # Of any lengths it is the same program.
  case = dataclasses.replace(case, stops="never")
  return compile_once("update", case, options, make, *arguments)


def update(case: Case, options: Options) -> dict[str, Compiled]:
  """One gradient step on random responses and scores.

  Args:
    case: sizes.
    options: how the model runs.

  Returns:
    One arm, "update"; its work is the tokens of prompts and responses.
  """
  model = options.model(case.model)
  table = batches.separator_table(model.vocab_size)
  drawn = batches.draw_rollout(
    case, batches.draw_prompts(case, model.vocab_size), model.vocab_size
  )
  batch = ScoredBatch(drawn, *batches.draw_prm_responses(drawn, table))
  state = start_state(case, options)
  step, compilation = update_program(case, options, state, batch, {})
  state, metrics = step(state, batch, {})
  first = np.array([metrics["policy_loss"], metrics["grad_norm"]])
  read = bounds.read_phase(
    model,
    case.prompt_tokens,
    [case.new_tokens] * case.rows,
    options.itemsize,
  )
  parameters = weights.count_params(policy.declare_policy(model))
  phases = bounds.gradient_phases(read, parameters)
  arm = Arm(_steps(case, step, state, batch, {}), case.read_tokens, ran=True)
  return {"update": Compiled(arm, phases, compilation, first)}


def draw_labels(case: Case) -> np.ndarray:
  """Which steps are good, at random.

  Args:
    case: B rows.

  Returns:
    [B, S] int32, 1 good, 0 bad.
  """
  shape = case.rows, batches.MAX_STEPS
  return np.random.default_rng(3).integers(0, 2, shape, dtype=np.int32)


def train_prm(case: Case, options: Options) -> dict[str, Compiled]:
  """One gradient step of a PRM with AdamW, on random responses and labels.

  Args:
    case: sizes; all rows are read together.
    options: how the model runs.

  Returns:
    One arm, "prm"; its work is the tokens of prompts and responses.
  """
  model, layout = options.model(case.model), sharding.make_layout()
  table, optimizer = (
    batches.separator_table(model.vocab_size),
    make_optimizer(OPTIMIZER),
  )
  drawn = batches.draw_rollout(
    case, batches.draw_prompts(case, model.vocab_size), model.vocab_size
  )
  labels = draw_labels(case)
  declared = split_prm_params(prm.declare_prm(model), head_only=False)[0]
  params, frozen = split_prm_params(
    init_prm(case.model, options), head_only=False
  )
  state = train.start_state(params, declared, optimizer, layout)
  batch = jax.device_put((frozen, drawn, labels, np.ones_like(labels, bool)))
  step, compilation = compile_call(
    make_prm_step(model, CONFIG, optimizer, table, layout, head_only=False),
    state,
    *batch,
  )
  state, metrics = step(state, batch, {})
  first = np.array([metrics["loss"], metrics["grad_norm"]])
  cut, *_ = batches.draw_prm_responses(drawn, table)
  inserted = np.asarray(cut.steps.mask).sum(axis=1)
  read = bounds.read_phase(
    model,
    case.prompt_tokens,
    case.new_tokens + inserted,
    options.itemsize,
    logits=False,
  )
  phases = bounds.gradient_phases(read, weights.count_params(declared))
  arm = Arm(_steps(case, step, state, batch, {}), case.read_tokens, ran=True)
  return {"prm": Compiled(arm, phases, compilation, first)}


def _steps(
  case: Case, step: Callable[..., Any], state: Any, *batch: Any
) -> Callable[[], float]:
  """Repeats a step on the state that the last one left."""

  def seconds() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, batch, {}))
    taken = time.perf_counter() - start
    check_applied(case, metrics)
    return taken

  return seconds


def check_applied(case: Case, metrics: Any) -> None:
  """Raises where an update had nothing to apply.

  Args:
    case: names what was measured.
    metrics: of the update.

  Raises:
    BenchmarkError: if it was skipped.
  """
  if metrics["skipped_updates"]:
    raise BenchmarkError(
      f"{case}: the loss or a gradient is not finite, so there was no update."
    )
