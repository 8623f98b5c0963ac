"""The peer "trl": one gradient step of TRL's GRPOTrainer, on given advantages.

Loss, model and optimizer are the trainer's; responses, their advantages and
old log-probs are given, where it would generate and score. Its environment is
that of `trl.txt`.
"""

import tempfile
import time
from typing import Any

import datasets
import exchange
import tokenizers
import torch
import transformers
import trl


class Updater:
  """A trainer, and the batch that it is given."""

  def load(self, folder: str, dtype: str) -> dict[str, Any]:
    """Reads a folder as transformers saves it; products are of `dtype`."""
    self._dtype = dtype
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, local_files_only=True
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
    rows = len(prompts)
    self._folder = tempfile.TemporaryDirectory()  # Gone with the process.
    self._trainer = trl.GRPOTrainer(
      model=self._model,
      reward_funcs=lambda completions, **_: [0.0] * len(completions),
      args=trl.GRPOConfig(
        output_dir=self._folder.name,
        per_device_train_batch_size=rows // parts,
        gradient_accumulation_steps=parts,
        num_generations=samples,
        max_completion_length=len(completions[0]),
        beta=0.0,
        epsilon=0.2,
        loss_type="bnpo",  # Mean over tokens; all rows are equally long.
        bf16=self._dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=remat,
        report_to="none",
        **optimizer,
      ),
      train_dataset=datasets.Dataset.from_list([{"prompt": "0"}] * rows),
      processing_class=_tokenizer(self._model.config.vocab_size, pad_id),
    )
    trainer = self._trainer
    # The training loop, which is not run here, sets these.
    trainer.current_gradient_accumulation_steps = parts
    trainer.create_optimizer()
    trainer.model.train()
    batch = {
      "prompt_ids": torch.tensor(prompts),
      "completion_ids": torch.tensor(completions),
      "advantages": torch.tensor(advantages),
      "old_per_token_logps": torch.tensor(old_logp),
    }
    for name in ("prompt", "completion"):
      batch[f"{name}_mask"] = torch.ones_like(batch[f"{name}_ids"])
    device = trainer.accelerator.device
    split = {
      name: value.to(device).chunk(parts) for name, value in batch.items()
    }
    self._batches = [
      {name: values[part] for name, values in split.items()}
      for part in range(parts)
    ]
    return {}

  def run(self) -> dict[str, Any]:
    """Takes one step, and says how long that took."""
    trainer = self._trainer
    start = time.perf_counter()
    loss = 0.0
    for batch in self._batches:
      with trainer.accelerator.autocast():
        part = trainer.compute_loss(trainer.model, batch)
      part.backward()
      loss += part.item()
    norm = torch.nn.utils.clip_grad_norm_(
      trainer.model.parameters(), trainer.args.max_grad_norm
    )
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    self._found = {"loss": loss, "grad_norm": norm.item()}
    return exchange.timed(start)

  def answer(self) -> dict[str, Any]:
    """The loss and the norm of the gradient, before clipping."""
    return self._found


def _tokenizer(
  vocab_size: int, pad_id: int
) -> transformers.PreTrainedTokenizerFast:
  """Numbers as words: the trainer wants a tokenizer and is given ids."""
  words = {str(token): token for token in range(vocab_size)}
  model = tokenizers.models.WordLevel(words, unk_token=str(pad_id))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(model),
    pad_token=str(pad_id),
    eos_token=str(pad_id),
  )


if __name__ == "__main__":
  exchange.serve(Updater())
