"""Makes tables and a plot of plans that plan.py printed as JSON.

  python experiments/plan_tables.py --fits docs/plans/qwen*.json
  python experiments/plan_tables.py --scaling docs/plans/weak_*.json \\
    --plot=docs/weak_scaling.png

prints Markdown tables. `--fits` makes a table of the slices that a run fits.
`--scaling` makes a table of the effect of the number of chips.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import argparse
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import matplotlib.figure

from pure_jax.host import json_text
from pure_jax.host.logs import console
from pure_jax.host.logs.visible import visible
from pure_jax.runs.planning.roofline import GIB

Plan = dict[str, Any]  # As `runs.planning.report.as_json` writes it.

STAGES = ("rollout", "score", "update")
COLOURS = {"rollout": "#1b6ca8", "score": "#e08e0b", "update": "#3a7d44"}


def read_plans(paths: list[str]) -> dict[str, Plan]:
  """Reads plans by the name of their file, those with fewer chips first."""
  plans = {
    pathlib.Path(path).stem: json_text.parse(pathlib.Path(path).read_bytes())
    for path in paths
  }
  return dict(sorted(plans.items(), key=lambda item: item[1]["chips"]))


def fit_table(plans: dict[str, Plan]) -> str:
  """Makes a table of whether plans fit and of the cost of a step.

  A block with the flags that run each plan follows the Markdown table.
  """
  rows = [
    "| plan | slice | fits | GiB per chip: rollout / score / update, of | "
    "least s a step | least chip hours | bottleneck |",
    "|---|---|---|---|---|---|---|",
  ]
  for name, plan in plans.items():
    stages = {s["compiled"]["name"]: s for s in plan["stages"]}
    peaks = " / ".join(_gib(stages[stage]["total_bytes"]) for stage in STAGES)
    limit = _gib(plan["limit_bytes"])
    fits = "yes" if plan["fits"] else "**no**"
    if plan["step_seconds"] is None:
      cost = "| – | – | – |"
    else:
      cost = (
        f"| {plan['step_seconds']:.0f} | {plan['chip_hours']:,.0f} | "
        f"{plan['bottleneck']}, {plan['bound_by']} |"
      )
    rows.append(
      f"| {name} | {plan['topology']} | {fits} | {peaks}, {limit} {cost}"
    )
  rows += ["", "```text"]
  for name, plan in plans.items():
    rows += [f"# {name}", f"  {shlex.join(plan['flags'])}"]
  return "\n".join([*rows, "```"])


def scaling_table(plans: dict[str, Plan]) -> str:
  """Makes a table of FLOPs, bytes moved, bytes sent and memory of a chip."""
  rows = [
    "| chips | slice | rows | stage | TFLOP per chip | HBM GB per chip | "
    "sent GB per chip | GiB per chip | least s | bound by |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for plan in plans.values():
    for stage in _stages(plan):
      costs = stage["compiled"]["costs"]
      rows.append(
        f"| {plan['chips']} | {plan['topology']} | {plan['rows']} | "
        f"{stage['compiled']['name']} | {costs['flops'] / 1e12:,.0f} | "
        f"{costs['hbm_bytes'] / 1e9:,.0f} | {_sent(stage) / 1e9:,.1f} | "
        f"{_gib(stage['total_bytes'])} | {stage['bound']['seconds']:.1f} | "
        f"{stage['bound']['name']} |"
      )
  return "\n".join(rows)


def plot_scaling(plans: dict[str, Plan], path: str) -> None:
  """Plots FLOPs, memory and bytes sent of a chip by the number of chips."""
  panels = {
    "TFLOP per chip": lambda s: s["compiled"]["costs"]["flops"] / 1e12,
    "GiB per chip": lambda s: s["total_bytes"] / GIB,
    "GB sent per chip": lambda s: _sent(s) / 1e9,
    "least seconds": lambda s: s["bound"]["seconds"],
  }
  figure = matplotlib.figure.Figure(figsize=(11, 2.8), layout="constrained")
  axes = figure.subplots(1, len(panels))
  for axis, (title, read) in zip(axes, panels.items(), strict=True):
    for name in STAGES:
      points = [
        (plan["chips"], read(stage))
        for plan in plans.values()
        for stage in _stages(plan)
        if stage["compiled"]["name"] == name
      ]
      axis.plot(
        *zip(*points, strict=True), "o-", color=COLOURS[name], label=name
      )
    axis.set(title=title, xscale="log", ylim=(0, None), xlabel="chips")
    chips = [plan["chips"] for plan in plans.values()]
    axis.set_xticks(chips, [str(count) for count in chips])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
  axes[0].legend(frameon=False)
  figure.savefig(path, dpi=90)


def _stages(plan: Plan) -> list[dict[str, Any]]:
  """The stages of `STAGES` that were compiled."""
  return [
    stage
    for stage in plan["stages"]
    if stage["compiled"]["name"] in STAGES
    and stage["compiled"]["costs"] is not None
  ]


def _sent(stage: dict[str, Any]) -> float:
  """Bytes that leave a chip during a stage."""
  kinds = stage["compiled"]["costs"]["collectives"].values()
  return sum(kind["sent_bytes"] for kind in kinds)


def _gib(size: float | None) -> str:
  """Formats bytes in GiB."""
  return "?" if size is None else f"{size / GIB:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints the tables and draws the plot."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--fits", nargs="+", metavar="JSON")
  parser.add_argument("--scaling", nargs="+", metavar="JSON")
  parser.add_argument("--plot", metavar="PNG", help="plot of --scaling")
  options = parser.parse_args(arguments)
  if not options.fits and not options.scaling:
    parser.error("name plans with --fits or --scaling")
  tables = []
  for paths, make in (
    (options.fits, fit_table),
    (options.scaling, scaling_table),
  ):
    for path in paths or []:
      try:
        make(read_plans([path]))
      except OSError as error:
        parser.error(visible(f"{path} cannot be read: {error.strerror}"))
      except (AttributeError, KeyError, TypeError, ValueError) as error:
        parser.error(
          visible(f"{path} is no plan that plan.py --json wrote: {error!r}")
        )
    if paths:
      tables.append(make(read_plans(paths)))
  for text in tables:
    console.show(text)
  if options.scaling and options.plot:
    plot_scaling(read_plans(options.scaling), options.plot)


if __name__ == "__main__":
  interrupts.run(main)
