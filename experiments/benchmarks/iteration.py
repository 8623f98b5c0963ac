"""The suite of whole RL iterations: rollout, scores, credit and update."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import BenchmarkError, Case
from benchmarks.gradients import check_applied, start_state, update_program
from benchmarks.programs import Compilation, Compiled, Options
from benchmarks.rollouts import generate_arguments, one_loop
from benchmarks.scoring import asked_of, draw_frozen, score_program
from benchmarks.timing import Arm
from pure_jax.models import params as weights
from pure_jax.models import policy
from pure_jax.parallel import sharding
from pure_jax.training import weight_copies
from pure_jax.training.score import ScoredBatch, Scores

# An update of the sampled policy may change a token and with it a length.
MOST_DRIFT = 0.05


@dataclasses.dataclass(frozen=True)
class Iterated:
  """What a peer is held to.

  Attributes:
    lengths: [B] tokens of the responses that the iteration draws.
    correct: [B] float32, the grader's verdicts, at random.
    scores: of the responses of `batches.draw_rollout`.
    loss: of an update of the first state with these.
    grad_norm: of its gradient.
  """

  lengths: np.ndarray
  correct: np.ndarray
  scores: Scores
  loss: float
  grad_norm: float


def iteration(case: Case, options: Options) -> dict[str, Compiled]:
  """Three compiled functions after each other, as a run calls them.

  Prompts are on the device, and the grader's verdicts are given: a run grades
  on the host while scores are computed.

  Args:
    case: sizes and stops.
    options: how the three models run.

  Returns:
    One arm, "iteration"; its work is the tokens that were drawn.
  """
  model = options.model(case.model)
  layout, declared = sharding.make_layout(), policy.declare_policy(model)
  copy = weight_copies.make_compute_copy(declared, model, layout, layout)
  copied, prompts, key = generate_arguments(case, options)
  sampler = batches.sampler(case, model.vocab_size, options.weights is None)
  generate, sampling = one_loop(case, options, sampler, copied, prompts, key)
  state, frozen = start_state(case, options), draw_frozen(case, options)

  given = batches.draw_rollout(case, prompts, model.vocab_size)
  table = batches.separator_table(model.vocab_size)
  _, correct, has_answer = batches.draw_prm_responses(given, table)
  score, scoring = score_program(
    case, options, state.params, *frozen, given, asked_of(given)
  )
  scores, _ = score(state.params, *frozen, given, asked_of(given))
  batch = ScoredBatch(given, scores, correct, has_answer)
  update, updating = update_program(case, options, state, batch, {})

  def iterate(state: Any) -> tuple[Any, ...]:
    drawn = generate(copy(state.params), prompts, key)
    scores, _ = score(state.params, *frozen, drawn, asked_of(drawn))
    batch = ScoredBatch(drawn, scores, correct, has_answer)
    return *update(state, batch, {}), drawn, scores

  drawn = generate(copied, prompts, key)
  del copied
  lengths = np.asarray(drawn.completion_mask).sum(axis=1)
  cut = score(state.params, *frozen, drawn, asked_of(drawn))[0].steps.mask
  _, metrics = update(state, batch, {})
  answer = Iterated(
    lengths,
    np.asarray(correct),
    jax.device_get(scores),
    float(metrics["policy_loss"]),
    float(metrics["grad_norm"]),
  )
  return {
    "iteration": Compiled(
      Arm(_repeats(case, options, iterate, lengths), int(lengths.sum())),
      _phases(case, options, lengths, np.asarray(cut).sum(axis=1)),
      _together(sampling, scoring, updating),
      answer,
    )
  }


def _repeats(case, options, iterate, lengths):
  """Repeats an iteration on the state that the last one left."""
  state = start_state(case, options)
  expected = lengths.sum()

  def seconds() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics, drawn, _ = jax.block_until_ready(iterate(state))
    taken = time.perf_counter() - start
    check_applied(case, metrics)
    found = np.asarray(drawn.completion_mask).sum()
    if abs(found - expected) > MOST_DRIFT * expected:
      raise BenchmarkError(
        f"{case}: {found} tokens were drawn, {expected} at first: the policy "
        "has changed too much for repeats to be the same work."
      )
    return taken

  return seconds


def _phases(
  case: Case, options: Options, lengths: np.ndarray, inserted: np.ndarray
) -> list[bounds.Phase]:
  """Of the three functions, one after the other."""
  model, itemsize = options.model(case.model), options.itemsize
  read = bounds.read_phase(model, case.prompt_tokens, lengths, itemsize)
  return [
    *bounds.rollout_phases(
      model, case.prompts, case.prompt_tokens, lengths, itemsize
    ),
    *bounds.score_phases(
      model, case.prompt_tokens, lengths, inserted, itemsize
    ),
    *bounds.gradient_phases(
      read, weights.count_params(policy.declare_policy(model))
    ),
  ]


def _together(*found: Compilation) -> Compilation:
  """Of programs that follow each other: the memory of the largest."""
  return Compilation(
    sum(each.seconds for each in found),
    max((each.memory for each in found), key=lambda memory: memory.total),
    None,
  )
