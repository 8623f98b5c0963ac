r"""Verifiable rewards: extracts the answer of a response and compares it.

Extractors find the answer in a response. They are plain functions of text,
linear in its length, and run in this process. The comparison with the reference
answer runs in the processes of a pool, within limits::

  with verify.open_pool() as pool:
    verdicts = verify.grade(pool, [r"It is $\boxed{\frac12}$."], ["0.5"])
  reward = [verdict.correct for verdict in verdicts]
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from pure_jax.host.data.records import Problem
from pure_jax.host.grading import equivalence
from pure_jax.host.machine_memory import machine_bytes
from pure_jax.host.workers.pool import MAX_WORKERS, MIB, PoolError, WorkerPool

# Longer than any generation, short enough to scan at once.
MAX_RESPONSE_CHARS = 100_000

# Memory of a worker, at least; with its imports it takes twice as much.
WORKER_BYTES = 20 * MIB

Extractor = Callable[[str], str | None]

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(
  r"(?:(?<![\w.)\]}])[-\u2212])?"  # In 3-5 the sign is a subtraction.
  r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
  r"|(?<![0-9])\.[0-9]+)"
  r"(?:[eE][-+]?[0-9]+)?"
)


@dataclasses.dataclass(frozen=True)
class Reference:
  """A right answer, and how it is compared; see `equivalence.equivalent`.

  Attributes:
    answer: the text, without a box.
    several: whether it lists several values, in any order.
    tolerance: absolute error at which a number is still right; None requires
      equality.
  """

  answer: str
  several: bool = False
  tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The result of grading a response.

  Attributes:
    correct: whether the answer equals the reference answer; False without an
      answer and if the comparison did not finish.
    answer: the extracted text; None if the response has no answer.
    timed_out: whether the comparison was stopped at its time limit.
    failure: why the comparison did not finish: "raised NAME", "out of memory"
      or "crashed (status)"; None if it finished or timed out.
  """

  correct: bool
  answer: str | None
  timed_out: bool = False
  failure: str | None = None

  @property
  def has_answer(self) -> bool:
    """Whether the response has an answer."""
    return self.answer is not None


def reference_of(problem: Problem) -> Reference | None:
  """Returns the answer of a problem, else the answer withheld from training.

  None if neither is known.

  Args:
    problem: any problem.

  >>> reference_of(Problem("1", "own", "1, 4 are whose squares?", answer="1,2"))
  Reference(answer='1,2', several=False, tolerance=None)
  """
  answer = problem.known_answer
  if answer is None:
    return None
  return Reference(answer, problem.several_answers, problem.tolerance)


def boxed(response: str) -> str | None:
  r"""Returns the content of the last ``\boxed{}``, with balanced braces.

  ``\{`` and ``\}`` are characters, not braces. Empty boxes behind the answer,
  as in "which I put within \boxed{}", are ignored. If the last box is not
  closed, the response was cut inside its answer, and earlier boxes are ignored
  too: the answer is None, as without a box. If all boxes are blank, so is the
  answer.

  Args:
    response: any text.

  >>> print(boxed(r"$\boxed{5}$, no: $\boxed{\frac{1}{2}}$, not \boxed{}."))
  \frac{1}{2}
  """
  content = None
  for start in reversed([box.end() for box in _BOX.finditer(response)]):
    inside = _to_closing_brace(response, start)
    if content is None:
      content = inside
    if inside is None or inside.strip():
      return inside
  return content


def _to_closing_brace(text: str, start: int) -> str | None:
  """Returns the text up to the brace that closes; None without one."""
  depth = 1
  for brace in _BRACE.finditer(text, start):
    depth += (brace[0] == "{") - (brace[0] == "}")
    if depth == 0:
      return text[start : brace.start()]
  return None


def gsm8k_hash(response: str) -> str | None:
  """Returns the stripped text from the last ``####`` to the end of its line.

  GSM8K marks its answers so. None if there is no mark or no text after it.

  Args:
    response: any text.

  >>> gsm8k_hash("48/2 = 24 clips in May.\\n#### 1,072\\n")
  '1,072'
  """
  _, mark, after = response.rpartition("####")
  line = after.split("\n", 1)[0].strip()
  return line if mark and line else None


def last_number(response: str) -> str | None:
  """Returns the last number of a text as it is written; None if there is none.

  It serves answers without a mark. A number has digits 0-9, thousands separated
  by commas, decimals, an exponent, and a minus sign that is not a subtraction.
  A fraction is two numbers. Signs of currency and per cent are not part of it.

  Args:
    response: any text.

  >>> last_number("So 3 - 5 = -2, and she pays $1,234.50.")
  '1,234.50'
  """
  last = None
  for number in _NUMBER.finditer(response):
    last = number[0]
  return last


