"""The suite of scores: what an update is compared with."""

import dataclasses
from typing import Any

import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import Case
from benchmarks.programs import (
  Compilation,
  Compiled,
  Options,
  compile_once,
  init_policy,
  init_prm,
)
from benchmarks.timing import Arm, timed
from pure_jax.parallel import sharding
from pure_jax.settings import ScoreConfig
from pure_jax.training.score import make_score
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import Prompts, Rollout

CONFIG = ScoreConfig(batches.MAX_STEPS)


def score_program(
  case: Case, options: Options, *arguments: Any
) -> tuple[Any, Compilation]:
  """Old and reference log-probs, steps, and the rewards of a PRM.

  Args:
    case: sizes.
    options: how the three models run.
    *arguments: weights of the three, rollout and the PRM's prompts.

  Returns:
    The compiled function of these, and what the compiler says of it.
  """
  model = options.model(case.model)

  def make():
    return make_score(
      StepSpec(
        model,
        model,
        batches.plain_sampler(case),
        CONFIG,
        batches.separator_table(model.vocab_size),
        Layouts.same(sharding.make_layout()),
        micro_batch_rows=options.rows_at_a_time,
      )
    )

  # Of any lengths it is the same program.
  case = dataclasses.replace(case, stops="never")
  # The policy's weights are a run's or, in a suite of its own, their copy.
  stored = arguments[0]["embedding"].dtype
  return compile_once(f"score {stored}", case, options, make, *arguments)


def draw_frozen(case: Case, options: Options) -> tuple[Any, Any]:
  """A reference and a PRM on the same trunk, in arrays of their own.

  Args:
    case: names the model.
    options: how it runs.

  Returns:
    Weights of both, as products read them.
  """
  return (
    init_policy(case.model, options, copied=True),
    init_prm(case.model, options, copied=True),
  )


def asked_of(drawn: Rollout) -> Prompts:
  """What the PRM reads in front of responses: what the policy answered.

  Args:
    drawn: [B, C] responses.

  Returns:
    [B, L] tokens and mask.
  """
  return Prompts(drawn.prompt_tokens, drawn.prompt_mask)


def score(case: Case, options: Options) -> dict[str, Compiled]:
  """Scores of random responses, all weights as products read them.

  Args:
    case: sizes.
    options: how the three models run.

  Returns:
    One arm, "score"; its work is the tokens of prompts and responses.
  """
  model = options.model(case.model)
  drawn = batches.draw_rollout(
    case, batches.draw_prompts(case, model.vocab_size), model.vocab_size
  )
  arguments = (
    init_policy(case.model, options, copied=True),
    *draw_frozen(case, options),
    drawn,
    asked_of(drawn),
  )
  compiled, compilation = score_program(case, options, *arguments)
  table = batches.separator_table(model.vocab_size)
  labelled, *_ = batches.draw_prm_responses(drawn, table)
  phases = bounds.score_phases(
    model,
    case.prompt_tokens,
    [case.new_tokens] * case.rows,
    np.asarray(labelled.steps.mask).sum(axis=1),
    options.itemsize,
  )
  arm = Arm(timed(compiled, *arguments), case.read_tokens)
  return {"score": Compiled(arm, phases, compilation)}
