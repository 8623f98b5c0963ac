"""What the peers that train with TRL share: a tokenizer and a step."""

import time
from typing import Any

import exchange
import tokenizers
import torch
import transformers


def number_tokenizer(
  vocab_size: int, pad_id: int
) -> transformers.PreTrainedTokenizerFast:
  """Numbers as words: a trainer wants a tokenizer and is given ids.

  Args:
    vocab_size: how many.
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


def arguments(
  dtype: str, rows: int, parts: int, remat: bool, optimizer: dict[str, float]
) -> dict[str, Any]:
  """Fields of TrainingArguments.

  Args:
    dtype: of products; weights are float32.
    rows: B.
    parts: micro-batches of them.
    remat: whether layers are computed again for the backward pass.
    optimizer: its fields.

  Returns:
    The fields by name.
  """
  return dict(
    per_device_train_batch_size=rows // parts,
    gradient_accumulation_steps=parts,
    bf16=dtype == "bfloat16",
    use_cpu=not torch.cuda.is_available(),
    gradient_checkpointing=remat,
    report_to="none",
    **optimizer,
  )


class Step:
  """What the peers answer that take a step on a batch they are given.

  Attributes:
    trainer: made by `prepare`.
    batches: micro-batches of its step.
    scale: of their losses, so that they add up.
  """

  trainer: transformers.Trainer
  batches: list[dict[str, torch.Tensor]]
  scale: float = 1.0

  def load(self, dtype: str, **folders: str) -> dict[str, Any]:
    """Reads a folder as transformers saves it; products are of `dtype`."""
    kinds = {
      "policy": transformers.AutoModelForCausalLM,
      "prm": transformers.AutoModelForTokenClassification,
    }
    ((kind, folder),) = folders.items()
    self._dtype = dtype
    self._model = kinds[kind].from_pretrained(
      folder, dtype=torch.float32, local_files_only=True
    )
    return exchange.facts("torch", "transformers", "trl")

  def run(self) -> dict[str, Any]:
    """Takes one step, and says how long that took."""
    start = time.perf_counter()
    self._found = take_step(self.trainer, self.batches, self.scale)
    return exchange.timed(start)

  def answer(self) -> dict[str, Any]:
    """The loss and the norm of the gradient, before clipping."""
    return self._found


def take_step(
  trainer: transformers.Trainer,
  batches: list[dict[str, torch.Tensor]],
  scale: float = 1.0,
) -> dict[str, float]:
  """One step of a trainer's optimizer on the gradient of its loss.

  Args:
    trainer: whose optimizer is made.
    batches: micro-batches; their losses are summed.
    scale: of each loss before.

  Returns:
    The loss, and the norm of the gradient before clipping.
  """
  loss = 0.0
  for batch in batches:
    with trainer.accelerator.autocast():
      part = scale * trainer.compute_loss(trainer.model, batch)
    part.backward()
    loss += part.item()
  norm = torch.nn.utils.clip_grad_norm_(
    trainer.model.parameters(), trainer.args.max_grad_norm
  )
  trainer.optimizer.step()
  trainer.optimizer.zero_grad()
  return {"loss": loss, "grad_norm": norm.item()}
