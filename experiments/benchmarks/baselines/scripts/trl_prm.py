"""The baseline "trl_prm": a step of TRL's PRMTrainer.

Loss, model and optimizer are the trainer's. Texts and labels are given as ids,
where the trainer would tokenize. The environment is that of `trl_prm.txt`.
"""

import dataclasses
from typing import Any

import datasets
import exchange
import trl_step
from trl.experimental import prm

# Label of a token that is not scored.
UNLABELLED = -100


class PRMStep(trl_step.StepScript):
  """Steps of a PRM."""

  def prepare(
    self,
    trainer: dict[str, Any],
    texts: list[list[int]],
    score_positions: list[list[int]],
    labels: list[list[int]],
  ) -> dict[str, Any]:
    """Takes fields of `TrainerConfig`, and texts [B, :] without padding.

    A text has score tokens at some positions, with as many labels, 1 for a
    good step, 0 for a bad one. All rows are one micro-batch.
    """
    config = trl_step.TrainerConfig(**trainer)
    config = dataclasses.replace(config, micro_batches=1)
    rows = []
    for text, positions, row_labels in zip(
      texts, score_positions, labels, strict=True
    ):
      token_labels = [UNLABELLED] * len(text)
      for position, label in zip(positions, row_labels, strict=True):
        token_labels[position] = label
      rows.append({"input_ids": text, "labels": token_labels})
    self.trainer = trl_step.start(
      prm.PRMTrainer(
        model=self.model,
        args=prm.PRMConfig(**config.training_arguments(self.dtype)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=trl_step.number_tokenizer(
          self.model.config.vocab_size, config.pad_id
        ),
      )
    )
    device = self.trainer.accelerator.device
    batch = self.trainer.data_collator(rows)
    self.batches = [{name: x.to(device) for name, x in batch.items()}]
    return {}


if __name__ == "__main__":
  exchange.serve(PRMStep())
