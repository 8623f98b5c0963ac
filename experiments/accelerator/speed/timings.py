"""The pieces that time programs, each a few of one shape.

A row has seconds, tokens per second, the least time that the measured rates of
this machine allow, and the share of it that is reached. Decoding is bounded by
the weights and the cache that a token reads, the rest by products.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.bounds import Rates
from benchmarks.cases import Case
from benchmarks.machine import available_bytes
from benchmarks.measuring import why_not
from benchmarks.suites import SUITES

from accelerator import runner
from accelerator.machine import measure_rates
from accelerator.pieces import Context
from accelerator.speed import programs, results
from accelerator.speed import rows as speed_rows
from accelerator.speed.rows import Group, Program, Row, program_or_why
from accelerator.speed.sizes import change, make_cases
from pure_jax.host import json_text
from pure_jax.parallel.kernel_calls import PLATFORMS
from pure_jax.runs import compilation_cache

Result = dict[str, Any]


def decode(context: Context, shape: str) -> Result:
  """Decodes with few and many rows.

  Args:
    context: what the piece is told.
    shape: one of `speed.sizes.SHAPES`.

  Returns:
    A row for each number of rows.
  """
  cases = make_cases(context)
  chosen = [cases.decode(shape, n) for n in cases.sizes.decode_rows[shape]]
  group = Group(
    lambda: programs.rollout_weights(chosen[0]),
    [programs.decode_program(f"decode, rows={c.rows}", c) for c in chosen],
  )
  rows = measure(context, [group])
  return results.as_result(
    rows, f"{_title(context, shape)}: {results.describe(rows)}"
  )


def steps(context: Context, shape: str) -> Result:
  """Prefill, scores and updates of a shape, with the project's defaults.

  Args:
    context: what the piece is told.
    shape: one of `speed.sizes.SHAPES`.

  Returns:
    A row for each; those that cannot fit into memory say so.
  """
  cases = make_cases(context)
  prefill = cases.prefill(shape)
  score, update = (cases.texts(s, shape) for s in ("score", "update"))
  rows = measure(
    context,
    [
      Group(
        lambda: programs.rollout_weights(prefill),
        [programs.prefill_program("prefill", prefill)],
      ),
      Group(
        lambda: programs.score_weights(score),
        [_fits(programs.score_program, "scores of 3 models", score)],
      ),
      Group(
        lambda: programs.update_weights(update),
        [_fits(programs.update_program, "update of all weights", update)],
      ),
      Group(
        lambda: programs.lora_weights(update),
        [programs.lora_program("update of adapters", update)],
      ),
    ],
  )
  all_weights, adapters = rows[2:]
  summary = f"{_title(context, shape)}: {results.describe(rows)}"
  if all_weights.line and adapters.line:
    ratio = all_weights.seconds / adapters.seconds
    summary += f"; adapters are updated {ratio:.2f} times as fast"
  return results.as_result(rows, summary)


def _title(context: Context, shape: str) -> str:
  """What a line of the report calls the model."""
  return shape if context.size == "full" else f"tiny, in place of the {shape}"


def update_choices(context: Context) -> Result:
  """Updates of the 1.5B shape under every choice of a setting, one at a time.

  Args:
    context: what the piece is told.

  Returns:
    A row for the defaults, one for each choice, and one for the best of each
    setting together. The summary names the fastest.
  """
  cases = make_cases(context)
  case = cases.texts("update", "1.5B")
  choices = _choices(context, case)
  choices["remat"] = [change(case, remat=x) for x in cases.sizes.remats]
  make = programs.update_program
  weights = programs.update_weights
  return _compare(context, "update", make, weights, case, choices)


def score_choices(context: Context) -> Result:
  """Scores of the 1.5B shape under every choice; as `update_choices`.

  Args:
    context: what the piece is told.
  """
  case = make_cases(context).texts("score", "1.5B")
  make = programs.score_program
  weights = programs.score_weights
  choices = _choices(context, case)
  return _compare(context, "scores", make, weights, case, choices)


def int8(context: Context) -> Result:
  """Rollouts with matrices or the cache in int8, against the compute dtype.

  Args:
    context: what the piece is told.

  Returns:
    Two rows for the matrices and two for the cache. The bounds are those of
    the compute dtype.
  """
  cases = make_cases(context)
  matrices = cases.decode(*cases.sizes.int8_matrices)
  int8_matrices = change(matrices, int8_matrices=True)
  cache = cases.int8_cache()
  int8_cache = change(cache, cache_dtype="int8")
  make = programs.decode_program
  dtype = cases.options.dtype
  rows = measure(
    context,
    [
      Group(
        lambda: programs.rollout_weights(matrices),
        [make(f"{matrices.model}, matrices in {dtype}", matrices)],
      ),
      Group(
        lambda: programs.rollout_weights(int8_matrices),
        [make(f"{matrices.model}, matrices in int8", int8_matrices)],
      ),
      Group(
        lambda: programs.rollout_weights(cache),
        [
          make(f"{cache.model}, cache in {dtype}", cache),
          make(f"{cache.model}, cache in int8", int8_cache),
        ],
      ),
    ],
  )
  parts = [
    f"{name} in int8: {_times_as_fast(before, after)}"
    for name, before, after in (
      ("matrices", rows[0], rows[1]),
      ("cache", rows[2], rows[3]),
    )
  ]
  return results.as_result(rows, "; ".join(parts))


def machine_rates(context: Context) -> Rates:
  """Reads the rates of this machine, or measures them if nobody has.

  Args:
    context: what the piece is told.

  Returns:
    FLOPs per second of products in the compute dtype; the larger of the bytes
    per second that are read, or read and written.
  """
  dtype = make_cases(context).options.dtype
  rates = _rates_of_piece(context) or measure_rates(context)
  return Rates(rates[dtype], max(rates["read"], rates["copy"]))


def _rates_of_piece(context: Context) -> dict[str, float] | None:
  """The rates that the piece "machine" measured here; None without it."""
  machine = json_text.to_json(context.machine)
  for path in context.out.glob("*_machine.json"):
    record = runner.read_record(path) or {}
    is_complete = record.get("status") in runner.COMPLETE
    if is_complete and record["identity"]["machine"] == machine:
      return record["result"]["rates"]
  return None


def _choices(context: Context, case: Case) -> dict[str, list[Case]]:
  """The choices that scores and updates share, by setting."""
  sizes = make_cases(context).sizes
  kernels = [name for name in PLATFORMS if name in ("splash", "cudnn")]
  return {
    "attention": [
      *(change(case, attention=name) for name in kernels),
      *(change(case, attention_chunk=n) for n in sizes.attention_chunks),
    ],
    "logits": [change(case, logits_chunk=n) for n in sizes.logits_chunks],
  }


def _compare(
  context: Context,
  what: str,
  make: Any,
  make_weights: Any,
  case: Case,
  choices: dict[str, list[Case]],
) -> Result:
  """Measures the defaults, each choice alone, and the best ones together."""
  alone = [case, *(c for values in choices.values() for c in values)]

  def measured(some: Sequence[Case]) -> list[Row]:
    made = [_fits(make, _name(c, case), c) for c in some]
    return measure(context, [Group(lambda: make_weights(case), made)])

  rows = measured(alone)
  by_case = dict(zip(alone, rows, strict=True))
  best = case.options
  for values in choices.values():
    fastest = min([case, *values], key=lambda c: by_case[c].seconds)
    best = dataclasses.replace(best, **_changes(fastest, case))
  together = dataclasses.replace(case, options=best)
  if together not in by_case:
    rows += measured([together])
  return results.as_result(rows, f"{what}: {_winner(rows)}")


def _changes(case: Case, default: Case) -> dict[str, Any]:
  """The options in which a case differs from another."""
  before = dataclasses.asdict(default.options)
  after = dataclasses.asdict(case.options)
  return {name: x for name, x in after.items() if x != before[name]}


def _name(case: Case, default: Case) -> str:
  """The options of a case that are not the defaults."""
  changes = _changes(case, default).items()
  return ", ".join(f"{name}={value}" for name, value in changes) or "defaults"


def _winner(rows: Sequence[Row]) -> str:
  """The fastest row, and how much faster than the defaults it is."""
  fastest = min(rows, key=lambda row: row.seconds)
  if fastest.line is None:
    return "none of the programs ran"
  if fastest is rows[0]:
    return "the defaults are fastest"
  compared = _times_as_fast(rows[0], fastest)
  return f"{fastest.name} is {compared} as the defaults"


def _times_as_fast(before: Row, after: Row) -> str:
  """How one row compares with another, in words."""
  if before.line is None or after.line is None:
    return "not measured"
  ratio = before.seconds / after.seconds
  return f"{ratio:.2f} times as fast"


def _fits(make: Any, name: str, case: Case) -> Program | Row:
  """Makes a program, unless its weights alone exceed the memory."""
  why = why_not(case, SUITES[case.suite], available_bytes())
  if why is not None:
    return Row(name, case, why=f"{why}.")
  return program_or_why(make, name, case)


def measure(context: Context, groups: Sequence[Group]) -> list[Row]:
  """Measures, and keeps compiled programs: pieces and repeats share some."""
  with contextlib.suppress(OSError):
    compilation_cache.enable()
  return speed_rows.measure(context, machine_rates(context), groups)
