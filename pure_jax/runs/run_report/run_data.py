"""Reads what a run has logged, for a page about it."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pure_jax.host.evaluation.response_scores import softmin_outcome
from pure_jax.host.logs.curves import EVALUATES, SHOWN
from pure_jax.host.logs.generations import GENERATIONS_FILE
from pure_jax.host.logs.metrics import (
  ALARMS_FILE,
  METRICS_FILE,
  SAMPLES_FILE,
  MetricsError,
  read_log,
  read_metrics,
)
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.rl.roll_backs import read_record as read_roll_backs
from pure_jax.runs.run_report.token_credit import token_credit
from pure_jax.settings import CreditConfig

# Shown as well, with the other two cells of their table, which are in SHOWN.
_AGREEMENT = ("accepted_right", "rejected_wrong")
MAX_SHOWN = 300  # Samples, and generations, of a run.


def read_run(folder: pathlib.Path) -> dict[str, Any]:
  """Reads a run: metrics, alarms, roll-backs, samples and generations.

  Args:
    folder: its workdir. The run may still be going on.

  Returns:
    What the page shows, as JSON has it.

  Raises:
    WorkdirError: if the folder is not that of a run.
    MetricsError: if a log is damaged; it names the line.
  """
  record = workdirs.read_record(folder)
  if record is None:
    raise workdirs.WorkdirError(
      f"{folder} is not the workdir of a run: it has no {workdirs.CONFIG_FILE}."
    )
  rows = read_metrics(folder)
  if not rows:
    raise MetricsError(f"{folder / METRICS_FILE} has no rows yet.")
  config = _credit_config(record["config"])
  samples = [
    *_samples(_most_telling(_read(folder / SAMPLES_FILE)), config),
    *map(_generation, _most_telling(_read(folder / GENERATIONS_FILE))),
  ]
  return {
    "name": str(folder),
    "credit": "" if config is None else config.form,
    "panels": _panels(rows),
    "alarms": _read(folder / ALARMS_FILE),
    "roll_backs": [
      dataclasses.asdict(roll_back) for roll_back in read_roll_backs(folder)
    ],
    "samples": samples,
  }


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a log; none if there is none."""
  return read_log(path) if path.exists() else []


def _credit_config(config: Mapping[str, Any]) -> CreditConfig | None:
  """The run's credit; None for a run of another version or without RL."""
  try:
    values = config["rl"]["credit"]
    if {field.name for field in dataclasses.fields(CreditConfig)} != {*values}:
      return None
    read = CreditConfig(**values)
    if read.baseline_length is None:
      # The columns of rollouts, not those of the samples that were logged.
      columns = config["rl"]["sampler"]["max_new_tokens"]
      read = dataclasses.replace(read, baseline_length=columns)
    return read
  except (KeyError, TypeError, ValueError):
    return None


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Curves: for each stage and metric, points of it and of its evaluation."""
  panels: dict[tuple[str, str], dict[str, list[Any]]] = {}
  stages = dict.fromkeys(row["stage"] for row in rows)
  for group in dict.fromkeys(EVALUATES.get(x, x) for x in stages):
    for name, row in itertools.product((*SHOWN, *_AGREEMENT), rows):
      stage, value = row["stage"], row.get(name)
      if EVALUATES.get(stage, stage) == group and isinstance(
        value, int | float
      ):
        lines = panels.setdefault((group, name), {})
        lines.setdefault(stage, []).append([row["step"], value])
  return [
    {"group": group, "name": name, "lines": lines}
    for (group, name), lines in panels.items()
  ]


def _samples(
  rows: Sequence[Mapping[str, Any]], config: CreditConfig | None
) -> list[dict[str, Any]]:
  """The samples of rollouts, with their credit under each form."""
  credits: list[Any] = [{}] * len(rows)
  if config is not None and config.baseline != "gae":
    known = [i for i, row in enumerate(rows) if "group" in row]
    computed = token_credit([rows[i] for i in known], config)
    for i, credit in zip(known, computed, strict=True):
      credits[i] = credit
  return [
    _shown("rollout", row, row.get("step_rewards"), credit)
    | {"gradable": row.get("gradable", True), "sign": row.get("sign")}
    for row, credit in zip(rows, credits, strict=True)
  ]


def _generation(row: Mapping[str, Any]) -> dict[str, Any]:
  """A response of an evaluation."""
  source = row["benchmark"] + (", greedy" if row["greedy"] else "")
  return _shown(source, row, row["step_rewards"], {}) | {
    "gradable": row["reference"] is not None,
    "answer": row["answer"],
    "reference": row["reference"],
  }


def _shown(
  source: str,
  row: Mapping[str, Any],
  scores: Sequence[float] | None,
  credit: Mapping[str, Any],
) -> dict[str, Any]:
  """What the page has of every response."""
  outcome = None
  if scores:
    mask = np.ones((1, len(scores)), bool)
    outcome = softmin_outcome(np.asarray([scores]), mask).round(4).item()
  return {
    "source": source,
    "step": row["step"],
    "problem": row["problem"],
    "steps": row["steps"],
    "scores": scores,
    "outcome": outcome,
    "all_good": bool(scores) and min(scores) > 0,
    "correct": row["correct"],
    "truncated": row.get("truncated", False),
    "kind": row.get("kind"),
    "credit": credit,
  }


def _most_telling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """At most `MAX_SHOWN` rows: those with a sign first, the others in between.

  Responses of thousands of tokens would make a page that no browser opens.
  """
  signed = [i for i, row in enumerate(rows) if row.get("sign") is not None]
  others = [i for i, row in enumerate(rows) if row.get("sign") is None]
  chosen = _spaced(signed, MAX_SHOWN // 2)
  chosen += _spaced(others, MAX_SHOWN - len(chosen))
  return [rows[i] for i in sorted(chosen)]


def _spaced(rows: list[int], count: int) -> list[int]:
  """At most so many of the rows, evenly spaced, the first and last included."""
  if len(rows) <= count:
    return rows
  return [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)]
