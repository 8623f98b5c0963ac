"""PURE's credit and advantages as a plain loop in torch.

Row by row and step by step, the formulas of PURE (arXiv 2504.15275): rewards
weighted by softmin (Eq. 5), their sums to go (Eq. 6), the token baseline of
the other samples of the prompt, and the outcome less the mean of theirs; then
whitened over the tokens of the batch.
"""

import torch


def advantages(
  step_rewards: torch.Tensor,
  step_ends: list[list[int]],
  correct: torch.Tensor,
  samples: int,
  temperature: float,
  columns: int,
) -> torch.Tensor:
  """Computes the advantages [B, C] of responses that all have an answer.

  Args:
    step_rewards: [B, S] reward of each step.
    step_ends: last token of each step, by row; a row ends with its last step.
    correct: [B] 1 for a correct answer, else 0.
    samples: G, rows of a prompt, at least 2.
    temperature: temperature of softmin.
    columns: C; advantages are 0 after the end of a row.
  """
  rows = len(step_ends)
  lengths = torch.tensor([ends[-1] + 1 for ends in step_ends])
  result = torch.zeros(rows, columns)
  totals = torch.zeros(rows)
  for row, ends in enumerate(step_ends):
    rewards = step_rewards[row, : len(ends)]
    weighted = torch.softmax(-rewards / temperature, dim=0) * rewards
    totals[row] = weighted.sum()
    to_go = torch.zeros(())
    starts = [0, *(end + 1 for end in ends)]
    for step in reversed(range(len(ends))):
      to_go = to_go + weighted[step]
      result[row, starts[step] : ends[step] + 1] = to_go
  for row in range(rows):
    first = row - row % samples
    others = [r for r in range(first, first + samples) if r != row]
    share = totals[others].sum() / ((samples - 1) * columns)
    tokens_to_go = lengths[row] - torch.arange(columns)
    result[row] -= share * tokens_to_go
    result[row] += correct[row] - correct[others].mean()
    result[row, lengths[row] :] = 0
  mask = torch.arange(columns) < lengths[:, None]
  values = result[mask]
  whitened = (result - values.mean()) / torch.sqrt(values.var() + 1e-8)
  return torch.where(mask, whitened, 0.0)
