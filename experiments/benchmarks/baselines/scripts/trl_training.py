"""Common parts of the baselines that train with TRL: a tokenizer and a step."""

import dataclasses
import tempfile
import time
from typing import Any

import exchange
import tokenizers
import torch
import transformers


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
  """How a trainer reads its batch.

  Attributes:
    algorithm: "grpo", "rloo" or "prm".
    rows: B, samples of one prompt contiguous.
    samples: samples of each prompt.
    new_tokens: C.
    micro_batches: micro-batches of the batch; a divisor of the rows.
    pad_id: id of padding.
    remat: whether layers are computed again for the backward pass.
    optimizer: fields of transformers' TrainingArguments.
  """

  algorithm: str
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
      # Removed when the process ends.
      output_dir=_FOLDER.name,
      per_device_train_batch_size=self.rows // self.micro_batches,
      gradient_accumulation_steps=self.micro_batches,
      bf16=dtype == "bfloat16",
      use_cpu=not torch.cuda.is_available(),
      gradient_checkpointing=self.remat,
      report_to="none",
      **self.optimizer,
    )


_FOLDER = tempfile.TemporaryDirectory()


def number_tokenizer(
  vocab_size: int, pad_id: int
) -> transformers.PreTrainedTokenizerFast:
  """Makes a tokenizer with numbers as words, for a trainer that needs one.

  Args:
    vocab_size: number of words.
    pad_id: id of padding.

  Returns:
    The tokenizer.
  """
  words = {str(token): token for token in range(vocab_size)}
  model = tokenizers.models.WordLevel(words, unk_token=str(pad_id))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(model),
    pad_token=str(pad_id),
    eos_token=str(pad_id),
  )


def start(trainer: transformers.Trainer) -> transformers.Trainer:
  """Prepares a trainer for steps outside its own training loop.

  Args:
    trainer: just made.

  Returns:
    The trainer.
  """
  trainer.create_optimizer()
  trainer.model.train()
  return trainer


class StepScript:
  """Takes steps on a batch; a subclass prepares trainer and batch.

  Attributes:
    dtype: dtype of products.
    model: in float32.
    trainer: set by `prepare`.
    batches: its micro-batches, set by `prepare`.
    scale: factor of the losses of micro-batches, whose sum is the loss.
  """

  dtype: str
  model: transformers.PreTrainedModel
  trainer: transformers.Trainer
  batches: list[dict[str, torch.Tensor]]
  scale: float = 1.0

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
    return exchange.info("torch", "transformers", "trl")

  def run(self) -> dict[str, Any]:
    """Takes one step; returns the seconds."""
    start = time.perf_counter()
    self._answer = take_step(self.trainer, self.batches, self.scale)
    return exchange.timed(start)

  def answer(self) -> dict[str, Any]:
    """Returns the last loss and the norm of its gradient before clipping."""
    return self._answer


def take_step(
  trainer: transformers.Trainer,
  batches: list[dict[str, torch.Tensor]],
  scale: float = 1.0,
) -> dict[str, float]:
  """Takes one optimizer step on the gradient of a trainer's loss.

  Args:
    trainer: with an optimizer.
    batches: micro-batches, whose losses are summed.
    scale: factor of each loss.

  Returns:
    The loss, and the norm of the gradient before clipping.
  """
  total = 0.0
  for batch in batches:
    with trainer.accelerator.autocast():
      loss = scale * trainer.compute_loss(trainer.model, batch)
    loss.backward()
    total += loss.item()
  norm = torch.nn.utils.clip_grad_norm_(
    trainer.model.parameters(), trainer.args.max_grad_norm
  )
  trainer.optimizer.step()
  trainer.optimizer.zero_grad()
  return {"loss": total, "grad_norm": norm.item()}
