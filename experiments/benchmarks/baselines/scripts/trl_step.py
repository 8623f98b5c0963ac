"""The baselines "trl" and "trl_rloo": a step of GRPOTrainer or RLOOTrainer.

Loss, model and optimizer are the trainer's. Responses, advantages and old
log-probs are given, where the trainer would generate and score. The
environment is that of `trl.txt`.
"""

from typing import Any

import exchange
import torch
import trl_trainers
import trl_training


class TrainerStep(trl_training.StepScript):
  """Steps of GRPO or RLOO."""

  def prepare(
    self,
    trainer: dict[str, Any],
    prompts: list[list[int]],
    completions: list[list[int]],
    advantages: list[Any],
    old_logp: list[Any],
  ) -> dict[str, Any]:
    """Makes the trainer and the micro-batches of its step.

    Args:
      trainer: fields of `TrainerConfig`.
      prompts: [B, L] without padding, samples of one prompt contiguous.
      completions: [B, C] without padding.
      advantages: [B, C] advantages of tokens for GRPO, [B] of responses for
        RLOO.
      old_logp: log-probs of the same shape, nats.
    """
    config = trl_training.TrainerConfig(**trainer)
    self.trainer = trl_trainers.make_trainer(config, self.model, self.dtype)
    old_name = {"grpo": "old_per_token_logps", "rloo": "old_logps"}
    # GRPO divides its loss by the number of micro-batches, RLOO leaves that to
    # the training loop.
    self.scale = 1 / config.micro_batches if config.algorithm == "rloo" else 1.0
    completion_ids = torch.tensor(completions)
    self.batches = trl_trainers.split(
      self.trainer,
      config.micro_batches,
      prompt_ids=torch.tensor(prompts),
      completion_ids=completion_ids,
      completion_mask=torch.ones_like(completion_ids),
      advantages=torch.tensor(advantages),
      **{old_name[config.algorithm]: torch.tensor(old_logp)},
    )
    return {}


if __name__ == "__main__":
  exchange.serve(TrainerStep())
