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


class PRMStep(trl_step.StepScript):
  """Steps of a PRM."""

  def prepare(
    self, trainer: dict[str, Any], rows: list[dict[str, list[int]]]
  ) -> dict[str, Any]:
    """Takes fields of `TrainerConfig`, and texts as `input_ids` and `labels`.

    There is no padding. All rows are one micro-batch.
    """
    config = trl_step.TrainerConfig(**trainer)
    config = dataclasses.replace(config, micro_batches=1)
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
