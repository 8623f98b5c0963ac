r"""The embedded world as a TFDS data set and a tokenizer, made on first use.

The builder writes array_record files and reads them back as random-access
sources, without TensorFlow and without asking a network for anything.
"""

import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pure_jax.host.data.prepared import prepare, quiet
from pure_jax.host.data.records import DataError
from pure_jax.host.data.world import arithmetic
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.data.world.prm_examples import make_prm_example
from pure_jax.host.text.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_tokenizer,
)
from pure_jax.host.text.tokenization import split_texts

SPLITS = (*arithmetic.SPLITS, "labelled")
# Examples of a record. TFDS takes 0.2 ms to write and read one of a single
# example, which is several times what making the example takes.
RECORD_EXAMPLES = 1_000
TOKENIZER_TEXTS = 2_000
# Control ids, line breaks, letters, and the merges that make whole words.
ROOM_FOR_WORDS = 34


class ArithmeticDataset(tfds.core.GeneratorBasedBuilder):
  """Problems with responses; those of held_out are never trained on.

  A record holds `RECORD_EXAMPLES` of them, the last one fewer.
  """

  # Prepared data is found by version and config alone: whoever changes what
  # `make_example` or `label_steps` return must raise this.
  VERSION = tfds.core.Version("1.5.0")
  RELEASE_NOTES = {  # noqa: RUF012
    "1.5.0": "A record holds many examples; the examples are the same.",
    "1.4.0": "Four in five of the responses written to be labelled go wrong.",
    "1.3.0": "A split of responses written to be labelled.",
    "1.2.0": "Rows in order of their index; rates are what they say; an"
    " equation that a problem needs twice counts twice.",
  }

  def __init__(self, world: WorldConfig, sizes: dict[str, int], data_dir: str):
    """Names the data set after its contents.

    Args:
      world: the world's settings.
      sizes: number of examples of each split that it has.
      data_dir: where prepared data sets are kept.
    """
    self._world, self._sizes = world, sizes
    counts = "_".join(f"{split}_{size}" for split, size in sizes.items())
    super().__init__(
      data_dir=data_dir,
      config=tfds.core.BuilderConfig(name=f"{world.digest()}_{counts}"),
      file_format="array_record",
    )

  def _info(self) -> tfds.core.DatasetInfo:
    """Features: texts and labels of the n examples of a record."""
    texts = tfds.features.Sequence(tfds.features.Text())
    numbers = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "problem": texts,
          "response": texts,
          "labels": numbers,  # Of all examples, one after the other.
          "label_count": numbers,
          "answer": numbers,
        }
      ),
      description="Chained additions and subtractions with step labels.",
      # Row i is example i, so a larger data set begins with a smaller one.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    """One generator per split."""
    del dl_manager
    return {split: self._generate_examples(split) for split in self._sizes}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
    """(number of the record, its examples by column)."""
    made = self._examples(split)
    for number in itertools.count():
      rows = list(itertools.islice(made, RECORD_EXAMPLES))
      if not rows:
        return
      labels = [row["labels"] for row in rows]
      columns = {
        name: [row[name] for row in rows]
        for name in ("problem", "response", "answer")
      }
      columns["labels"] = list(itertools.chain.from_iterable(labels))
      columns["label_count"] = [len(found) for found in labels]
      for name in ("labels", "label_count", "answer"):
        columns[name] = np.asarray(columns[name], np.int32)
      yield number, columns

  def _examples(self, split: str) -> Iterator[dict[str, Any]]:
    """Examples as `load_world` returns them."""
    for index in range(self._sizes[split]):
      if split == "labelled":
        problem, response = make_prm_example(self._world, index)
      else:
        problem, response = arithmetic.make_example(self._world, split, index)
      labels = arithmetic.label_steps(
        problem, response.split(arithmetic.SEPARATOR)
      )
      yield {
        "problem": problem.text,
        "response": response,
        "labels": [label for label in labels if label is not None],
        "answer": problem.answer,
      }


