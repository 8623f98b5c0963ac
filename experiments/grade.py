"""Grades a file of responses, and compares the verdicts with those it carries.

  python experiments/grade.py --input=FILE.jsonl [--output=VERDICTS.jsonl]

Each line of the input is a JSON object with `problem` (text), `answer` (text
or number: the right one) and `responses` (a list of texts). Where it also has
`reference_correct`, a list of true and false, the report counts the agreement
and lists each disagreement. The report goes to stdout as JSON, progress to
stderr, every verdict to `--output`.

On graders/math_cot_even.jsonl, 400 responses of a Qwen2.5-Math model, with the
defaults, two workers on two cores (2026-11-24, four runs): 2,964 responses a
second beside other work (load about 3), 1,059 to 1,393 under a load of 6;
workers start in 0.6 to 1.6 s. The text decides most of them. 399 verdicts agree
with those of the reference grader in the file; the other is line 37's last
response, 10000 where the answer is 10{,}000. They are the same number, so it is
right here; the reference grader does not read the braces.
"""

import json
import math
import os
import pathlib
import sys
import time

from absl import app, flags

from pure_jax.host.atomic_files import write_text_atomic
from pure_jax.host.grading import verify
from pure_jax.host.grading.pool import MAX_SECONDS, PoolError
from pure_jax.host.logs.console import Progress

_INPUT = flags.DEFINE_string("input", None, "JSON lines to grade.")
_OUTPUT = flags.DEFINE_string("output", None, "Where every verdict goes.")
_EXTRACTOR = flags.DEFINE_multi_enum(
  "extractor",
  ["boxed"],
  list(verify.EXTRACTORS),
  "How to find an answer. Given several times: the first that finds one.",
)
_TIMEOUT = flags.DEFINE_float("timeout_seconds", 5.0, "Of one comparison.")
flags.register_validator(
  _TIMEOUT,
  lambda seconds: 0 < seconds <= MAX_SECONDS,
  message=f"must be above 0 and at most {MAX_SECONDS:g}",
)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.", lower_bound=1)


class InputError(ValueError):
  """The input cannot be graded; the message says where and why."""


def read_rows(path: pathlib.Path) -> list[dict]:
  """The rows of the input, each with its `line`, checked.

  Args:
    path: the file.

  Returns:
    The rows, at least one.

  Raises:
    InputError: naming the line and the field.
  """
  try:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path} cannot be read: {error}.") from None
  rows = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise InputError(f"{path}:{number}: not JSON: {error}.") from None
    reason = _fault(row)
    if reason is not None:
      raise InputError(f"{path}:{number}: {reason}.")
    rows.append(row | {"line": number})
  if not rows:
    raise InputError(f"{path} has no rows to grade.")
  return rows


def _fault(row: object) -> str | None:
  """What keeps a row from being graded."""
  if not isinstance(row, dict):
    return "not an object with problem, answer and responses"
  missing = [k for k in ("problem", "answer", "responses") if k not in row]
  if missing:
    return f"{' and '.join(missing)} missing"
  if not isinstance(row["problem"], str):
    return "problem is not text"
  answer = row["answer"]
  if isinstance(answer, bool) or not isinstance(answer, str | int | float):
    return "answer is neither text nor a number"
  if isinstance(answer, float) and not math.isfinite(answer):
    return f"answer is {answer}, not a finite number"
  if not str(answer).strip():
    return "answer is empty"
  responses = row["responses"]
  if not isinstance(responses, list) or not all(
    isinstance(response, str) for response in responses
  ):
    return "responses is not a list of texts"
  if "reference_correct" not in row:
    return None
  expected = row["reference_correct"]
  if not isinstance(expected, list) or not all(
    isinstance(value, bool) for value in expected
  ):
    return "reference_correct is not a list of true and false"
  if len(expected) != len(responses):
    return f"{len(responses)} responses, {len(expected)} reference_correct"
  return None


def grade_rows(rows: list[dict]) -> tuple[list[dict], dict]:
  """Grades every response of every row.

  Args:
    rows: of `read_rows`.

  Returns:
    (one record per response, in order; the report without the agreement).
  """
  places = [(row, i) for row in rows for i in range(len(row["responses"]))]
  extractors = [verify.EXTRACTORS[name] for name in _EXTRACTOR.value]
  started = time.monotonic()
  with verify.open_pool(_WORKERS.value, _TIMEOUT.value) as pool:
    begun = time.monotonic()
    with Progress("grade", len(places)) as progress:
      verdicts = verify.grade(
        pool,
        [row["responses"][i] for row, i in places],
        [str(row["answer"]) for row, _ in places],
        extractors,
        progress.advance,
      )
    ended = time.monotonic()
  records = []
  for (row, i), verdict in zip(places, verdicts, strict=True):
    record = {
      "line": row["line"],
      "response": i,
      "answer": row["answer"],
      "extracted": verdict.answer,
      "correct": verdict.correct,
      "timed_out": verdict.timed_out,
      "failure": verdict.failure,
    }
    if "reference_correct" in row:
      record["reference_correct"] = row["reference_correct"][i]
    records.append(record)
  counts = verify.verdict_counts(verdicts)
  accuracy = counts["correct"] / counts["items"] if verdicts else None
  return records, counts | {
    "accuracy": accuracy,
    "start_seconds": round(begun - started, 3),
    "seconds": round(ended - begun, 3),
    "items_per_second": round(len(verdicts) / (ended - begun), 1),
  }


def checked_paths() -> tuple[pathlib.Path, pathlib.Path | None]:
  """(input, output or None), before anything is graded.

  Raises:
    InputError: if the output cannot be written, or is the input.
  """
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


def add_agreement(report: dict, records: list[dict]) -> None:
  """Compares verdicts with those of the input, where it carries any."""
  labelled = [record for record in records if "reference_correct" in record]
  if not labelled:
    return
  differ = [r for r in labelled if r["correct"] != r["reference_correct"]]
  report["agreement"] = {
    "agree": len(labelled) - len(differ),
    "of": len(labelled),
  }
  report["disagreements"] = differ


def main(argv: list[str]) -> None:
  """Reads, grades, writes, reports."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  try:
    source, output = checked_paths()
    records, report = grade_rows(read_rows(source))
    if output is not None:
      lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
      write_text_atomic(output, "".join(lines))
  except (InputError, PoolError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    sys.exit(130)  # What a shell says of a program that SIGINT ended.
  add_agreement(report, records)
  try:
    print(json.dumps(report, indent=1, allow_nan=False), flush=True)
  except BrokenPipeError:  # Whoever read the report has read enough.
    # The interpreter flushes once more as it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flag_as_required("input")
  app.run(main)
