"""Where the Hugging Face hub has a data set in each of the named formats.

`ORG/NAME` in a config stands for the file that this table has for the use: to
train on, or to evaluate on. docs/public_data.md says what was checked of each
file. The formats of GSM8K's model-written solutions (`gsm8k_steps` and others)
have no entry: that file is on GitHub alone.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PublicData:
  """A data set of the hub.

  Attributes:
    repo_id: ORG/NAME.
    train: path in the data set of the file to train on; None without one.
    held_out: path of the file to evaluate on; None without one.
    parts: paths of the files of a data set that has several to evaluate on;
      none of them stands for the whole.
  """

  repo_id: str
  train: str | None = None
  held_out: str | None = None
  parts: tuple[str, ...] = ()

  def file(self, *, for_training: bool) -> str | None:
    """The path of the file that the id alone stands for.

    A file has one use: no test set is trained on because a config names only
    its data set.

    Args:
      for_training: whether it is trained on, or evaluated on.

    Returns:
      The path; None if the data set has no file for this use, or several.
    """
    return self.train if for_training else self.held_out

  def files(self) -> tuple[str, ...]:
    """The paths of all files."""
    named = (self.train, self.held_out, *self.parts)
    return tuple(path for path in named if path is not None)


_TRAIN, _TEST = (
  "data/train-00000-of-00001.parquet",
  "data/test-00000-of-00001.parquet",
)

# By the names of `named.FORMATS`.
PUBLIC: dict[str, PublicData] = {
  "gsm8k": PublicData(
    "openai/gsm8k",
    train="main/train-00000-of-00001.parquet",
    held_out="main/test-00000-of-00001.parquet",
  ),
  "math8k": PublicData(
    "hkust-nlp/SimpleRL-Zoo-Data",
    train="simplelr_qwen_level3to5/train.parquet",
  ),
  "math500": PublicData("HuggingFaceH4/MATH-500", held_out="test.jsonl"),
  "minerva_math": PublicData("math-ai/minervamath", held_out="test.jsonl"),
  "olympiadbench": PublicData(
    "Hothan/OlympiadBench",
    held_out=("OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet"),
  ),
  "aime24": PublicData("HuggingFaceH4/aime_2024", held_out=_TRAIN),
  "amc23": PublicData("math-ai/amc23", held_out="test-00000-of-00001.parquet"),
  "stepwise": PublicData("trl-lib/prm800k", train=_TRAIN, held_out=_TEST),
  "math_shepherd": PublicData(
    "peiyi9979/Math-Shepherd", train="math-shepherd.jsonl"
  ),
  "processbench": PublicData(
    "Qwen/ProcessBench",
    parts=("gsm8k.json", "math.json", "olympiadbench.json", "omnimath.json"),
  ),
  "prm800k": PublicData(
    "tasksource/PRM800K",
    train="phase2_train.jsonl",
    held_out="phase2_test.jsonl",
  ),
}
