"""The suite "score": old and reference log-probs, and rewards of a PRM."""

import dataclasses
from typing import Any

import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import Case
from benchmarks.models import Options, init_cast_policy, init_prm
from benchmarks.programs import Compilation, Program, compile_once
from benchmarks.timing import Arm, timed
from pure_jax.parallel import sharding
from pure_jax.settings import ScoreConfig
from pure_jax.training.score import make_score
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import Prompts, Rollout

SCORING = ScoreConfig(batches.MAX_STEPS)


def step_spec(case: Case, options: Options) -> StepSpec:
  """Specifies the scores of a case, and its update without the credit.

  Args:
    case: sizes.
    options: how policy, reference and PRM run.

  Returns:
    The specification on the devices of this process.
  """
  model = options.model(case.model)
  return StepSpec(
    model,
    model,
    batches.plain_sampler(case),
    SCORING,
    batches.separator_table(model.vocab_size),
    Layouts.same(sharding.make_layout()),
    micro_batch_rows=options.rows_at_a_time,
  )


def compile_score(
  case: Case, options: Options, *arguments: Any
) -> tuple[Any, Compilation]:
  """Compiles the scores of a batch.

  Args:
    case: sizes.
    options: how the three models run.
    *arguments: weights of policy, reference and PRM, rollout, and the PRM's
      prompts.

  Returns:
    The compiled function of these arguments, which returns the scores and the
    drift, and its compilation.
  """
  # Whether responses end early changes nothing in the program.
  case = dataclasses.replace(case, stops="never")
  # The policy comes as it is stored in an iteration, else in the compute dtype.
  dtype = arguments[0]["embedding"].dtype
  return compile_once(
    f"score {dtype}",
    case,
    options,
    lambda: make_score(step_spec(case, options)),
    *arguments,
  )


def init_frozen(case: Case, options: Options) -> tuple[Any, Any]:
  """Makes a reference and a PRM on the same trunk.

  Args:
    case: names the model.
    options: how it runs.

  Returns:
    (reference, PRM) in the compute dtype, in arrays of their own.
  """
  return (
    init_cast_policy(case.model, options),
    init_prm(case.model, options, cast=True),
  )


def prm_prompts(rollout: Rollout) -> Prompts:
  """Uses the policy's prompts as the PRM's prompts.

  Args:
    rollout: [B, C] responses.

  Returns:
    [B, L] tokens and mask.
  """
  return Prompts(rollout.prompt_tokens, rollout.prompt_mask)


def score_arms(case: Case, options: Options) -> dict[str, Program]:
  """Prepares the scores of random responses.

  Args:
    case: sizes.
    options: how the three models run.

  Returns:
    One arm, "score"; its work is the tokens of prompts and responses.
  """
  model = options.model(case.model)
  rollout = batches.draw_rollout(case, model.vocab_size)
  arguments = (
    init_cast_policy(case.model, options),
    *init_frozen(case, options),
    rollout,
    prm_prompts(rollout),
  )
  compiled, compilation = compile_score(case, options, *arguments)
  phases = bounds.score_phases(
    model,
    case.prompt_tokens,
    [case.new_tokens] * case.rows,
    score_tokens(rollout, model.vocab_size),
    options.itemsize,
  )
  arm = Arm(timed(compiled, *arguments), case.total_tokens)
  return {"score": Program(arm, phases, compilation)}


def score_tokens(rollout: Rollout, vocab_size: int) -> np.ndarray:
  """Counts the score tokens that a PRM reads in each response.

  Args:
    rollout: [B, C] responses.
    vocab_size: V.

  Returns:
    [B], one for each step.
  """
  table = batches.separator_table(vocab_size)
  batch = batches.draw_scored_batch(rollout, table)
  return np.asarray(batch.scores.steps.mask).sum(axis=1)
