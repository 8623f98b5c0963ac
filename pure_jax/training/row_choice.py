"""Shapes of packed rows: shared prompts, and the narrowest rows for a batch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from pure_jax.parallel import sharding
from pure_jax.training.packing import RowShape, ScoreRows
from pure_jax.training.score import prm_batch, prm_inputs
from pure_jax.training.step_spec import StepSpec

Compiled = TypeVar("Compiled")


def share_prompts(
  shape: RowShape,
  prompt_tokens: int,
  completion_tokens: int,
  samples: int,
  texts: int,
  shards: int = 1,
) -> RowShape:
  """Lets samples share their prompt, as many as a row holds at their longest.

  >>> share_prompts(RowShape(1000, 1), 200, 100, samples=16, texts=64)
  RowShape(columns=1000, rows=1, shared=True, samples=8)

  Args:
    shape: the shape of the rows.
    prompt_tokens: L, of the longest prompt.
    completion_tokens: C, of the longest completion.
    samples: G, consecutive texts with the same prompt.
    texts: B, texts that are packed together.
    shards: over which the rows of a micro-batch are split; divides those of
      the shape.

  Returns:
    The shape with the largest number of samples that divides G, for which the
    longest prompt and completions fit into a row, and which leaves a
    micro-batch rows that can be split; 1 if there is none, or if texts do not
    share rows.
  """
  fitting = [
    k
    for k in range(1, samples + 1)
    if samples % k == 0
    and prompt_tokens + k * completion_tokens <= shape.columns
    # `packing.pack` makes no more rows than there are prompts with samples.
    and min(shape.rows, texts // k) % shards == 0
  ]
  if not shape.shared:
    return shape
  return dataclasses.replace(shape, samples=max(fitting, default=1))


def narrower(shape: RowShape, count: int) -> tuple[RowShape, ...]:
  """Rows in which samples share their prompt, in widths of equal steps.

  Few responses have the largest length, so a prompt with all its samples seldom
  fills the row that would hold them at their longest.

  >>> [s.columns for s in narrower(RowShape(1000, 1, samples=8), 4)]
  [1000, 750, 500, 250]

  Args:
    shape: the widest rows.
    count: number of widths, at least 1.
  """
  return tuple(
    dataclasses.replace(shape, columns=-(-shape.columns * part // count))
    for part in range(count, 0, -1)
  )


def choose(
  compiled: Mapping[RowShape | ScoreRows, Compiled], lengths: np.ndarray
) -> Compiled:
  """Chooses the function with the narrowest rows that hold a batch's texts.

  Args:
    compiled: functions by their rows, from the narrowest to the widest.
    lengths: [m] tokens of the longest text of each kind, see
      `make_measure`.

  Returns:
    A function whose rows hold them.

  Raises:
    ValueError: if no rows are wide enough.
  """
  for rows, function in compiled.items():
    if np.all(lengths <= np.asarray(rows.columns)):
      return function
  widest = np.atleast_1d(list(compiled)[-1].columns).tolist()
  raise ValueError(
    f"The longest texts have {lengths.tolist()} tokens, and rows at most "
    f"{widest}: give rows as many columns as prompt and completion can have "
    "together."
  )


def make_measure(
  spec: StepSpec,
) -> Callable[..., jax.Array]:
  """Makes a function that measures the longest texts of a batch.

  `choose` takes the narrowest rows that hold them.

  Args:
    spec: the step's specification.

  Returns:
    A jitted function (rollout, PRM texts, samples) -> int32, the same on every
    process: [1], the most tokens of a prompt with the completions that share
    it, or with a PRM [2], of which the second is the most tokens that the PRM
    reads. An update runs no PRM: its PRM texts are None. `samples` is static
    and says how many consecutive completions share a prompt, by default 1.
  """

  def measure(rollout, prm_texts, samples=1):
    own = rollout.completion_mask.sum(1)
    prompts = rollout.prompt_mask[::samples].sum(1)
    texts = prompts + own.reshape(-1, samples).sum(1)
    if spec.prm_model is None or prm_texts is None:
      return texts.max(keepdims=True)
    batch = prm_batch(spec, rollout, prm_texts)
    inputs = prm_inputs(spec.scoring, spec.table, batch)
    return jnp.stack([texts.max(), inputs.mask.sum(1).max()])

  layout = spec.layouts.training
  return jax.jit(
    measure,
    out_shardings=sharding.replicated(layout),
    static_argnames="samples",
  )
