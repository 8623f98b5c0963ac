"""The peer "trl": one gradient step of TRL's GRPOTrainer, on given advantages.

Loss, model and optimizer are the trainer's; responses, their advantages and
old log-probs are given, where it would generate and score. Its environment is
that of `trl.txt`.
"""

import tempfile
import time
from typing import Any

import exchange
import grpo
import torch
import training
import transformers


class Updater:
  """A trainer, and the batch that it is given."""

  def load(self, policy: str, dtype: str) -> dict[str, Any]:
    """Reads a folder as transformers saves it; products are of `dtype`."""
    self._dtype = dtype
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      policy, dtype=torch.float32, local_files_only=True
    )
    return exchange.facts("torch", "transformers", "trl")

  def prepare(
    self,
    prompts: list[list[int]],
    completions: list[list[int]],
    advantages: list[list[float]],
    old_logp: list[list[float]],
    samples: int,
    parts: int,
    pad_id: int,
    remat: bool,
    optimizer: dict[str, float],
  ) -> dict[str, Any]:
    """Makes the trainer and the micro-batches of its step.

    Args:
      prompts: [B, L] without padding, samples of one prompt contiguous.
      completions: [B, C] without padding.
      advantages: [B, C] of each token.
      old_logp: [B, C] nats.
      samples: of each prompt.
      parts: micro-batches.
      pad_id: id of padding.
      remat: whether layers are computed again for the backward pass.
      optimizer: fields of TrainingArguments.
    """
    self._folder = tempfile.TemporaryDirectory()  # Gone with the process.
    completion_ids = torch.tensor(completions)
    self._trainer = grpo.make_trainer(
      self._model,
      self._folder.name,
      self._dtype,
      *(len(prompts), samples, len(completions[0]), parts),
      *(pad_id, remat, optimizer),
    )
    self._batches = grpo.split(
      self._trainer,
      parts,
      prompt_ids=torch.tensor(prompts),
      completion_ids=completion_ids,
      completion_mask=torch.ones_like(completion_ids),
      advantages=torch.tensor(advantages),
      old_per_token_logps=torch.tensor(old_logp),
    )
    return {}

  def run(self) -> dict[str, Any]:
    """Takes one step, and says how long that took."""
    start = time.perf_counter()
    self._found = training.take_step(self._trainer, self._batches)
    return exchange.timed(start)

  def answer(self) -> dict[str, Any]:
    """The loss and the norm of the gradient, before clipping."""
    return self._found


if __name__ == "__main__":
  exchange.serve(Updater())
