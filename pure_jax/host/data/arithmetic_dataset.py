r"""The embedded world as a TFDS data set and a tokenizer, made on first use.

The builder writes array_record files and reads them back as random-access
sources, without TensorFlow and without asking a network for anything.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pure_jax.host.contract import split_texts
from pure_jax.host.data import arithmetic
from pure_jax.host.data.arithmetic import WorldConfig
from pure_jax.host.data.judged import make_judged
from pure_jax.host.data.prepared import prepare, quiet
from pure_jax.host.data.records import DataError
from pure_jax.host.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_tokenizer,
)

SPLITS = (*arithmetic.SPLITS, "judged")
TOKENIZER_TEXTS = 2_000
# Control ids, line breaks, letters, and the merges that make whole words.
ROOM_FOR_WORDS = 34


class ArithmeticDataset(tfds.core.GeneratorBasedBuilder):
  """Problems with responses; those of held_out are never trained on."""

  # Prepared data is found by version and config alone: whoever changes what
  # `make_example` or `label_steps` return must raise this.
  VERSION = tfds.core.Version("1.4.0")
  RELEASE_NOTES = {  # noqa: RUF012
    "1.4.0": "Four in five of the responses written to be judged go wrong.",
    "1.3.0": "A split of responses written to be judged.",
    "1.2.0": "Rows in order of their index; rates are what they say; an"
    " equation that a problem needs twice counts twice.",
  }

  def __init__(self, world: WorldConfig, sizes: dict[str, int], data_dir: str):
    """Names the data set after its contents.

    Args:
      world: the world's settings.
      sizes: number of examples by split.
      data_dir: where prepared data sets are kept.
    """
    self._world, self._sizes = world, sizes
    counts = "_".join(str(sizes[split]) for split in SPLITS)
    super().__init__(
      data_dir=data_dir,
      config=tfds.core.BuilderConfig(name=f"{world.digest()}_{counts}"),
      file_format="array_record",
    )

  def _info(self) -> tfds.core.DatasetInfo:
    """Features: texts and labels."""
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "problem": tfds.features.Text(),
          "response": tfds.features.Text(),
          "labels": tfds.features.Sequence(np.int32),
          "answer": tfds.features.Scalar(np.int32),
        }
      ),
      description="Chained additions and subtractions with step labels.",
      # Row i is example i, so a larger data set begins with a smaller one.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    """One generator per split."""
    del dl_manager
    return {split: self._examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
    """As `_examples`; TFDS wants the name."""
    return self._examples(split)

  def _examples(self, split: str) -> Iterator[tuple[int, Any]]:
    """(index, example); labels hold the labelled steps alone."""
    for index in range(self._sizes[split]):
      if split == "judged":
        problem, response = make_judged(self._world, index)
      else:
        problem, response = arithmetic.make_example(self._world, split, index)
      steps = response.split(arithmetic.SEPARATOR)
      labels = arithmetic.label_steps(problem, steps)
      yield (
        index,
        {
          "problem": problem.text,
          "response": response,
          "labels": [label for label in labels if label is not None],
          "answer": problem.answer,
        },
      )


def load_world(
  world: WorldConfig, sizes: dict[str, int], data_dir: str | os.PathLike
) -> dict[str, list[dict[str, Any]]]:
  """Prepares the data set if need be, and reads it.

  Args:
    world: the world's settings.
    sizes: number of examples by split, "train", "held_out" and "judged".
    data_dir: where prepared data sets are kept; another world or size is
      another data set beside it.

  Returns:
    By split, rows with ``problem`` (text), ``response`` (text), ``labels``
    (ints of the labelled steps, 1 good and 0 bad) and ``answer``; row i is
    example i of the split, whatever the sizes.

  Raises:
    DataError: if the data set cannot be prepared, or its files are damaged.
  """
  path = pathlib.Path(data_dir).absolute()
  path.mkdir(parents=True, exist_ok=True)
  try:
    with quiet():
      source = prepare(
        lambda: ArithmeticDataset(world, sizes, str(path))
      ).as_data_source()
    return {split: _read(source[split]) for split in SPLITS}
  # TFDS, protobuf and array_record raise what they like for damaged files.
  except Exception as error:
    raise DataError(
      f"Cannot prepare or read the data set in {path}: {error}. If its files "
      "are damaged, remove that folder, and it will be made again."
    ) from error


def _read(source: Any) -> list[dict[str, Any]]:
  """Rows of a split's data source, as Python values."""
  return [
    {
      "problem": row["problem"].decode(),
      "response": row["response"].decode(),
      "labels": np.asarray(row["labels"]).tolist(),
      "answer": int(row["answer"]),
    }
    for row in source.__getitems__(range(len(source)))  # Read all at once.
  ]


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
