"""What the benchmark measures: models by name, and batches of stated sizes."""

import dataclasses
import itertools
from collections.abc import Sequence

from architectures import ARCHITECTURES

from pure_jax.models.config import ModelConfig

SUITES = ("rollout", "score", "update", "credit")
STOPS = ("never", "early")

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
    stops: "never", every response has C tokens; "early", of a rollout, a
      response ends by chance, after half of C on average where it may go on
      for ever.
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

  def __str__(self) -> str:
    """The sizes as a line of the table begins."""
    return (
      f"{self.suite:8}{self.model:18}{self.prompts:3} x {self.samples:<2}"
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
    stops: some of `STOPS`, of rollouts.
  """

  models: Sequence[str]
  rows: Sequence[int]
  samples: Sequence[int]
  lengths: Sequence[tuple[int, int]]
  stops: Sequence[str]


QUICK = Sizes(("tiny",), (4,), (2,), ((8, 6),), STOPS)


def combine(suites: Sequence[str], sizes: Sizes) -> list[Case]:
  """All combinations that are possible, suite by suite.

  More samples than rows are none. Scores and updates compare the responses of
  a prompt, so they are measured at the most samples that are asked for and at
  full length: what they do depends on neither.

  Args:
    suites: some of `SUITES`.
    sizes: what to combine.

  Returns:
    The cases.

  Raises:
    BenchmarkError: if there are none.
  """
  found = []
  for suite, model, rows, (prompt, new) in itertools.product(
    suites, sizes.models, sizes.rows, sizes.lengths
  ):
    possible = [count for count in sizes.samples if rows % count == 0]
    stops = sizes.stops
    if suite != "rollout":
      possible, stops = possible and [max(possible)], ("never",)
    if suite in ("update", "credit"):
      possible = [count for count in possible if count > 1]
    found += [
      Case(suite, model, rows, samples, prompt, new, stop)
      for samples, stop in itertools.product(possible, stops)
    ]
  if not found:
    raise BenchmarkError(
      "no --samples divides any --rows (update and credit take at least 2)."
    )
  return found


def parse_sizes(
  models: Sequence[str],
  rows: Sequence[str],
  samples: Sequence[str],
  lengths: Sequence[str],
  stops: Sequence[str],
) -> Sizes:
  """Reads the words of the command line.

  Args:
    models: names in `MODELS`.
    rows: numbers.
    samples: numbers.
    lengths: such as "64:128".
    stops: some of `STOPS`.

  Returns:
    What to combine.

  Raises:
    BenchmarkError: for a word that means nothing, naming its flag.
  """
  for flag, words, allowed in (
    ("models", models, MODELS),
    ("stops", stops, STOPS),
  ):
    for word in words:
      if word not in allowed:
        raise BenchmarkError(
          f"--{flag}: {word!r} must be one of {', '.join(allowed)}."
        )
  pairs = []
  for text in lengths:
    parts = text.split(":")
    if len(parts) != 2 or not all(_is_count(part) for part in parts):
      raise BenchmarkError(
        f"--lengths: {text!r} must be PROMPT:NEW in tokens, such as 64:128."
      )
    pairs.append((int(parts[0]), int(parts[1])))
  for flag, words in (("rows", rows), ("samples", samples)):
    for word in words:
      if not _is_count(word):
        raise BenchmarkError(f"--{flag}: {word!r} must be at least 1.")
  return Sizes(
    models, [int(x) for x in rows], [int(x) for x in samples], pairs, stops
  )


def _is_count(text: str) -> bool:
  """Whether it is a number of at least 1."""
  return text.isdecimal() and int(text) > 0
