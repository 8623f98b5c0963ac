"""Labelled responses that end too early, for a PRM that reads their end.

A causal PRM does not see what follows a step. So it cannot score "Thank you."
lower if it is the whole response, and a policy learns to write only that (the
paper's case 3, arXiv 2504.15275). If the PRM reads the EOS of a response
(`ScoreConfig.read_end`), it can learn that an end without an answer is bad.
Labelled solutions contain no such end, so it is made by cutting them.

The legend of axes is in `pure_jax.types`.
"""

import numpy as np

from pure_jax import steps
from pure_jax.training.supervised import Demonstrations
from pure_jax.types import SeparatorTable


def cut_early(
  responses: Demonstrations,
  labels: np.ndarray,
  label_mask: np.ndarray,
  table: SeparatorTable,
  share: float,
  rng: np.random.Generator,
) -> tuple[Demonstrations, np.ndarray, np.ndarray]:
  """Makes shorter copies of responses, which end before their last step.

  Of the steps before the first bad one a random number stays, from none to all
  but the last step of the response. EOS follows, and the last step of the copy
  is labelled bad.

  Args:
    responses: n whole responses.
    labels: [n, S] int32, 1 for a good step, 0 for a bad one.
    label_mask: [n, S] bool, True where a step has a label.
    table: says which ids end a step.
    share: 0..1; round(share n) responses are cut, or all that have a step.
    rng: draws the responses and where they are cut.

  Returns:
    (the cut responses, their labels [m, S], label_mask [m, S]).
  """
  boundaries = steps.split_steps(
    responses.tokens,
    responses.completion_mask,
    table,
    max_steps=labels.shape[1],
  )
  ends, count = map(np.asarray, (boundaries.end_position, boundaries.mask))
  count = count.sum(1)
  # A good beginning is labelled good, or not labelled, up to its end.
  bad = label_mask & (labels == 0)
  first_bad = np.where(bad.any(1), bad.argmax(1), labels.shape[1])
  # The most steps that may be kept: all are good, and one more follows.
  choices = np.minimum(count - 1, first_bad)
  rows = np.flatnonzero(count >= 1)
  rows = rng.permutation(rows)[: round(share * len(labels))]
  kept = rng.integers(0, choices[rows] + 1)
  tokens = np.full_like(np.asarray(responses.tokens)[rows], table.pad_id)
  mask = np.zeros(tokens.shape, bool)
  for new, (row, steps_kept) in enumerate(zip(rows, kept, strict=True)):
    ids = responses.tokens[row].tolist()
    ids = _until(ids, ends[row, steps_kept - 1], table) if steps_kept else []
    ids.append(table.eos_ids[0])
    tokens[new, : len(ids)] = ids
    mask[new, : len(ids)] = True
  step = np.arange(labels.shape[1])
  last = np.maximum(kept - 1, 0)[:, None]
  known = label_mask[rows] & (step < last)
  return (
    Demonstrations(
      responses.prompt_tokens[rows], responses.prompt_mask[rows], tokens, mask
    ),
    np.where(known, labels[rows], 0).astype(np.int32),
    known | (step == last),
  )


def _until(ids, end, table):
  """The ids of a row up to a step's end, without its separator."""
  before, last = ids[:end], ids[end]
  if table.half[last]:
    return before[:-1]
  if not table.has_stem[last]:
    return before
  stem = int(table.stem[last])
  # No single id has the content of some separators.
  return before if table.ends_step[stem] else [*before, stem]