def load_world(
  world: WorldConfig, sizes: Mapping[str, int], data_dir: str | os.PathLike
) -> dict[str, list[dict[str, Any]]]:
  """Prepares the data set if need be, and reads it.

  Args:
    world: the world's settings.
    sizes: number of examples by split, of "train", "held_out" and "labelled"
      those that are needed.
    data_dir: where prepared data sets are kept; another world or other sizes
      are another data set beside it.

  Returns:
    By split of `sizes`, rows with ``problem`` (text), ``response`` (text),
    ``labels`` (ints of the labelled steps, 1 good and 0 bad) and ``answer``;
    row i is example i of the split, whatever the sizes.

  Raises:
    DataError: if the data set cannot be prepared, or its files are damaged.
  """
  path = pathlib.Path(data_dir).absolute()
  path.mkdir(parents=True, exist_ok=True)
  try:
    with quiet():
      source = prepare(
        lambda: ArithmeticDataset(world, dict(sizes), str(path))
      ).as_data_source()
    return {split: _read(source[split]) for split in sizes}
  # TFDS, protobuf and array_record raise what they like for damaged files.
  except Exception as error:
    raise DataError(
      f"Cannot prepare or read the data set in {path}: {error}. If its files "
      "are damaged, remove that folder, and it will be made again."
    ) from error


def _read(source: Any) -> list[dict[str, Any]]:
  """Rows of a split's data source, as Python values."""
  rows = []
  for record in source.__getitems__(range(len(source))):  # All at once.
    labels = iter(record["labels"].tolist())
    for problem, response, count, answer in zip(
      record["problem"],
      record["response"],
      record["label_count"].tolist(),
      record["answer"].tolist(),
      strict=True,
    ):
      rows.append(
        {
          "problem": problem.decode(),
          "response": response.decode(),
          "labels": list(itertools.islice(labels, count)),
          "answer": answer,
        }
      )
  return rows


def world_tokenizer(
  world: WorldConfig, path: str | os.PathLike
) -> SentencePieceTokenizer:
  r"""The world's tokenizer, trained from its text on first use.

  Numbers are one id each, as are operators and the box; ".\n\n" is a merged
  separator, as real vocabularies have them.

  Args:
    world: the world's settings.
    path: the model file.

  Returns:
    The tokenizer.
  """
  numbers = [str(number) for number in range(world.number_max + 1)]
  symbols = [".\n\n", "+", "-", "=", "=?", "\\boxed{", "}", *numbers]

  def texts() -> Iterator[str]:
    for index in range(TOKENIZER_TEXTS):
      problem, response = arithmetic.make_example(world, "train", index)
      yield problem.text
      yield from response.split(arithmetic.SEPARATOR)
    yield from arithmetic.SENTENCES
    yield "."

  return train_tokenizer(
    texts(), symbols, path, vocab_size=len(symbols) + ROOM_FOR_WORDS
  )


def label_rollout(
  tokenizer: SentencePieceTokenizer,
  problems: Sequence[str],
  tokens: np.ndarray,
  completion_mask: np.ndarray,
  max_steps: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Labels of sampled responses, aligned with the device's steps.

  Where a response has more than `max_steps` steps, the last one kept is the
  rest of it: good only if all of that is labelled good.

  Args:
    tokenizer: decodes the responses.
    problems: B problem texts.
    tokens: [B, C] int, completion ids.
    completion_mask: [B, C] bool.
    max_steps: S, as given to `steps.split_steps`.

  Returns:
    (labels [B, S] int32, label_mask [B, S] bool).
  """
  labels = np.zeros((len(problems), max_steps), np.int32)
  label_mask = np.zeros((len(problems), max_steps), bool)
  step_texts = split_texts(tokenizer, tokens, completion_mask)
  for row, (text, steps) in enumerate(zip(problems, step_texts, strict=True)):
    found = arithmetic.label_steps(arithmetic.parse_problem(text), steps)
    if len(found) > max_steps:
      rest = found[max_steps - 1 :]
      known = [label for label in rest if label is not None]
      found = [*found[: max_steps - 1], min(known) if known else None]
    for step, label in enumerate(found):
      if label is not None:
        labels[row, step], label_mask[row, step] = label, True
  return labels, label_mask
