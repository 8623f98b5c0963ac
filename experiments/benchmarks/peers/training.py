"""What the peers that train with TRL share: a tokenizer and a step."""

from typing import Any

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


def take_step(
  trainer: transformers.Trainer, batches: list[dict[str, torch.Tensor]]
) -> dict[str, float]:
  """One step of a trainer's optimizer on the gradient of its loss.

  Args:
    trainer: whose optimizer is made.
    batches: micro-batches; their losses are summed.

  Returns:
    The loss, and the norm of the gradient before clipping.
  """
  loss = 0.0
  for batch in batches:
    with trainer.accelerator.autocast():
      part = trainer.compute_loss(trainer.model, batch)
    part.backward()
    loss += part.item()
  norm = torch.nn.utils.clip_grad_norm_(
    trainer.model.parameters(), trainer.args.max_grad_norm
  )
  trainer.optimizer.step()
  trainer.optimizer.zero_grad()
  return {"loss": loss, "grad_norm": norm.item()}
