"""A picture of a run: the metrics that matter, one small panel each."""

import math
import os
from typing import Any

from pure_jax.host.logs.metrics import read_metrics

# In reading order: is it learning, is it hacking, is the update healthy.
SHOWN = (
  "loss",
  "accuracy",
  "balanced_accuracy",
  "auc",
  "process_outcome",
  "min_step_score",
  "hacked_given_wrong",
  "response_tokens",
  "steps_per_response",
  "vacuous_step_share",
  "empty_step_share",
  "truncated",
  "high_repetition",
  "high_repetition_given_correct",
  "policy_loss",
  "kl_reference",
  "entropy",
  "clip_fraction",
  "ratio_max",
  "advantage_std",
  "grad_norm",
)
EVALUATION = "_eval"  # A stage named so is drawn over the one without it.
COLUMNS = 4


def plot_curves(
  metrics_path: str | os.PathLike, path: str | os.PathLike
) -> list[str]:
  """Draws a run's metrics against its steps, grouped by stage.

  A stage and its evaluations (``rl`` and ``rl_eval``) share panels. Only the
  metrics of `SHOWN` that the run has are drawn; a value that was not finite
  is a gap in its line.

  Args:
    metrics_path: ``metrics.jsonl``, or the folder it is in.
    path: the PNG file to write.

  Returns:
    Titles of the panels drawn, in order. Where there is nothing to draw the
    list is empty and no file is written.
  """
  panels = _panels(read_metrics(metrics_path))
  if not panels:
    return []
  import matplotlib.figure  # Here: only the end of a run draws.

  columns = min(COLUMNS, len(panels))
  rows = math.ceil(len(panels) / columns)
  figure = matplotlib.figure.Figure(
    figsize=(3.2 * columns, 2.2 * rows), layout="constrained"
  )
  grid = figure.subplots(rows, columns, squeeze=False).flatten()
  for axis, (title, lines) in zip(grid, panels.items(), strict=False):
    for stage, points in lines.items():
      alone = len(points) == 1  # A line of one point cannot be seen.
      style = "o-" if alone or stage.endswith(EVALUATION) else "-"
      steps, values = zip(*points, strict=True)
      axis.plot(steps, values, style, label=stage, linewidth=1, markersize=3)
    axis.set_title(title, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
      axis.legend(fontsize=6)
  for axis in grid[len(panels) :]:
    axis.set_visible(False)
  figure.savefig(path, dpi=110, format="png")
  return list(panels)


def _panels(
  rows: list[dict[str, Any]],
) -> dict[str, dict[str, list[tuple[int, float]]]]:
  """Points by panel title and stage, stages in the order they ran."""
  families = dict.fromkeys(r["stage"].removesuffix(EVALUATION) for r in rows)
  panels = {}
  for family in families:
    for name in SHOWN:
      lines = {}
      for row in rows:
        stage = row["stage"]
        if stage.removesuffix(EVALUATION) == family and name in row:
          value = math.nan if row[name] is None else row[name]
          lines.setdefault(stage, []).append((row["step"], value))
      if lines:
        panels[f"{family}: {name}"] = lines
  return panels
