"""What the benchmark measures: models by name, and batches of stated sizes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

from pure_jax.models.config import ModelConfig
from pure_jax.runs.settings.models import ARCHITECTURES

STOPS = ("never", "early")


@dataclasses.dataclass(frozen=True)
class Suite:
  """What the cases of a suite differ in, besides model, rows and lengths.

  Attributes:
    stops: whether responses that end early make a case of their own.
    all_samples: whether each number of samples does; otherwise the most.
    compares: whether the responses of a prompt are compared, so that it needs
      at least two.
    most_rows: more are left out, None for no limit.
  """

  stops: bool = False
  all_samples: bool = False
  compares: bool = False
  most_rows: int | None = None


# What each does is in `suites.SUITES`; "all" runs them in this order.
SUITES = {
  "rollout": Suite(stops=True, all_samples=True),
  "score": Suite(),
  "update": Suite(compares=True),
  "credit": Suite(compares=True),
  # A PRM is trained on a batch as a whole, and keeps what its backward pass
  # needs of all rows.
  "prm": Suite(most_rows=8),
  "iteration": Suite(stops=True, compares=True),
  "kernels": Suite(compares=True),
  "precision": Suite(),
}

# No published shapes: about ten million weights, and next to none.
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
  """A measurement that cannot be made; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Case:
  """One batch on one model.

  Attributes:
    suite: one of `SUITES`.
    model: name in `MODELS`.
    rows: B, responses of the batch.
    samples: G, of each prompt; divides the rows.
    prompt_tokens: L.
    new_tokens: C.
    stops: "never", every response has C tokens; "early", a response ends by
      chance, after half of C on average where it may go on for ever.
  """

  suite: str
  model: str
  rows: int
  samples: int
  prompt_tokens: int
  new_tokens: int
  stops: str = "never"

  @property
  def prompts(self) -> int:
    """P, how many there are."""
    return self.rows // self.samples

  @property
  def read_tokens(self) -> int:
    """Of prompts and responses."""
    return self.rows * (self.prompt_tokens + self.new_tokens)

  def __str__(self) -> str:
    """The sizes as a line of the table begins."""
    return (
      f"{self.suite:10}{self.model:18}{self.prompts:3} x {self.samples:<2}"
      f"{self.prompt_tokens:5} + {self.new_tokens:<5}{self.stops:6}"
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Every value of what cases differ in.

  Attributes:
    models: names in `MODELS`.
    rows: of a batch.
    samples: of each prompt.
    lengths: pairs of prompt tokens and new tokens.
    stops: some of `STOPS`, of rollouts and iterations.
  """

  models: Sequence[str]
  rows: Sequence[int]
  samples: Sequence[int]
  lengths: Sequence[tuple[int, int]]
  stops: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Block:
  """Sizes for some suites, where all sizes for all suites would take hours.

  Attributes:
    suites: some of `SUITES`.
    sizes: what their cases combine.
  """

  suites: Sequence[str]
  sizes: Sizes


def combine_blocks(
  suites: Sequence[str], blocks: Sequence[Block]
) -> list[Case]:
  """The cases of blocks, suite by suite, none twice.

  Args:
    suites: some of `SUITES`.
    blocks: of which those that have a suite say its sizes.

  Returns:
    The cases, of a suite in the order of the blocks.

  Raises:
    BenchmarkError: if there are none.
  """
  found = {
    case: None
    for suite in suites
    for block in blocks
    if suite in block.suites
    for case in combine((suite,), block.sizes)
  }
  if not found:
    raise BenchmarkError(
      "no --samples divides any --rows (update, credit and iteration take at "
      "least 2, prm at most "
      f"{SUITES['prm'].most_rows} rows)."
    )
  return list(found)


def combine(suites: Sequence[str], sizes: Sizes) -> list[Case]:
  """All combinations that are possible, suite by suite.

  More samples than rows are none. Only a suite whose work depends on samples
  or stops has a case for each.

  Args:
    suites: some of `SUITES`.
    sizes: what to combine.

  Returns:
    The cases, none where nothing is possible.
  """
  found = []
  for suite, model, rows, (prompt, new) in itertools.product(
    suites, sizes.models, sizes.rows, sizes.lengths
  ):
    kind = SUITES[suite]
    possible = [count for count in sizes.samples if rows % count == 0]
    if not kind.all_samples:
      possible = possible and [max(possible)]
    if kind.compares:
      possible = [count for count in possible if count > 1]
    if kind.most_rows is not None and rows > kind.most_rows:
      continue
    stops = sizes.stops if kind.stops else ("never",)
    found += [
      Case(suite, model, rows, samples, prompt, new, stop)
      for samples, stop in itertools.product(possible, stops)
    ]
  return found


def parse_sizes(default: Sizes, **flags: Sequence[str] | None) -> Sizes:
  """Reads the words of the command line.

  Args:
    default: for what no flag says.
    **flags: words by field of `Sizes`, None where the flag is not given:
      names in `MODELS`, numbers of rows and samples, lengths such as "64:128",
      some of `STOPS`.

  Returns:
    What to combine.

  Raises:
    BenchmarkError: for a word that means nothing, naming its flag.
  """
  readers = {
    "models": _one_of(MODELS),
    "rows": _count,
    "samples": _count,
    "lengths": _lengths,
    "stops": _one_of(STOPS),
  }
  given = {
    name: tuple(readers[name](name, word) for word in words)
    for name, words in flags.items()
    if words is not None
  }
  return dataclasses.replace(default, **given)


def _one_of(allowed: Iterable[str]) -> Callable[[str, str], str]:
  """A reader of names."""

  def read(flag: str, word: str) -> str:
    if word not in allowed:
      raise BenchmarkError(
        f"--{flag}: {word!r} must be one of {', '.join(allowed)}."
      )
    return word

  return read


def _count(flag: str, word: str) -> int:
  """Reads a number."""
  if not _is_count(word):
    raise BenchmarkError(f"--{flag}: {word!r} must be at least 1.")
  return int(word)


def _lengths(flag: str, word: str) -> tuple[int, int]:
  """Reads two numbers."""
  parts = word.split(":")
  if len(parts) != 2 or not all(_is_count(part) for part in parts):
    raise BenchmarkError(
      f"--{flag}: {word!r} must be PROMPT:NEW in tokens, such as 64:128."
    )
  return int(parts[0]), int(parts[1])


def _is_count(text: str) -> bool:
  """Whether it is a number of at least 1."""
  return text.isdecimal() and int(text) > 0
