"""TRL's GRPOTrainer and RLOOTrainer, for one step on a given batch."""

import datasets
import torch
import transformers
import trl
import trl_training

# Trainer, its config, and the fields of the config that define the loss.
ALGORITHMS = {
  # Mean over tokens.
  "grpo": (trl.GRPOTrainer, trl.GRPOConfig, {"loss_type": "bnpo"}),
  "rloo": (trl.RLOOTrainer, trl.RLOOConfig, {}),
}


def make_trainer(
  config: trl_training.TrainerConfig,
  model: transformers.PreTrainedModel,
  dtype: str,
) -> transformers.Trainer:
  """Makes a trainer that is ready for a step.

  Args:
    config: config of the trainer.
    model: the policy, in float32.
    dtype: dtype of products.

  Returns:
    The trainer.
  """
  trainer_class, config_class, loss = ALGORITHMS[config.algorithm]
  trainer = trainer_class(
    model=model,
    reward_funcs=lambda completions, **_: [0.0] * len(completions),
    args=config_class(
      num_generations=config.samples,
      max_completion_length=config.new_tokens,
      beta=0.0,
      epsilon=0.2,
      **loss,
      **config.training_arguments(dtype),
    ),
    train_dataset=datasets.Dataset.from_list([{"prompt": "0"}] * config.rows),
    processing_class=trl_training.number_tokenizer(
      model.config.vocab_size, config.pad_id
    ),
  )
  # Otherwise set by the training loop, which does not run here.
  trainer.current_gradient_accumulation_steps = config.micro_batches
  return trl_training.start(trainer)


def split(
  trainer: transformers.Trainer, micro_batches: int, **batch: torch.Tensor
) -> list[dict[str, torch.Tensor]]:
  """Splits a batch into micro-batches.

  Args:
    trainer: the trainer, whose device gets them.
    micro_batches: number of micro-batches.
    **batch: arrays of B rows; prompts have no padding.

  Returns:
    For each micro-batch, the fields that the trainer's loss reads.
  """
  batch = {"prompt_mask": torch.ones_like(batch["prompt_ids"]), **batch}
  device = trainer.accelerator.device
  chunks = {
    name: value.to(device).chunk(micro_batches) for name, value in batch.items()
  }
  return [
    {name: values[number] for name, values in chunks.items()}
    for number in range(micro_batches)
  ]
