r"""Problems of the embedded world, and demonstrations by imperfect teachers.

A problem is a chain such as ``3+5-2=?``. A response computes it from left to
right, one equation per step, and ends with a box::

  3+5=8 <blank line> 8-2=6 <blank line> \boxed{6}

The teachers make mistakes (slips, wrong operands, a misconception that most of
them share, skipping to the answer) and write vacuous sentences. Labels in the
style of PRM800K call a vacuous step good, because it claims nothing false.
Sum-form credit can be exploited by such steps: it pays for every good step,
whether or not the step does anything.
"""

import dataclasses
import hashlib
import re

import numpy as np

from pure_jax.host.text.tokenization import SEPARATOR
from pure_jax.ranges import PROBABILITY, within
from pure_jax.settings import SEEDS, Seed

FILLERS = ("Let me think.", "Let me check.")  # Sentences of vacuous steps.
SPLITS = ("train", "held_out")
HELD_OUT_ONE_IN = 8  # One problem in so many is held out.
MAX_OPERATIONS = 1_000
MAX_NUMBER = 100_000
MAX_DRAWS = 10_000  # Draws of problems before a split counts as empty.

_TERM = re.compile(r"([+-]?)(\d+)")


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """The range of the problems, and the mistakes of the demonstrations.

  Attributes:
    seed: random seed of problems and demonstrations, 0..2^32 - 1.
    min_operations: smallest number of operations (+ or -) of a problem.
    max_operations: largest number of operations of a problem, at most
      `MAX_OPERATIONS`.
    operand_max: operands are 1..operand_max. With max_operations it gives
      `number_max`, which is at most `MAX_NUMBER`.
    value_max: true intermediate values are 0..value_max.
    slip_rate: probability, per step, of a result that is off by one or two.
    wrong_operand_rate: probability, per step, of a wrong operand.
    skip_rate: probability, per demonstration, that it has no equations.
    misconception_rate: probability, per demonstration, that the first
      subtraction is carried out as an addition.
    vacuous_rate: probability, before each step, of a vacuous step.
  """

  seed: Seed = 0
  min_operations: int = 2
  max_operations: int = 5
  operand_max: int = 5
  value_max: int = 20
  slip_rate: float = 0.05
  wrong_operand_rate: float = 0.03
  skip_rate: float = 0.05
  misconception_rate: float = 0.52
  vacuous_rate: float = 0.15

  def __post_init__(self):
    """Validates the fields."""
    if not 1 <= self.min_operations <= self.max_operations:
      raise ValueError(
        "min_operations must be at least 1 and at most max_operations, got "
        f"{self.min_operations} and {self.max_operations}."
      )
    if not 2 <= self.operand_max <= self.value_max:
      raise ValueError(
        "operand_max must be at least 2 and at most value_max, got "
        f"{self.operand_max} and {self.value_max}."
      )
    if self.max_operations > MAX_OPERATIONS:
      raise ValueError(
        f"max_operations must be at most {MAX_OPERATIONS}, got "
        f"{self.max_operations}: longer problems take minutes to generate, and "
        "a response needs six tokens for each operation."
      )
    if self.number_max > MAX_NUMBER:
      raise ValueError(
        f"operand_max={self.operand_max} with max_operations="
        f"{self.max_operations} makes numbers up to {self.number_max}, and "
        f"every number is a token: they may go up to {MAX_NUMBER}. Lower one "
        "of the two."
      )
    if not 0 <= self.seed < SEEDS:
      raise ValueError(f"seed must be in [0, 2**32), got {self.seed}.")
    rates = "slip_rate wrong_operand_rate skip_rate misconception_rate"
    within(*PROBABILITY, self, f"{rates} vacuous_rate")

  @property
  def number_max(self) -> int:
    """The largest number that a demonstration can contain."""
    return self.operand_max * (self.max_operations + 1) + 2

  def digest(self) -> str:
    """A hash of all fields."""
    text = repr(dataclasses.astuple(self))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


@dataclasses.dataclass(frozen=True)
class ArithmeticProblem:
  """A chain ``first op operand op operand ...``.

  Attributes:
    first: the first number.
    operations: (operator, operand) pairs. The operator is "+" or "-".
  """

  first: int
  operations: tuple[tuple[str, int], ...]

  @property
  def chain(self) -> str:
    """The text of the chain, without ``=?``."""
    return str(self.first) + "".join(f"{o}{n}" for o, n in self.operations)

  @property
  def text(self) -> str:
    """The text of the problem."""
    return f"{self.chain}=?"

  @property
  def answer(self) -> int:
    """The value of the chain."""
    value = self.first
    for operator, operand in self.operations:
      value = compute(value, operator, operand)
    return value


