"""TRL's GRPOTrainer, for one step on a batch that is given."""

import datasets
import torch
import training
import transformers
import trl


def make_trainer(
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
) -> trl.GRPOTrainer:
  """Makes a trainer that is ready for a step.

  Args:
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
  trainer = trl.GRPOTrainer(
    model=model,
    reward_funcs=lambda completions, **_: [0.0] * len(completions),
    args=trl.GRPOConfig(
      output_dir=folder,
      num_generations=samples,
      max_completion_length=new_tokens,
      beta=0.0,
      epsilon=0.2,
      loss_type="bnpo",  # Mean over tokens.
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
  trainer: trl.GRPOTrainer, parts: int, **batch: torch.Tensor
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
