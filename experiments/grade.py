"""Grades a file of responses, and compares the verdicts with given ones.

  python experiments/grade.py --input=FILE.jsonl [--output=VERDICTS.jsonl]

Each line of the input is a JSON object with `problem` (text), `answer` (the
right answer, text or number) and `responses` (a list of texts). If it also has
`reference_correct`, a list of true and false, the report counts agreements and
lists each disagreement. The report goes to stdout as JSON, progress to stderr,
every verdict to `--output`.

On graders/math_cot_even.jsonl, 400 responses of a Qwen2.5-Math model, 399
verdicts agree with those of the reference grader in the file; the other is line
37's last response, 10000 with the right answer 10{,}000. They are the same
number, so it is right here; the reference grader does not read the braces.
Speed with the defaults, two workers on two idle cores (2026-11-30, two runs):
6,139 and 6,168 of these responses a second, most of which are decided by their
spelling, and 2,251 and 2,423 a second of 2,000 answers to references that are
no integers. The version before, which used math-verify, graded 3,022 and 3,073,
and 169 and 170 a second in the same minute.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from pure_jax.host import json_text
from pure_jax.host.atomic_files import write_text_atomic
from pure_jax.host.grading import verify
from pure_jax.host.logs import console
from pure_jax.host.logs.console import Progress
from pure_jax.host.workers.pool import (
  MAX_SECONDS,
  MAX_WORKERS,
  MIN_SECONDS,
  PoolError,
)

_INPUT = flags.DEFINE_string("input", None, "JSON lines to grade.")
_OUTPUT = flags.DEFINE_string("output", None, "File that gets every verdict.")
_EXTRACTOR = flags.DEFINE_multi_enum(
  "extractor",
  ["boxed"],
  list(verify.EXTRACTORS),
  "How to find an answer. Given several times: the first that finds one.",
)
_TIMEOUT = flags.DEFINE_float("timeout_seconds", 5.0, "Limit of a comparison.")
flags.register_validator(
  _TIMEOUT,
  lambda seconds: MIN_SECONDS <= seconds <= MAX_SECONDS,
  message=f"must be between {MIN_SECONDS:g} and {MAX_SECONDS:g}",
)
_WORKERS = flags.DEFINE_integer(
  "workers", 2, "Worker processes.", lower_bound=1, upper_bound=MAX_WORKERS
)


class InputError(ValueError):
  """The input cannot be graded; the message says where and why."""


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the input.

  Attributes:
    line: its number, from 1.
    answer: the right answer, as given.
    responses: responses to the problem.
    reference_correct: given verdicts; None if there are none.
  """

  line: int
  answer: str | int | float
  responses: list[str]
  reference_correct: list[bool] | None


# ===== Input =====


def read_rows(path: pathlib.Path) -> list[Row]:
  """Reads and validates the input; an InputError names line and field."""
  try:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path} cannot be read: {error}.") from None
  rows = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      values = json_text.parse(line)
    except ValueError as error:
      raise InputError(f"{path}:{number}: not JSON: {error}.") from None
    reason = _reason_invalid(values)
    if reason is not None:
      raise InputError(f"{path}:{number}: {reason}.")
    rows.append(
      Row(
        line=number,
        answer=values["answer"],
        responses=values["responses"],
        reference_correct=values.get("reference_correct"),
      )
    )
  if not rows:
    raise InputError(f"{path} has no rows to grade.")
  return rows


def _reason_invalid(values: object) -> str | None:
  """Returns why a JSON value cannot be graded; None if it can."""
  if not isinstance(values, dict):
    return "not an object with problem, answer and responses"
  missing = [k for k in ("problem", "answer", "responses") if k not in values]
  if missing:
    return f"{' and '.join(missing)} missing"
  if not isinstance(values["problem"], str):
    return "problem is not text"
  answer = values["answer"]
  if isinstance(answer, bool) or not isinstance(answer, str | int | float):
    return "answer is neither text nor a number"
  if isinstance(answer, float) and not math.isfinite(answer):
    return f"answer is {answer}, not a finite number"
  if not str(answer).strip():
    return "answer is empty"
  responses = values["responses"]
  if not isinstance(responses, list) or not all(
    isinstance(response, str) for response in responses
  ):
    return "responses is not a list of texts"
  if "reference_correct" not in values:
    return None
  reference = values["reference_correct"]
  if not isinstance(reference, list) or not all(
    isinstance(value, bool) for value in reference
  ):
    return "reference_correct is not a list of true and false"
  if len(reference) != len(responses):
    return f"{len(responses)} responses, {len(reference)} reference_correct"
  return None


def checked_paths() -> tuple[pathlib.Path, pathlib.Path | None]:
  """Returns the paths of input and output; None without an output."""
  source = pathlib.Path(_INPUT.value)
  if not _OUTPUT.value:
    return source, None
  output = pathlib.Path(_OUTPUT.value)
  if not output.absolute().parent.is_dir():
    raise InputError(f"--output: there is no folder {output.parent}.")
  if output.is_dir():
    raise InputError(f"--output: {output} is a folder; name a file in it.")
  if output.exists() and source.exists() and output.samefile(source):
    raise InputError(
      f"--output: {output} is the input, which would be lost; name another."
    )
  return source, output


# ===== Grading =====


def grade_rows(
  rows: Sequence[Row],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Grades every response: (a JSON object for each, the report)."""
  items = [(row, i) for row in rows for i in range(len(row.responses))]
  extractors = [verify.EXTRACTORS[name] for name in _EXTRACTOR.value]
  start = time.monotonic()
  with verify.open_pool(_WORKERS.value, _TIMEOUT.value) as pool:
    workers_ready = time.monotonic()
    with Progress("grade", len(items)) as progress:
      verdicts = verify.grade(
        pool,
        [row.responses[i] for row, i in items],
        [str(row.answer) for row, _ in items],
        extractors,
        progress.advance,
      )
    end = time.monotonic()
  records = []
  for (row, i), verdict in zip(items, verdicts, strict=True):
    record = {
      "line": row.line,
      "response": i,
      "answer": row.answer,
      "extracted": verdict.answer,
      "correct": verdict.correct,
      "timed_out": verdict.timed_out,
      "failure": verdict.failure,
    }
    if row.reference_correct is not None:
      record["reference_correct"] = row.reference_correct[i]
    records.append(record)
  counts = verify.verdict_counts(verdicts)
  report = counts | {
    "accuracy": counts["correct"] / counts["items"] if verdicts else None,
    "start_seconds": round(workers_ready - start, 3),
    "seconds": round(end - workers_ready, 3),
    "items_per_second": round(len(verdicts) / (end - workers_ready), 1),
  }
  return records, report | agreement(records)


def agreement(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Compares verdicts with those of the input, if it has some."""
  compared = [record for record in records if "reference_correct" in record]
  if not compared:
    return {}
  differ = [r for r in compared if r["correct"] != r["reference_correct"]]
  return {
    "agreement": {"agree": len(compared) - len(differ), "of": len(compared)},
    "disagreements": differ,
  }


def main(argv: list[str]) -> None:
  """Reads the input, grades it, writes verdicts and report."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  try:
    source, output = checked_paths()
    records, report = grade_rows(read_rows(source))
    if output is not None:
      lines = [json_text.dump(record) + "\n" for record in records]
      write_text_atomic(output, "".join(lines))
  except (InputError, PoolError, OSError) as error:
    console.tell(f"error: {error}")
    sys.exit(1)
  console.show(json_text.dump(report, indent=1))


if __name__ == "__main__":
  flags.mark_flag_as_required("input")
  interrupts.run(app.run, main)