EXTRACTORS: dict[str, Extractor] = {
  "boxed": boxed,
  "gsm8k_hash": gsm8k_hash,
  "last_number": last_number,
}


def first_of(response: str, extractors: Sequence[Extractor]) -> str | None:
  """Extracts the answer by the first extractor that finds one; None if none.

  Args:
    response: any text.
    extractors: tried in this order. An extractor that returns None or white
      space has found no answer; white space around an answer is removed.

  >>> first_of("I think it is 7.", [boxed, gsm8k_hash, last_number])
  '7'
  """
  for extract in extractors:
    answer = extract(response)
    if answer is not None and answer.strip():
      return answer.strip()
  return None


def open_pool(
  workers: int = 2,
  timeout_seconds: float = 5.0,
  memory_bytes: int = 512 * MIB,
) -> WorkerPool:
  """Starts the processes that compare answers, for many calls of `grade`.

  Args:
    workers: processes, at least 1 and at most `MAX_WORKERS` of the pool.
    timeout_seconds: wall-clock limit of one comparison, `MIN_SECONDS` to
      `MAX_SECONDS` of the pool.
    memory_bytes: by how much a comparison may raise its worker's memory, at
      least 16 MiB.

  Raises:
    ValueError: if a limit is out of range.
    PoolError: if a worker does not become ready, or the machine has no memory
      for so many.
  """
  memory = machine_bytes()
  if workers > MAX_WORKERS or workers * WORKER_BYTES > (memory or math.inf):
    raise PoolError(
      f"{workers} workers that compare answers are too many: at most "
      f"{MAX_WORKERS} can be started, and each takes at least "
      f"{WORKER_BYTES // MIB} MiB. One for each core is enough."
    )
  return WorkerPool(
    equivalence.equivalent,
    equivalence.start_worker,
    workers=workers,
    timeout_seconds=timeout_seconds,
    memory_bytes=memory_bytes,
  )


def grade(
  pool: WorkerPool,
  responses: Sequence[str],
  references: Sequence[str | Reference],
  extractors: Sequence[Extractor] = (boxed,),
  on_done: Callable[[], None] | None = None,
) -> list[Verdict]:
  """Grades responses by their answers.

  Only the last `MAX_RESPONSE_CHARS` characters of a response are read, because
  an answer is at the end. A box that starts before them is ignored.

  Args:
    pool: from `open_pool`.
    responses: B texts.
    references: B right answers, without a box; a text is one value.
    extractors: see `first_of`.
    on_done: called once for each graded response, to show progress; None calls
      nothing.

  Returns:
    B verdicts, in the order of the responses.

  Raises:
    ValueError: if the numbers of references and responses differ.
    PoolError: see `WorkerPool.run`.
  """
  if len(responses) != len(references):
    raise ValueError(
      f"{len(responses)} responses and {len(references)} references: every "
      "response needs the reference answer of its problem."
    )
  answers = [
    first_of(response[-MAX_RESPONSE_CHARS:], extractors)
    for response in responses
  ]
  answered = [i for i, answer in enumerate(answers) if answer is not None]
  items = []
  for i in answered:
    reference = references[i]
    if isinstance(reference, str):
      reference = Reference(reference)
    items.append(
      (answers[i], reference.answer, reference.several, reference.tolerance)
    )
  verdicts = [Verdict(correct=False, answer=None) for _ in answers]
  if on_done is not None:
    for _ in range(len(answers) - len(answered)):
      on_done()
  for i, outcome in zip(answered, pool.run(items, on_done), strict=True):
    verdicts[i] = Verdict(
      correct=outcome.value is True,
      answer=answers[i],
      timed_out=outcome.timed_out,
      failure=outcome.failure,
    )
  return verdicts


def verdict_counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
  """Counts the verdicts of a batch by kind.

  Args:
    verdicts: from `grade`.

  Returns:
    Counts by name: `items`, of which `correct`, `wrong` (compared and
    different), `no_answer`, `timed_out` and `crashed` (raised, crashed, or ran
    out of memory); the last five add up to the first.

  >>> counts = verdict_counts([Verdict(True, "5"), Verdict(False, None)])
  >>> counts["items"], counts["correct"], counts["wrong"], counts["no_answer"]
  (2, 1, 0, 1)
  """
  counts = {
    "items": len(verdicts),
    "correct": sum(verdict.correct for verdict in verdicts),
    "no_answer": sum(not verdict.has_answer for verdict in verdicts),
    "timed_out": sum(verdict.timed_out for verdict in verdicts),
    "crashed": sum(verdict.failure is not None for verdict in verdicts),
  }
  counts["wrong"] = 2 * counts["items"] - sum(counts.values())
  return counts
