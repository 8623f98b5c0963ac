"""The cases of a benchmark: which batch is measured, and how the models run."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.parallel.kernel_calls import Kernels
from pure_jax.runs.settings.models import ARCHITECTURES

STOPS = ("never", "early")

# Shapes of no published model: ten million weights, and a few thousand.
_10M = ModelConfig(
  vocab_size=8192,
  width=320,
  num_layers=7,
  num_heads=10,
  num_kv_heads=2,
  head_dim=32,
  mlp_width=832,
)
_TINY = ModelConfig(
  vocab_size=128,
  width=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_width=64,
)
MODELS = {"tiny": _TINY, "10m": _10M, **ARCHITECTURES}


class BenchmarkError(RuntimeError):
  """A measurement is impossible or invalid; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Options:
  """How the models of all cases run.

  Attributes:
    dtype: compute dtype of matrix products; "auto" stands for float32 on a CPU,
      else bfloat16.
    rows_at_a_time: most rows in a micro-batch of scores and updates.
    remat: activations that the backward pass keeps, see `ModelConfig`. On a
      CPU nothing was faster than "dots" for a model that scans its layers
      (docs/speed.md).
    logits_chunk: see `ModelConfig`.
    attention_chunk: see `ModelConfig`.
    attention: kernel of attention of whole texts, see `Kernels`.
    engine_slots: slots of the second engine, which are fewer than the
      responses of a large batch; the first has a slot for every response.
    engine_chunk: tokens that an engine decodes between two host syncs.
    cache_dtype: dtype of keys and values in rollouts, see `ModelConfig`.
    int8_matrices: whether rollouts read matrices in int8, see `ModelConfig`.
    weights: a Hugging Face folder with the weights of every case; None draws
      them at random.
  """

  dtype: str = "float32"
  rows_at_a_time: int = 8
  remat: str = "dots"
  logits_chunk: int | None = None
  attention_chunk: int | None = None
  attention: str = "xla"
  engine_slots: int = 16
  engine_chunk: int = 16
  cache_dtype: str | None = None
  int8_matrices: bool = False
  weights: str | None = None

  @property
  def rounded(self) -> bool:
    """Whether rollouts round weights, keys or values."""
    return self.int8_matrices or self.cache_dtype is not None


@dataclasses.dataclass(frozen=True)
class Case:
  """One batch on one model.

  Attributes:
    suite: name of the suite.
    model: name in `MODELS`.
    rows: B, responses of the batch.
    samples: G, responses per prompt; divides the rows.
    prompt_tokens: L.
    new_tokens: C.
    stops: "never" if every response has C tokens; "early" if each token may
      end the response, with a mean length of C / 2 before the cut at C.
    options: how the model runs.
  """

  suite: str
  model: str
  rows: int
  samples: int
  prompt_tokens: int
  new_tokens: int
  stops: str = "never"
  options: Options = Options()

  @property
  def prompts(self) -> int:
    """P, the number of prompts."""
    return self.rows // self.samples

  @property
  def vocab_size(self) -> int:
    """V, the number of ids that the model knows."""
    return MODELS[self.model].vocab_size

  @property
  def model_config(self) -> ModelConfig:
    """The model as it is trained and scored."""
    return dataclasses.replace(
      MODELS[self.model],
      compute_dtype=self.options.dtype,
      remat=self.options.remat,
      logits_chunk=self.options.logits_chunk,
      attention_chunk=self.options.attention_chunk,
    )

  @property
  def rollout_config(self) -> ModelConfig:
    """The model as rollouts run it."""
    return dataclasses.replace(
      self.model_config,
      cache_dtype=self.options.cache_dtype,
      int8_matrices=self.options.int8_matrices,
    )

  @property
  def layout(self) -> sharding.Layout:
    """One device, with the kernels of the case."""
    return sharding.make_layout(kernels=Kernels(self.options.attention))

  @property
  def itemsize(self) -> int:
    """Bytes of a weight in the compute dtype."""
    return jnp.dtype(self.options.dtype).itemsize

  @property
  def sizes(self) -> dict[str, Any]:
    """All fields but the options, which all cases of a run share."""
    fields = dataclasses.asdict(self)
    del fields["options"]
    return fields

  @property
  def total_tokens(self) -> int:
    """Tokens of all prompts, once per response, and of all responses."""
    return self.rows * (self.prompt_tokens + self.new_tokens)

  def __str__(self) -> str:
    """The first columns of the case's lines in the table."""
    return (
      f"{self.suite:10}{self.model:18}{self.prompts:3} x {self.samples:<2}"
      f"{self.prompt_tokens:5} + {self.new_tokens:<5}{self.stops:6}"
    )


