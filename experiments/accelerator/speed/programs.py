"""The programs that the speed pieces time: those that a run compiles.

Weights are random, as the benchmark draws them, and so are prompts, responses,
rewards and outcomes.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from benchmarks import batches, bounds
from benchmarks.cases import Case
from benchmarks.models import init_cast_policy, init_prm
from benchmarks.suites.training import (
  OPTIMIZER,
  count_steps,
  prm_prompts,
  start_state,
  step_spec,
)

from accelerator.speed.rows import Program, Weights
from pure_jax.models import lora, policy
from pure_jax.models import params as declarations
from pure_jax.models.config import LoraConfig
from pure_jax.training import rollouts, train
from pure_jax.training.optim import make_optimizer
from pure_jax.training.score import make_score

# Of LoRA's rows: the rank and alpha of `configs/base.py` with adapters on.
LORA = LoraConfig(rank=32, alpha=32.0)


def rollout_weights(case: Case) -> Weights:
  """Draws the policy as rollouts read it."""
  return (init_cast_policy(case, rollout=True),)


def decode_program(name: str, case: Case) -> Program:
  """Samples to the full length in one loop; the work is the new tokens."""
  generate = _make_generate(case, case.new_tokens)
  phases = bounds.rollout_phases(case, np.full(case.rows, case.new_tokens))
  tokens = case.rows * case.new_tokens
  arguments = _prompts_and_key(case)
  return Program(
    name,
    case,
    generate,
    lambda weights: (*weights, *arguments),
    tokens,
    "new tokens",
    phases,
  )


def prefill_program(name: str, case: Case) -> Program:
  """Reads the prompts and draws a token; the work is the prompts' tokens."""
  generate = _make_generate(case, 1)
  phases = bounds.rollout_phases(case, np.ones(case.rows, int))
  arguments = _prompts_and_key(case)
  return Program(
    name,
    case,
    generate,
    lambda weights: (*weights, *arguments),
    case.prompts * case.prompt_tokens,
    "tokens",
    phases,
  )


def _make_generate(case: Case, new_tokens: int) -> Any:
  """The loop of a rollout, without stops."""
  sampler = batches.plain_sampler(new_tokens)
  return rollouts.make_generate(
    case.rollout_config, sampler, case.samples, case.layout
  )


def _prompts_and_key(case: Case) -> tuple[Any, ...]:
  """Random prompts and a key."""
  return batches.draw_prompts(case), jax.random.key(1)


def score_weights(case: Case) -> Weights:
  """Draws policy, reference and PRM of one shape in the compute dtype."""
  return init_cast_policy(case), init_cast_policy(case), init_prm(case, True)


def score_program(name: str, case: Case) -> Program:
  """Computes old and reference log-probs, and the rewards of a PRM."""
  rollout = batches.draw_rollout(case)
  lengths = np.full(case.rows, case.new_tokens)
  phases = bounds.score_phases(case, lengths, count_steps(case, rollout))
  return Program(
    name,
    case,
    make_score(step_spec(case)),
    lambda weights: (*weights, rollout, prm_prompts(rollout)),
    case.total_tokens,
    "tokens",
    phases,
  )


def update_weights(case: Case) -> Weights:
  """Draws the state of a policy all of whose weights are trained."""
  return start_state(case), {}


def update_program(name: str, case: Case) -> Program:
  """Updates all weights on responses of the full length."""
  weights = bounds.count_weights(case.model_config)
  update = train.make_update(step_spec(case), make_optimizer(OPTIMIZER))
  return _update_program(name, case, update, weights, adapters=False)


def lora_weights(case: Case) -> Weights:
  """Draws the state of adapters, and the base in the compute dtype."""
  trained, _ = _adapters(case)
  init = train.make_init(trained, make_optimizer(OPTIMIZER), case.layout)
  return init(jax.random.key(2)), init_cast_policy(case)


def lora_program(name: str, case: Case) -> Program:
  """Updates the adapters of all matrices on the same responses."""
  trained, model = _adapters(case)
  spec = dataclasses.replace(step_spec(case), model=model)
  update = train.make_update(spec, make_optimizer(OPTIMIZER))
  weights = declarations.count_params(trained)
  return _update_program(name, case, update, weights, adapters=True)


def _adapters(case: Case) -> tuple[Any, Any]:
  """The declared adapters, and the architecture with them."""
  model = dataclasses.replace(case.model_config, lora=LORA)
  declared = policy.declare_policy(model)
  return lora.trained_and_frozen(declared, model)[0], model


def _update_program(
  name: str, case: Case, update: Any, weights: int, adapters: bool
) -> Program:
  """An update of some weights; its work is the tokens of all texts."""
  batch = batches.draw_scored_batch(case, batches.draw_rollout(case))
  forward = bounds.read_phase(case, np.full(case.rows, case.new_tokens))
  return Program(
    name,
    case,
    update,
    lambda state_and_base: (state_and_base[0], batch, state_and_base[1]),
    case.total_tokens,
    "tokens",
    bounds.gradient_phases(forward, weights, adapters),
    trains=True,
  )
