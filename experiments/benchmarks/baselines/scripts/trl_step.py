"""The baseline "trl": a step of TRL's GRPOTrainer, and what it shares.

Loss, model and optimizer are the trainer's. Responses, advantages and old
log-probs are given, where the trainer would generate and score. The
environment is that of `trl.txt`.
"""

import dataclasses
import tempfile
import time
from typing import Any

import datasets
import exchange
import tokenizers
import torch
import transformers
import trl

# Removed when the process ends.
_FOLDER = tempfile.TemporaryDirectory()


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
  """How a trainer reads its batch.

  Attributes:
    rows: B, samples of one prompt contiguous.
    samples: samples of each prompt.
    new_tokens: C.
    micro_batches: micro-batches of the batch; a divisor of the rows.
    pad_id: id of padding.
    remat: whether layers are computed again for the backward pass.
    optimizer: fields of transformers' TrainingArguments.
  """

  rows: int
  samples: int
  new_tokens: int
  micro_batches: int
  pad_id: int
  remat: bool
  optimizer: dict[str, float]

  def training_arguments(self, dtype: str) -> dict[str, Any]:
    """Returns the fields of TrainingArguments; weights are float32."""
    return dict(
      output_dir=_FOLDER.name,
      per_device_train_batch_size=self.rows // self.micro_batches,
      gradient_accumulation_steps=self.micro_batches,
      bf16=dtype == "bfloat16",
      use_cpu=not torch.cuda.is_available(),
      gradient_checkpointing=self.remat,
      report_to="none",
      **self.optimizer,
    )


def number_tokenizer(
  vocab_size: int, pad_id: int
) -> transformers.PreTrainedTokenizerFast:
  """Makes a tokenizer with numbers as words, for a trainer that needs one."""
  words = {str(token): token for token in range(vocab_size)}
  model = tokenizers.models.WordLevel(words, unk_token=str(pad_id))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(model),
    pad_token=str(pad_id),
    eos_token=str(pad_id),
  )


def start(trainer: transformers.Trainer) -> transformers.Trainer:
  """Prepares a trainer for steps outside its own training loop."""
  trainer.create_optimizer()
  trainer.model.train()
  return trainer


def make_grpo_trainer(
  config: TrainerConfig, model: transformers.PreTrainedModel, dtype: str
) -> trl.GRPOTrainer:
  """Makes a trainer of a policy in float32; `dtype` is that of products."""
  trainer = trl.GRPOTrainer(
    model=model,
    reward_funcs=lambda completions, **_: [0.0] * len(completions),
    args=trl.GRPOConfig(
      num_generations=config.samples,
      max_completion_length=config.new_tokens,
      beta=0.0,
      epsilon=0.2,
      loss_type="bnpo",  # The mean over tokens.
      **config.training_arguments(dtype),
    ),
    train_dataset=datasets.Dataset.from_list([{"prompt": "0"}] * config.rows),
    processing_class=number_tokenizer(model.config.vocab_size, config.pad_id),
  )
  # Otherwise set by the training loop, which does not run here. The loss is
  # divided by it.
  trainer.current_gradient_accumulation_steps = config.micro_batches
  return start(trainer)


def split(
  trainer: transformers.Trainer, micro_batches: int, **batch: torch.Tensor
) -> list[dict[str, torch.Tensor]]:
  """Splits the rows of a batch, whose prompts have no padding.

  The result has the fields that the trainer's loss reads, by micro-batch.
  """
  batch = {"prompt_mask": torch.ones_like(batch["prompt_ids"]), **batch}
  device = trainer.accelerator.device
  chunks = [x.to(device).chunk(micro_batches) for x in batch.values()]
  return [
    dict(zip(batch, values, strict=True))
    for values in zip(*chunks, strict=True)
  ]


def take_step(
  trainer: transformers.Trainer, batches: list[dict[str, torch.Tensor]]
) -> dict[str, float]:
  """Takes one optimizer step on the sum of the micro-batches' losses.

  The result is the ``loss`` and ``grad_norm``, the norm before clipping.
  """
  total = 0.0
  for batch in batches:
    with trainer.accelerator.autocast():
      loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    total += loss.item()
  norm = torch.nn.utils.clip_grad_norm_(
    trainer.model.parameters(), trainer.args.max_grad_norm
  )
  trainer.optimizer.step()
  trainer.optimizer.zero_grad()
  return {"loss": total, "grad_norm": norm.item()}


class StepScript:
  """Takes steps of a `trainer` on its micro-batches, `batches`.

  `prepare` of a subclass makes both. The `model` is in float32, products are in
  `dtype`.
  """

  trainer: transformers.Trainer
  batches: list[dict[str, torch.Tensor]]

  def load(self, dtype: str, **folders: str) -> dict[str, Any]:
    """Reads one folder that transformers can load: "policy" or "prm"."""
    kinds = {
      "policy": transformers.AutoModelForCausalLM,
      "prm": transformers.AutoModelForTokenClassification,
    }
    ((kind, folder),) = folders.items()
    self.dtype = dtype
    self.model = kinds[kind].from_pretrained(
      folder, dtype=torch.float32, local_files_only=True
    )
    return exchange.versions("torch", "transformers", "trl")

  def run(self) -> dict[str, Any]:
    """Takes one step; returns the seconds."""
    begin = time.perf_counter()
    self._answer = take_step(self.trainer, self.batches)
    return exchange.timed(begin)

  def answer(self) -> dict[str, Any]:
    """Returns the last loss and the norm of its gradient before clipping."""
    return self._answer


class GRPOStep(StepScript):
  """Steps of GRPO."""

  def prepare(
    self,
    trainer: dict[str, Any],
    prompts: list[list[int]],
    completions: list[list[int]],
    advantages: list[list[float]],
    old_logp: list[list[float]],
  ) -> dict[str, Any]:
    """Takes fields of `TrainerConfig`, and a batch without padding.

    Prompts are [B, L], samples of one prompt contiguous. Completions,
    advantages and log-probs in nats are [B, C].
    """
    config = TrainerConfig(**trainer)
    self.trainer = make_grpo_trainer(config, self.model, self.dtype)
    completion_ids = torch.tensor(completions)
    self.batches = split(
      self.trainer,
      config.micro_batches,
      prompt_ids=torch.tensor(prompts),
      completion_ids=completion_ids,
      completion_mask=torch.ones_like(completion_ids),
      advantages=torch.tensor(advantages),
      old_per_token_logps=torch.tensor(old_logp),
    )
    return {}


if __name__ == "__main__":
  exchange.serve(GRPOStep())
