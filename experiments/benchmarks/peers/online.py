"""TRL's GRPOTrainer and RLOOTrainer, for one step on a given batch."""

from typing import Any

import datasets
import torch
import training
import transformers
import trl

# Trainer, config, and what the config says of the loss.
ALGORITHMS = {
  # Mean over tokens.
  "grpo": (trl.GRPOTrainer, trl.GRPOConfig, {"loss_type": "bnpo"}),
  "rloo": (trl.RLOOTrainer, trl.RLOOConfig, {}),
}


def make_trainer(
  algorithm: str,
  model: transformers.PreTrainedModel,
  folder: str,
  dtype: str,
  rows: int,
  samples: int,
  new_tokens: int,
  parts: int,
  pad_id: int,
  remat: bool,
  optimizer: dict[str, float],
) -> Any:
  """Makes a trainer that is ready for a step.

  Args:
    algorithm: a key of `ALGORITHMS`.
    model: the policy, in float32.
    folder: for what it might write.
    dtype: of products.
    rows: B, samples of one prompt contiguous.
    samples: of each prompt.
    new_tokens: C.
    parts: micro-batches.
    pad_id: id of padding.
    remat: whether layers are computed again for the backward pass.
    optimizer: fields of TrainingArguments.

  Returns:
    The trainer.
  """
  kind, config, fields = ALGORITHMS[algorithm]
  trainer = kind(
    model=model,
    reward_funcs=lambda completions, **_: [0.0] * len(completions),
    args=config(
      output_dir=folder,
      num_generations=samples,
      max_completion_length=new_tokens,
      beta=0.0,
      epsilon=0.2,
      **fields,
      **training.arguments(dtype, rows, parts, remat, optimizer),
    ),
    train_dataset=datasets.Dataset.from_list([{"prompt": "0"}] * rows),
    processing_class=training.number_tokenizer(model.config.vocab_size, pad_id),
  )
  # The training loop, which is not run here, sets these.
  trainer.current_gradient_accumulation_steps = parts
  trainer.create_optimizer()
  trainer.model.train()
  return trainer


def split(
  trainer: transformers.Trainer, parts: int, **batch: torch.Tensor
) -> list[dict[str, torch.Tensor]]:
  """Micro-batches of a batch.

  Args:
    trainer: on whose device they shall be.
    parts: how many.
    **batch: arrays of B rows; prompts have no padding.

  Returns:
    The fields that the trainer's loss reads, of each.
  """
  batch = {"prompt_mask": torch.ones_like(batch["prompt_ids"]), **batch}
  device = trainer.accelerator.device
  chunks = {
    name: value.to(device).chunk(parts) for name, value in batch.items()
  }
  return [
    {name: values[part] for name, values in chunks.items()}
    for part in range(parts)
  ]
