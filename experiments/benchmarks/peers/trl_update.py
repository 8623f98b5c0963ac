"""The peers "trl" and "trl_rloo": a step of TRL's GRPOTrainer and RLOOTrainer.

Loss, model and optimizer are the trainer's; responses, their advantages and
old log-probs are given, where it would generate and score. Its environment is
that of `trl.txt`.
"""

import tempfile
from typing import Any

import exchange
import online
import torch
import training


class Updater(training.Step):
  """A trainer, and the batch that it is given."""

  def prepare(
    self,
    algorithm: str,
    prompts: list[list[int]],
    completions: list[list[int]],
    advantages: list[Any],
    old_logp: list[Any],
    samples: int,
    parts: int,
    pad_id: int,
    remat: bool,
    optimizer: dict[str, float],
  ) -> dict[str, Any]:
    """Makes the trainer and the micro-batches of its step.

    Args:
      algorithm: "grpo", or "rloo", which knows no tokens, only responses.
      prompts: [B, L] without padding, samples of one prompt contiguous.
      completions: [B, C] without padding.
      advantages: [B, C] of tokens, [B] of responses.
      old_logp: likewise, nats.
      samples: of each prompt.
      parts: micro-batches.
      pad_id: id of padding.
      remat: whether layers are computed again for the backward pass.
      optimizer: fields of TrainingArguments.
    """
    self._folder = tempfile.TemporaryDirectory()  # Gone with the process.
    completion_ids = torch.tensor(completions)
    self.trainer = online.make_trainer(
      algorithm,
      self._model,
      self._folder.name,
      self._dtype,
      *(len(prompts), samples, len(completions[0]), parts),
      *(pad_id, remat, optimizer),
    )
    old = {"grpo": "old_per_token_logps", "rloo": "old_logps"}[algorithm]
    # GRPO divides its loss by the number of parts, RLOO leaves it to the
    # training loop.
    self.scale = 1.0 if algorithm == "grpo" else 1 / parts
    self.batches = online.split(
      self.trainer,
      parts,
      prompt_ids=torch.tensor(prompts),
      completion_ids=completion_ids,
      completion_mask=torch.ones_like(completion_ids),
      advantages=torch.tensor(advantages),
      **{old: torch.tensor(old_logp)},
    )
    return {}


if __name__ == "__main__":
  exchange.serve(Updater())
