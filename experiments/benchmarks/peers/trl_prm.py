"""The peer "trl_prm": one gradient step of TRL's PRMTrainer.

Texts and labels are given as ids, where it would tokenize; loss, model and
optimizer are the trainer's. Its environment is that of `trl_prm.txt`.
"""

import tempfile
from typing import Any

import datasets
import exchange
import training
from trl.experimental import prm

# A token without a label.
UNLABELLED = -100


class Trainer(training.Step):
  """A trainer, and the batch that it is given."""

  def prepare(
    self,
    texts: list[list[int]],
    scored: list[list[int]],
    labels: list[list[int]],
    pad_id: int,
    remat: bool,
    optimizer: dict[str, float],
  ) -> dict[str, Any]:
    """Makes the trainer and its batch.

    Args:
      texts: ids of each row, without padding.
      scored: places of score tokens in each.
      labels: of those, 1 good, 0 bad.
      pad_id: id of padding.
      remat: whether layers are computed again for the backward pass.
      optimizer: fields of TrainingArguments.
    """
    rows = []
    for text, places, classes in zip(texts, scored, labels, strict=True):
      marked = [UNLABELLED] * len(text)
      for place, label in zip(places, classes, strict=True):
        marked[place] = label
      rows.append({"input_ids": text, "labels": marked})
    self._folder = tempfile.TemporaryDirectory()  # Gone with the process.
    self.trainer = trainer = prm.PRMTrainer(
      model=self._model,
      args=prm.PRMConfig(
        output_dir=self._folder.name,
        **training.arguments(self._dtype, len(rows), 1, remat, optimizer),
      ),
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=training.number_tokenizer(
        self._model.config.vocab_size, pad_id
      ),
    )
    trainer.create_optimizer()
    trainer.model.train()
    device = trainer.accelerator.device
    batch = trainer.data_collator(rows)
    self.batches = [{name: x.to(device) for name, x in batch.items()}]
    return {}


if __name__ == "__main__":
  exchange.serve(Trainer())
