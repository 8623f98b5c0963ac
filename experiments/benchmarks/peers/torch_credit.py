"""The peer "torch_credit": credit and advantages as the obvious torch loop.

Row by row and step by step, the formulas of PURE (arXiv 2504.15275): rewards
weighted by softmin (Eq. 5), their sums to go (Eq. 6), the token baseline of the
other samples of the prompt, and the outcome against the mean of theirs; then
whitened over the tokens of the batch. Its environment is that of
`torch_credit.txt`.
"""

import time
from typing import Any

import exchange
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
  """Advantages of a batch whose prompts all have an answer.

  Args:
    step_rewards: [B, S] of each step.
    step_counts: [B] steps of each row.
    step_index: [B, C] the step that a token belongs to.
    lengths: [B] tokens of each row.
    correct: [B] 1 where the answer is right, else 0.
    samples: K, rows of a prompt, at least 2.
    temperature: of softmin.

  Returns:
    [B, C], 0 after the end of a row.
  """
  rows, columns = step_index.shape
  found = torch.zeros(rows, columns)
  totals = torch.zeros(rows)
  for row in range(rows):
    rewards = step_rewards[row, : step_counts[row]]
    weighted = torch.softmax(-rewards / temperature, dim=0) * rewards
    totals[row] = weighted.sum()
    to_go = torch.zeros(())
    for step in reversed(range(len(weighted))):
      to_go = to_go + weighted[step]
      found[row, step_index[row] == step] = to_go
  for row in range(rows):
    first = row - row % samples
    others = [r for r in range(first, first + samples) if r != row]
    share = totals[others].sum() / ((samples - 1) * columns)
    tokens_to_go = lengths[row] - torch.arange(columns)
    found[row] -= share * tokens_to_go
    found[row] += correct[row] - correct[others].mean()
    found[row, lengths[row] :] = 0
  kept = torch.arange(columns) < lengths[:, None]
  values = found[kept]
  whitened = (found - values.mean()) / torch.sqrt(values.var() + 1e-8)
  return torch.where(kept, whitened, 0.0)


class Credit:
  """A batch and its advantages."""

  def prepare(self, **fields: Any) -> dict[str, Any]:
    """Takes the arguments of `advantages`, arrays as lists."""
    self._arguments = {
      name: torch.tensor(value) if isinstance(value, list) else value
      for name, value in fields.items()
    }
    return exchange.facts("torch")

  def run(self) -> dict[str, Any]:
    """Computes once, and says how long that took."""
    start = time.perf_counter()
    with torch.inference_mode():
      self._found = advantages(**self._arguments)
    return exchange.timed(start)

  def answer(self) -> dict[str, Any]:
    """The advantages of the last run, [B, C]."""
    return {"advantages": self._found.tolist()}


if __name__ == "__main__":
  exchange.serve(Credit())
