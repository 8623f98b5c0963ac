"""PURE's credit and advantages as a plain loop in torch.

Row by row and step by step, the formulas of PURE (arXiv 2504.15275): rewards
weighted by softmin (Eq. 5), their sums to go (Eq. 6), the token baseline of
the other samples of the prompt, and the outcome less the mean of theirs; then
whitened over the tokens of the batch.
"""

import torch


def advantages(
  step_rewards: torch.Tensor,
  step_counts: torch.Tensor,
  step_index: torch.Tensor,
  lengths: torch.Tensor,
  correct: torch.Tensor,
  samples: int,
  temperature: float,
) -> torch.Tensor:
  """Computes the advantages of a batch in which every response has an answer.

  Args:
    step_rewards: [B, S] reward of each step.
    step_counts: [B] steps of each row.
    step_index: [B, C] the step of each token.
    lengths: [B] tokens of each row.
    correct: [B] 1 for a correct answer, else 0.
    samples: G, rows of a prompt, at least 2.
    temperature: temperature of softmin.

  Returns:
    [B, C], 0 after the end of a row.
  """
  rows, columns = step_index.shape
  result = torch.zeros(rows, columns)
  totals = torch.zeros(rows)
  for row in range(rows):
    rewards = step_rewards[row, : step_counts[row]]
    weighted = torch.softmax(-rewards / temperature, dim=0) * rewards
    totals[row] = weighted.sum()
    to_go = torch.zeros(())
    for step in reversed(range(len(weighted))):
      to_go = to_go + weighted[step]
      result[row, step_index[row] == step] = to_go
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
