"""The suite "packing": an update on responses of different lengths."""

import numpy as np

from benchmarks import batches, bounds
from benchmarks.cases import Case
from benchmarks.models import Options
from benchmarks.programs import Program
from benchmarks.suites.update import compile_update, start_state, timed_steps
from benchmarks.timing import Arm
from pure_jax.models import params as weights
from pure_jax.models import policy
from pure_jax.training.micro_batches import count_micro_batches
from pure_jax.training.packing import RowShape


def packing_arms(case: Case, options: Options) -> dict[str, Program]:
  """Prepares the same update with three layouts of the texts in rows.

  Args:
    case: sizes; most responses and prompts are shorter.
    options: how the model runs.

  Returns:
    "own rows", one text in each row of L + C columns; "shorter rows", one text
    in each row, which is as long as the longest text; "packed rows", several
    texts in each row of L + C columns. A micro-batch has the same number of
    rows in each. The work is the tokens of prompts and responses without
    padding, the reference [loss, norm of the gradient].
  """
  model = options.model(case.model)
  rollout = batches.draw_unequal_rollout(case, model.vocab_size)
  table = batches.separator_table(model.vocab_size)
  batch = batches.draw_scored_batch(rollout, table), {}
  prompts = np.asarray(rollout.prompt_mask).sum(axis=1)
  responses = np.asarray(rollout.completion_mask).sum(axis=1)
  columns = case.prompt_tokens + case.new_tokens
  rows = case.rows // count_micro_batches(case.rows, options.rows_at_a_time)
  longest = int((prompts + responses).max())
  forward = bounds.read_phase(model, prompts, responses, options.itemsize)
  parameters = weights.count_params(policy.declare_policy(model))
  phases = bounds.gradient_phases(forward, parameters)
  arms = {}
  for name, row_shape in (
    ("own rows", None),
    ("shorter rows", RowShape(longest, rows, shared=False)),
    ("packed rows", RowShape(columns, rows)),
  ):
    state = start_state(case, options)
    step, compilation = compile_update(
      case, options, state, *batch, row_shape=row_shape
    )
    state, metrics = step(state, *batch)
    seconds = timed_steps(case, step, state, *batch)
    arms[name] = Program(
      Arm(seconds, int((prompts + responses).sum()), ran=True),
      phases,
      compilation,
      np.array([metrics["policy_loss"], metrics["grad_norm"]]),
      variant_of=None if row_shape is None else "own rows",
    )
  return arms