def compute(left: int, operator: str, right: int) -> int:
  """Carries out one operation; the result may be negative.

  Args:
    left: the value so far.
    operator: "+" or "-".
    right: the operand.
  """
  return left + right if operator == "+" else left - right


def parse_problem(text: str) -> ArithmeticProblem:
  """Parses the text of a problem.

  Args:
    text: a text such as ``3+5-2=?``.

  Raises:
    ValueError: if the text is not a problem of this world.
  """
  chain = text.removesuffix("=?")
  terms = _TERM.findall(chain)
  readable = terms and not terms[0][0] and chain != text
  if not readable or "".join(o + n for o, n in terms) != chain:
    raise ValueError(f"Not a problem of the form '3+5-2=?': {text!r}.")
  (_, first), *rest = terms
  return ArithmeticProblem(int(first), tuple((o, int(n)) for o, n in rest))


def split_of(text: str) -> str:
  """The split of a problem, "train" or "held_out", by a hash of its text.

  Training and held-out problems are therefore disjoint.

  Args:
    text: the text of the problem.
  """
  digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
  number = int.from_bytes(digest, "little")
  return "train" if number % HELD_OUT_ONE_IN else "held_out"


def sample_problem(
  rng: np.random.Generator, config: WorldConfig, split: str
) -> ArithmeticProblem:
  """Draws a problem whose true intermediate values are in 0..value_max.

  Args:
    rng: the random generator, which is advanced.
    config: the world.
    split: "train" or "held_out".

  Raises:
    ValueError: if `MAX_DRAWS` draws contain no problem of that split.
  """
  for _ in range(MAX_DRAWS):
    count = rng.integers(config.min_operations, config.max_operations + 1)
    value = first = int(rng.integers(1, config.operand_max + 1))
    operations = []
    while len(operations) < count:
      operator = "+-"[rng.integers(2)]
      operand = int(rng.integers(1, config.operand_max + 1))
      result = compute(value, operator, operand)
      if 0 <= result <= config.value_max:
        operations.append((operator, operand))
        value = result
    problem = ArithmeticProblem(first, tuple(operations))
    if split_of(problem.text) == split:
      return problem
  raise ValueError(f"There is no {split!r} problem: make the world wider.")


def _demonstrate(
  rng: np.random.Generator, config: WorldConfig, problem: ArithmeticProblem
) -> str:
  """Writes the response of an imperfect teacher: steps joined by the separator.

  After a mistake the response continues from the wrong value. Results are
  clipped to 0..number_max.
  """
  misconceived = rng.random() < config.misconception_rate
  skips = rng.random() < config.skip_rate
  value, true_equations, lines = problem.first, [], []

  def maybe_vacuous():
    if rng.random() < config.vacuous_rate:
      choices = [*FILLERS, *true_equations[-1:]]
      lines.append(choices[rng.integers(len(choices))])

  for operator, operand in problem.operations:
    maybe_vacuous()
    if rng.random() < config.wrong_operand_rate:
      other = int(rng.integers(1, config.operand_max))
      operand = other + (other >= operand)  # Any operand but the right one.
    carried_out = operator
    if operator == "-" and misconceived:
      carried_out, misconceived = "+", False
    true_result = compute(value, operator, operand)
    result = compute(value, carried_out, operand)
    result = min(max(result, 0), config.number_max)
    if rng.random() < config.slip_rate:
      near = {result + change for change in (-2, -1, 1, 2)} - {true_result}
      near = sorted(near & {*range(config.number_max + 1)})
      result = near[rng.integers(len(near))]
    if not skips:
      lines.append(f"{value}{operator}{operand}={result}")
      true_equations += lines[-1:] if result == true_result else []
    value = result
  maybe_vacuous()
  lines.append(f"\\boxed{{{value}}}")
  return SEPARATOR.join(lines)


def make_example(
  config: WorldConfig, split: str, index: int
) -> tuple[ArithmeticProblem, str]:
  """Generates one example of a split: (problem, demonstration).

  Args:
    config: the world.
    split: "train" or "held_out".
    index: number of the example, from 0. Examples do not depend on each other.
  """
  rng = np.random.default_rng((config.seed, SPLITS.index(split), index))
  problem = sample_problem(rng, config, split)
  return problem, _demonstrate(rng, config, problem)
