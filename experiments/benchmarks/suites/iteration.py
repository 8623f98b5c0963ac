"""The suite "iteration": rollout, scores, credit and update, as in a run."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import (
  cast_to_compute_dtype,
  init_cast_policy,
  init_prm,
)
from benchmarks.suites.rollout import compile_one_loop, generate_arguments
from benchmarks.suites.training import (
  OPTIMIZER,
  check_applied,
  prm_prompts,
  start_state,
  step_spec,
)
from benchmarks.timing import Arm, Compilation, compile_call
from pure_jax.runs.planning.compiler import Memory
from pure_jax.training import train
from pure_jax.training.optim import make_optimizer
from pure_jax.training.score import Scores, make_score

# Share of the tokens by which repeats may differ: an update of the policy may
# change a token, and with it the length of a response.
MOST_DRIFT = 0.05


@dataclasses.dataclass(frozen=True)
class IterationReference:
  """The results that a baseline must reproduce in an iteration.

  Attributes:
    lengths: [B] tokens of the responses that the iteration draws.
    correct: [B] float32, random outcomes.
    scores: scores of the responses of `batches.draw_rollout`.
    loss: loss of the first update on these responses.
    grad_norm: norm of its gradient.
  """

  lengths: np.ndarray
  correct: np.ndarray
  scores: Scores
  loss: float
  grad_norm: float


def iteration_arms(case: Case) -> dict[str, Arm]:
  """Prepares three compiled functions that run one after the other.

  The prompts are on the device, and the outcomes are given: a run grades on
  the host while the device computes the scores. The one arm is "iteration";
  its work is the tokens that are drawn.
  """
  cast = cast_to_compute_dtype(case.rollout_config)
  rollout_params, prompts, key = generate_arguments(case)
  sampler = batches.sampler(case, case.options.weights is None)
  generate, generate_compilation = compile_one_loop(
    case, sampler, rollout_params, prompts, key
  )
  state = start_state(case)
  frozen = init_cast_policy(case), init_prm(case, cast=True)

  given = batches.draw_rollout(case)
  outcomes = batches.draw_scored_batch(case, given)
  score_arguments = state.params, *frozen, given, prm_prompts(given)
  spec = step_spec(case)
  score, score_compilation = compile_call(make_score(spec), *score_arguments)
  scores, _ = score(*score_arguments)
  batch = outcomes.replace(scores=scores)
  update, update_compilation = compile_call(
    train.make_update(spec, make_optimizer(OPTIMIZER)), state, batch, {}
  )

  def iterate(state: Any) -> tuple[Any, ...]:
    drawn = generate(cast(state.params), prompts, key)
    scores, _ = score(state.params, *frozen, drawn, prm_prompts(drawn))
    batch = outcomes.replace(rollout=drawn, scores=scores)
    return *update(state, batch, {}), drawn

  drawn = generate(rollout_params, prompts, key)
  del rollout_params
  lengths = np.asarray(drawn.completion_mask).sum(axis=1)
  drawn_scores, _ = score(state.params, *frozen, drawn, prm_prompts(drawn))
  _, metrics = update(state, batch, {})
  reference = IterationReference(
    lengths,
    np.asarray(batch.correct),
    jax.device_get(scores),
    float(metrics["policy_loss"]),
    float(metrics["grad_norm"]),
  )
  inserted = np.asarray(drawn_scores.steps.mask).sum(axis=1)
  phases = [
    *bounds.rollout_phases(case, lengths),
    *bounds.score_phases(case, lengths, inserted),
    *bounds.gradient_phases(
      bounds.read_phase(case, lengths), bounds.count_weights(case.model_config)
    ),
  ]
  compilations = generate_compilation, score_compilation, update_compilation
  arm = Arm(
    _timed_iterations(case, iterate, lengths.sum()),
    int(lengths.sum()),
    phases,
    Compilation(
      sum(each.seconds for each in compilations),
      _largest(compilations),
      costs=None,
    ),
    reference,
  )
  return {"iteration": arm}


def _largest(compilations: Sequence[Compilation]) -> Memory | None:
  """The memory of the program that needs most, of those that say."""
  known = [each.memory for each in compilations if each.memory is not None]
  return max(known, key=lambda memory: memory.total, default=None)


def _timed_iterations(
  case: Case, iterate: Callable[[Any], tuple[Any, ...]], expected: int
) -> Callable[[], float]:
  """Makes a function that iterates from the last state, in seconds."""
  state = start_state(case)

  def run() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics, drawn = jax.block_until_ready(iterate(state))
    elapsed = time.perf_counter() - start
    check_applied(case, metrics)
    tokens = np.asarray(drawn.completion_mask).sum()
    if abs(tokens - expected) > MOST_DRIFT * expected:
      raise BenchmarkError(
        f"{case}: {tokens} tokens were drawn, {expected} at first: the policy "
        "has changed too much for repeats to be the same work."
      )
    return elapsed

  return run