@dataclasses.dataclass(frozen=True)
class Suite:
  """One stage of training, and the cases in which it is measured.

  Attributes:
    name: name of the suite.
    compile_arms: case -> the compiled arms of a case by name.
    bytes_per_weight: bytes that the suite holds for each weight of the policy,
      as a function of the bytes of a weight in the compute dtype.
    stops: whether the cases differ in whether responses end early.
    all_samples: whether every number of samples makes a case; False takes only
      the largest.
    compares: whether the responses of a prompt are compared with each other,
      which takes at least two.
    most_rows: the largest batch that is measured, None for no limit.
  """

  name: str
  compile_arms: Callable[[Case], dict[str, Any]]
  bytes_per_weight: Callable[[int], int]
  stops: bool = False
  all_samples: bool = False
  compares: bool = False
  most_rows: int | None = None


@dataclasses.dataclass(frozen=True)
class Block:
  """Sizes for some suites: all sizes for all suites would take hours.

  Attributes:
    suites: names of suites.
    models: names in `MODELS`; cases combine them with the following values.
    rows: responses per batch.
    samples: responses per prompt.
    lengths: pairs of prompt tokens and new tokens.
    stops: some of `STOPS`, for suites whose cases differ in them.
  """

  suites: Sequence[str]
  models: Sequence[str]
  rows: Sequence[int]
  samples: Sequence[int]
  lengths: Sequence[tuple[int, int]]
  stops: Sequence[str]


def combine_blocks(
  suites: Sequence[Suite], blocks: Sequence[Block], options: Options
) -> list[Case]:
  """Lists the cases of blocks, suite by suite, each once.

  Raises:
    BenchmarkError: if there are none.
  """
  # A dict keeps the order and drops repetitions.
  cases = {
    case: None
    for suite in suites
    for block in blocks
    if suite.name in block.suites
    for case in _combine(suite, block, options)
  }
  if not cases:
    names = ", ".join(suite.name for suite in suites)
    least = 1 + all(suite.compares for suite in suites)
    limits = {suite.most_rows for suite in suites}
    most = "" if None in limits else f" and --rows of at most {max(limits)}"
    raise BenchmarkError(
      f"{names}: no case. The preset must have sizes of the suite, and some "
      f"--samples of at least {least} must divide some --rows{most}."
    )
  return list(cases)


def _combine(suite: Suite, block: Block, options: Options) -> Iterator[Case]:
  """The cases of one suite that the sizes of a block allow."""
  for model, rows, (prompt, new) in itertools.product(
    block.models, block.rows, block.lengths
  ):
    if suite.most_rows is not None and rows > suite.most_rows:
      continue
    counts = [count for count in block.samples if rows % count == 0]
    if not suite.all_samples:
      counts = counts and [max(counts)]
    stops = block.stops if suite.stops else ("never",)
    for count, stop in itertools.product(counts, stops):
      if count > 1 or not suite.compares:
        yield Case(suite.name, model, rows, count, prompt, new, stop, options)


def parse_sizes(**flags: Sequence[str] | None) -> dict[str, tuple[Any, ...]]:
  """Parses the words of flags, which have the names of fields of `Block`.

  A flag that is None is left out. Lengths are words such as "64:128".

  Raises:
    BenchmarkError: naming the flag of a word that cannot be parsed.
  """
  return {
    flag: tuple(_parse_word(flag, word) for word in words)
    for flag, words in flags.items()
    if words is not None
  }


def _parse_word(flag: str, word: str) -> str | int | tuple[int, int]:
  names = {"models": MODELS, "stops": STOPS}.get(flag)
  if names is not None:
    if word not in names:
      raise BenchmarkError(
        f"--{flag}: {word!r} must be one of {', '.join(names)}."
      )
    return word
  numbers = word.split(":")
  # int() raises for texts of thousands of digits.
  short = all(x.isdecimal() and len(x) < 12 for x in numbers)
  positive = short and all(int(x) > 0 for x in numbers)
  if flag == "lengths":
    if not positive or len(numbers) != 2:
      raise BenchmarkError(
        f"--{flag}: {word!r} must be PROMPT:NEW in tokens, such as 64:128."
      )
    return int(numbers[0]), int(numbers[1])
  if not positive or len(numbers) != 1:
    raise BenchmarkError(
      f"--{flag}: {word[:20]!r} must be at least 1 and have at most 11 digits."
    )
  return int(word)
