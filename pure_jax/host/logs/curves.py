"""Curves of a run as one picture, with a small panel for each metric."""

import math
import os
from collections.abc import Sequence
from typing import Any

from pure_jax.host.atomic_files import replace_atomic
from pure_jax.host.logs.metrics import read_metrics

# In reading order: does it learn, does it hack its reward, are updates healthy.
SHOWN = (
  "loss",
  "accuracy",
  "average/accuracy",
  "pass_at_n",
  "balanced_accuracy",
  "auc",
  "process_outcome",
  "min_step_score",
  "hacked_given_wrong",
  "accepted_wrong",
  "rejected_right",
  "prm_auc",
  "response_tokens",
  "response_tokens_given_correct",
  "response_tokens_given_wrong",
  "steps_per_response",
  "one_step_share",
  "no_work_or_answer",
  "vacuous_step_share",
  "empty_step_share",
  "truncated",
  "clip_ratio_given_correct",
  "high_repetition",
  "high_repetition_given_correct",
  "pseudo_positive_share",
  "identical_responses",
  "reflection_words",
  "policy_loss",
  "kl_reference",
  "entropy",
  "clip_fraction",
  "ratio_max",
  "advantage_std",
  "grad_norm",
)
# Stages that evaluate another one: they share its panels.
EVALUATES = {"prm_eval": "prm", "rl_eval": "rl"}
COLUMNS = 4
LARGEST = 1e300  # matplotlib cannot draw all numbers beyond.


def plot_curves(
  metrics_path: str | os.PathLike,
  path: str | os.PathLike,
  marks: Sequence[tuple[str, int, str]] = (),
) -> list[str]:
  """Draws a run's metrics against its steps, grouped by stage.

  A stage and its evaluations (``rl`` and ``rl_eval``) share panels. Of the
  metrics in `SHOWN`, those of which the run has a value are drawn. A null is a
  gap in its line, and so are a list and a number beyond `LARGEST`.

  Args:
    metrics_path: ``metrics.jsonl``, or the folder it is in.
    path: the PNG file to write, unless there is nothing to draw.
    marks: (stage, step, text) of vertical lines in the panels of a stage.

  Returns:
    Titles of the panels, in order.
  """
  panels = _panels(read_metrics(metrics_path))
  if not panels:
    return []
  import matplotlib.figure  # Here: it is slow to import.

  columns = min(COLUMNS, len(panels))
  rows = math.ceil(len(panels) / columns)
  figure = matplotlib.figure.Figure(
    figsize=(3.2 * columns, 2.2 * rows), layout="constrained"
  )
  grid = figure.subplots(rows, columns, squeeze=False).flatten()
  for axis, (title, lines) in zip(grid, panels.items(), strict=False):
    for stage, points in lines.items():
      # A line through one point cannot be seen.
      style = "o-" if stage in EVALUATES or len(points) == 1 else "-"
      steps, values = zip(*points, strict=True)
      axis.plot(steps, values, style, label=stage, linewidth=1, markersize=3)
    for stage, step, text in marks:
      if stage in lines:
        axis.axvline(step, color="tab:red", linewidth=0.6, alpha=0.6)
        axis.annotate(
          text,
          (step, 1),
          xycoords=("data", "axes fraction"),
          **{"fontsize": 4, "rotation": 90, "ha": "right", "va": "top"},
          parse_math=False,
        )
    axis.set_title(title, fontsize=8, parse_math=False)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
      axis.legend(fontsize=6)
  for axis in grid[len(panels) :]:
    axis.set_visible(False)
  with replace_atomic(path) as file:
    figure.savefig(file, dpi=110, format="png")
  return list(panels)


def _panels(
  rows: list[dict[str, Any]],
) -> dict[str, dict[str, list[tuple[int, float]]]]:
  """Returns points by panel title and stage, in the order of the stages."""

  def group_of(row: dict[str, Any]) -> str:
    return EVALUATES.get(row["stage"], row["stage"])

  panels = {}
  for group in dict.fromkeys(map(group_of, rows)):
    for name in SHOWN:
      lines = {}
      for row in rows:
        if group_of(row) == group and name in row:
          value = row[name]
          if not isinstance(value, int | float) or abs(value) > LARGEST:
            value = math.nan
          lines.setdefault(row["stage"], []).append((row["step"], value))
      values = [value for points in lines.values() for _, value in points]
      if any(map(math.isfinite, values)):
        panels[f"{group}: {name}"] = lines
  return panels
