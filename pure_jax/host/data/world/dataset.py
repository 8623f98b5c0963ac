r"""The data set and the tokenizer of the embedded world, made on first use.

The data set is stored by TFDS as array_record files, without TensorFlow and
without network access.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pure_jax.host.data.storage import prepared
from pure_jax.host.data.world import arithmetic, checker
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.data.world.prm_examples import make_prm_example
from pure_jax.host.distributed import preemption
from pure_jax.host.logs import console
from pure_jax.host.text.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_tokenizer,
)

SPLITS = (*arithmetic.SPLITS, "labelled")
# Examples per stored record. TFDS takes 0.2 ms to write and read a record,
# several times longer than it takes to generate one example.
RECORD_EXAMPLES = 1_000
TOKENIZER_EXAMPLES = 2_000
# So many take seconds to generate: a message says so.
MANY_EXAMPLES = 200_000
# Ids for control tokens, line breaks, letters and merges of letters.
WORD_IDS = 34
# Texts of one id each, besides the numbers.
SYMBOLS = (".\n\n", "+", "-", "=", "=?", "\\boxed{", "}")


@dataclasses.dataclass(frozen=True)
class Example:
  """A problem with a response, labelled by the checker.

  Attributes:
    problem: the text of the problem.
    response: the text of the response.
    labels: 1 (good) or 0 (bad) for each step up to the first bad one.
    answer: the right answer.
  """

  problem: str
  response: str
  labels: tuple[int, ...]
  answer: int


class ArithmeticDataset(tfds.core.GeneratorBasedBuilder):
  """The TFDS builder of the world's data set.

  A stored record contains `RECORD_EXAMPLES` examples, the last record fewer.
  """

  # A prepared data set is looked up by version and config only. Raise the
  # version with every change of the results of `make_example` or `label_steps`.
  VERSION = tfds.core.Version("1.5.0")

  def __init__(self, world: WorldConfig, sizes: dict[str, int], data_dir: str):
    """Names the data set by its world and the sizes of its splits."""
    self._world, self._sizes = world, sizes
    counts = "_".join(f"{split}_{size}" for split, size in sizes.items())
    super().__init__(
      data_dir=data_dir,
      config=tfds.core.BuilderConfig(name=f"{world.digest()}_{counts}"),
      file_format="array_record",
    )

  def _info(self) -> tfds.core.DatasetInfo:
    """The features: columns of the n examples of a stored record."""
    texts = tfds.features.Sequence(tfds.features.Text())
    numbers = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "problem": texts,
          "response": texts,
          "labels": numbers,  # All examples, one after the other.
          "label_count": numbers,
          "answer": numbers,
        }
      ),
      description="Chained additions and subtractions with step labels.",
      # Row i is example i: a larger data set begins with a smaller one.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    """One generator per split."""
    del dl_manager
    return {split: self._generate_examples(split) for split in self._sizes}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
    """Yields (number of the stored record, columns of its examples)."""
    size = self._sizes[split]
    if size >= MANY_EXAMPLES:
      console.tell(f"generating {size} {split} problems of the embedded world")
    for number, first in enumerate(range(0, size, RECORD_EXAMPLES)):
      preemption.raise_received()
      rows = [
        self._example(split, index)
        for index in range(first, min(first + RECORD_EXAMPLES, size))
      ]
      labels = itertools.chain.from_iterable(row.labels for row in rows)
      columns = {
        "problem": [row.problem for row in rows],
        "response": [row.response for row in rows],
        "labels": np.asarray([*labels], np.int32),
        "label_count": np.asarray([len(row.labels) for row in rows], np.int32),
        "answer": np.asarray([row.answer for row in rows], np.int32),
      }
      yield number, columns

  def _example(self, split: str, index: int) -> Example:
    """Generates one example of a split."""
    if split == "labelled":
      problem, response = make_prm_example(self._world, index)
    else:
      problem, response = arithmetic.make_example(self._world, split, index)
    labels = checker.label_steps(problem, response.split(arithmetic.SEPARATOR))
    known = tuple(label for label in labels if label is not None)
    return Example(problem.text, response, known, problem.answer)


def load_world(
  world: WorldConfig, sizes: Mapping[str, int], data_dir: str | os.PathLike
) -> dict[str, list[Example]]:
  """Reads the world's data set, and prepares it first if it does not exist.

  Example i of a split does not depend on the sizes.

  Args:
    world: the settings of the world.
    sizes: number of examples of each split to read; the splits are "train",
      "held_out" and "labelled".
    data_dir: folder of the prepared data sets. Every combination of world and
      sizes is a data set of its own.

  Raises:
    DataError: if the data set cannot be prepared, or its files are damaged.
  """
  path = pathlib.Path(data_dir).absolute()
  with prepared(
    lambda: ArithmeticDataset(world, dict(sizes), str(path)), path
  ) as builder:
    source = builder.as_data_source()
    return {split: _read(source[split]) for split in sizes}


def _read(source: Any) -> list[Example]:
  """Reads all examples of a split's data source."""
  examples = []
  for record in source.__getitems__(range(len(source))):  # All at once.
    labels = iter(record["labels"].tolist())
    for problem, response, count, answer in zip(
      record["problem"],
      record["response"],
      record["label_count"].tolist(),
      record["answer"].tolist(),
      strict=True,
    ):
      examples.append(
        Example(
          problem.decode(),
          response.decode(),
          tuple(itertools.islice(labels, count)),
          answer,
        )
      )
  return examples


def vocab_size(world: WorldConfig) -> int:
  """Counts the ids of the world's tokenizer, before it is made.

  Args:
    world: the settings of the world.
  """
  return len(SYMBOLS) + world.number_max + 1 + WORD_IDS


def world_tokenizer(
  world: WorldConfig, path: str | os.PathLike
) -> SentencePieceTokenizer:
  r"""The world's tokenizer, trained on its texts on first use.

  Every number is one id, as are the operators and the box. ".\n\n" is one id,
  because real vocabularies merge separators with punctuation too.

  Args:
    world: the settings of the world.
    path: the model file.
  """
  numbers = [str(number) for number in range(world.number_max + 1)]
  symbols = [*SYMBOLS, *numbers]

  def texts() -> Iterator[str]:
    for index in range(TOKENIZER_EXAMPLES):
      problem, response = arithmetic.make_example(world, "train", index)
      yield problem.text
      yield from response.split(arithmetic.SEPARATOR)
    yield from arithmetic.FILLERS
    yield "."

  return train_tokenizer(texts(), symbols, path, vocab_size=vocab_size(world))
