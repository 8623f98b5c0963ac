"""Compares the forms of credit: every arm, several seeds, a table, a picture.

  python experiments/compare_credit.py --workdir=runs/compare

Each seed has its own demonstrations, policy and PRM. Every arm of `ARMS` starts
from them with the same budget, hyperparameters and random keys, and differs
only in `rl.credit`: in its form and its two weights. `vr` uses all answers, an
arm with `+vr` those of `rl.answer_fraction` of the prompts.

A config of models that the user names has one policy for all seeds, and with
files.prm one PRM. Without files.prm each seed trains a PRM on files.labelled:

  python experiments/compare_credit.py --workdir=runs/compare_gsm8k \\
    --config_file=experiments/configs/qwen2p5_0p5b_gsm8k.py \\
    --seeds=0 --arms=sum,min,min+vr,vr --jobs=1 --set=files.prm=FOLDER

The command can be repeated until all runs have finished: finished runs are not
repeated, and interrupted ones continue. `--report_only` reads finished runs.

The workdir gets one folder per run, `runs.json` (every evaluation of
every run), `prm.json` (the metrics of each seed's PRM), `table.md` and
`curves.png`.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import concurrent.futures
import importlib.util
import math
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import threading

import matplotlib.figure
import scipy.stats
from absl import app, flags
from ml_collections import ConfigDict

from pure_jax.host import json_text
from pure_jax.host.atomic_files import write_json_atomic, write_text_atomic
from pure_jax.host.distributed import preemption
from pure_jax.host.logs import console
from pure_jax.host.logs.metrics import MetricsError, read_metrics
from pure_jax.host.workers import child_guard
from pure_jax.runs import workdir as workdirs

HERE = pathlib.Path(__file__).resolve().parent

# Form of credit, weight of the step rewards, weight of the outcome reward.
_ARMS_OF_CREDIT = {
  "sum": ("sum", 1.0, 0.0),
  "softmin": ("softmin", 1.0, 0.0),
  "min": ("min", 1.0, 0.0),
  "min_eq3": ("min_eq3", 1.0, 0.0),
  "sum+vr": ("sum", 1.0, 1.0),
  "softmin+vr": ("softmin", 1.0, 1.0),
  "min+vr": ("min", 1.0, 1.0),
  "vr": ("min", 0.0, 1.0),  # The form has no effect.
}
ARMS = {
  name: dict(zip(("form", "process_coef", "verifiable_coef"), arm, strict=True))
  for name, arm in _ARMS_OF_CREDIT.items()
}
COLUMNS = (
  ("accuracy", "accuracy"),
  ("greedy_accuracy", "greedy"),
  ("process_outcome", "process outcome"),
  ("hacked_given_wrong", "P(min > 0 given wrong)"),
  ("response_tokens", "tokens"),
)
LAST_EVALUATIONS = 3  # Most that the table averages, fewer if a run has fewer.

# The runs' scripts have a flag of this name too; a test may import both.
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the runs.", allow_override=True
)
_CONFIG = flags.DEFINE_string(
  "config_file", str(HERE / "configs" / "arithmetic.py"), "Config of each run."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Independent seeds.")
_ARMS = flags.DEFINE_list("arms", list(ARMS), "Arms to run.")
_JOBS = flags.DEFINE_integer(
  "jobs", 2, "Runs at a time; they share the cores evenly.", lower_bound=1
)
_OVERRIDES = flags.DEFINE_multi_string(
  "set", [], "field=value for every arm, e.g. --set=rl.iterations=50"
)
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Only report.")


def read_config() -> ConfigDict:
  """The config of the runs, before --set changes it."""
  path, _, variant = _CONFIG.value.partition(":")
  module_spec = importlib.util.spec_from_file_location("config_of_runs", path)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  return module.get_config(variant) if variant else module.get_config()


def trains_prm(config: ConfigDict) -> bool:
  """Whether the arms of a seed share a PRM that is trained for them."""
  if config.files is None:
    return True
  named = any(item.startswith("files.prm=") for item in _OVERRIDES.value)
  return config.files.prm is None and not named


def command(
  script: str,
  workdir: pathlib.Path,
  seed: str,
  has_world: bool,
  changes: dict[str, str],
) -> list[str]:
  """The command line of one run."""
  return [
    sys.executable,
    str(HERE / script),
    f"--config={_CONFIG.value}",
    f"--workdir={workdir}",
    f"--config.seed={seed}",
    *([f"--config.world.seed={seed}"] if has_world else []),
    "--config.progress=False",
    *(f"--config.{item}" for item in _OVERRIDES.value),
    *(f"--config.rl.credit.{name}={value}" for name, value in changes.items()),
  ]


def run_all(jobs: list[tuple[list[str], pathlib.Path]], at_a_time: int) -> None:
  """Runs command lines in parallel, each on its cores and with its own log.

  Ctrl-C ends the running ones and starts no other.
  """
  at_a_time = max(1, min(at_a_time, len(jobs)))
  running, stopped, failed = [], threading.Event(), 0
  cores, can_pin = queue.SimpleQueue(), hasattr(os, "sched_setaffinity")
  usable = sorted(os.sched_getaffinity(0)) if can_pin else [0]
  share = max(1, len(usable) // at_a_time)
  for number in range(at_a_time):
    first = number * share % len(usable)
    cores.put(usable[first : first + share])

  def pin():
    """Binds a thread to its cores, which the runs that it starts inherit."""
    if can_pin:
      os.sched_setaffinity(0, cores.get())

  def one(job):
    line, log = job
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
      log.open("ab") as output,
      subprocess.Popen(line, stdout=output, stderr=output) as process,
    ):
      child_guard.add(process.pid)
      running.append(process)
      if stopped.is_set():  # While it started.
        process.terminate()
      status = process.wait()
      child_guard.remove(process.pid)
    if status == 0:
      console.show(f"done   {log}")
    elif not stopped.is_set():
      last = log.read_text(errors="replace").strip().splitlines()[-1:]
      console.show(" ".join(["FAILED", str(log), *last]))
    return status

  with concurrent.futures.ThreadPoolExecutor(
    at_a_time, initializer=pin
  ) as pool:
    try:
      for status in pool.map(one, jobs):
        preemption.raise_received()
        failed += status != 0
    except KeyboardInterrupt:
      # On a terminal Ctrl-C has reached the runs before this signal does.
      stopped.set()
      for process in running:
        process.terminate()
      raise
  if failed:
    console.tell(f"{failed} of {len(jobs)} runs failed; see their logs.")
    sys.exit(1)


def run_missing(root: pathlib.Path) -> None:
  """Runs the start that the arms of a seed share, then unfinished arms."""
  config = read_config()
  has_world, has_start = config.world is not None, trains_prm(config)
  starts, arms = [], []
  for seed in _SEEDS.value:
    start = root / f"seed{seed}" / "start"
    if has_start and not (start / "prm" / "done.json").exists():
      line = command("train_prm.py", start, seed, has_world, {})
      starts.append((line, start / "log.txt"))
    for arm in _ARMS.value:
      folder = root / f"seed{seed}" / arm
      if not (folder / "summary.json").exists():
        line = command("train_pure.py", folder, seed, has_world, ARMS[arm])
        if has_start:
          line.append(f"--start={start}")
        arms.append((line, folder / "log.txt"))
  run_all(starts, _JOBS.value)
  run_all(arms, _JOBS.value)


def collect(root: pathlib.Path) -> list[dict]:
  """Reads every evaluation of every finished run."""
  rows = []
  for seed in _SEEDS.value:
    for arm in _ARMS.value:
      folder = root / f"seed{seed}" / arm
      if not (folder / "summary.json").exists():
        continue
      for row in read_metrics(folder, "rl_eval", ("accuracy",)):
        metrics = {name: row.get(name) for name, _ in COLUMNS}
        run = {"arm": arm, "seed": seed, "step": row["step"]}
        rows.append(run | metrics)
  return rows


def collect_starts(root: pathlib.Path) -> dict[str, dict]:
  """Metrics of each seed's PRM on held-out prompts, before RL."""
  starts = {}
  for seed in _SEEDS.value:
    folder = root / f"seed{seed}" / "start"
    if (folder / "metrics.jsonl").exists():
      rows = read_metrics(folder, "prm_eval")
      if rows:
        starts[seed] = rows[0]
  return starts


def mean_and_interval(values: list[float]) -> tuple[float, float | None]:
  """Mean over seeds and the half width of its 95 % t interval."""
  mean = statistics.fmean(values)
  if len(values) < 2:
    return mean, None
  quantile = float(scipy.stats.t.ppf(0.975, len(values) - 1))
  return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def table(rows: list[dict]) -> str:
  """A Markdown table: per arm, means of the last evaluations over seeds.

  No column has the evaluation at step 0, of the policy that all arms share.
  """
  arms = {}
  for row in rows:
    run = arms.setdefault(row["arm"], {}).setdefault(row["seed"], [])
    if row["step"] > 0:
      run.append(row)
  counts = {
    min(LAST_EVALUATIONS, len(run))
    for runs in arms.values()
    for run in runs.values()
  }
  last = "-".join(map(str, sorted({min(counts), max(counts)})))
  titles = [f"{title} (last {last})" for _, title in COLUMNS[:2]]
  titles += ["best accuracy", *(title for _, title in COLUMNS[2:]), "seeds"]
  rule = "|---" * (len(titles) + 1) + "|"
  lines = ["| arm | " + " | ".join(titles) + " |", rule]
  for arm, runs in arms.items():
    cells = {}
    for name, _ in COLUMNS:
      tails = []
      for run in runs.values():
        tail = [r[name] for r in run[-LAST_EVALUATIONS:] if r[name] is not None]
        if tail:
          tails.append(statistics.fmean(tail))
      cells[name] = _cell(tails, 1 if name == "response_tokens" else 3)
    known = [
      [r["accuracy"] for r in run if r["accuracy"] is not None]
      for run in runs.values()
    ]
    best = _cell([max(accuracies) for accuracies in known if accuracies], 3)
    first, second, *rest = cells.values()
    cells_in_order = [arm, first, second, best, *rest, str(len(runs))]
    lines.append("| " + " | ".join(cells_in_order) + " |")
  return "\n".join(lines) + "\n"


def _cell(values: list[float], digits: int) -> str:
  """Mean ± half width, or a dash if nothing was measured."""
  if not values:
    return "–"
  mean, width = mean_and_interval(values)
  interval = "" if width is None else f" ± {width:.{digits}f}"
  return f"{mean:.{digits}f}{interval}"


def plot(rows: list[dict], path: pathlib.Path) -> None:
  """Plots means over seeds, with bands from the worst to the best seed."""
  figure = matplotlib.figure.Figure(figsize=(12, 7), layout="constrained")
  axes = figure.subplots(2, 2)
  for axis, (name, title) in zip(axes.flat, COLUMNS[:4], strict=True):
    for number, arm in enumerate(dict.fromkeys(r["arm"] for r in rows)):
      by_step = {}
      for row in rows:
        if row["arm"] == arm and row[name] is not None:
          by_step.setdefault(row["step"], []).append(row[name])
      steps = sorted(by_step)
      style = "--" if "vr" in arm else "-"
      axis.plot(
        steps,
        [statistics.fmean(by_step[s]) for s in steps],
        style,
        color=f"C{number}",
        label=arm,
      )
      axis.fill_between(
        steps,
        [min(by_step[s]) for s in steps],
        [max(by_step[s]) for s in steps],
        color=f"C{number}",
        alpha=0.06,
        linewidth=0,
      )
    axis.set(title=f"{title}, held-out prompts", xlabel="iteration")
    axis.grid(alpha=0.3)
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, ncols=len(labels), loc="outside upper center")
  figure.savefig(path, dpi=100)


def main(argv: list[str]) -> None:
  """Runs missing runs, then reports."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  unknown = set(_ARMS.value) - set(ARMS)
  if unknown:
    raise app.UsageError(f"Unknown arms {sorted(unknown)}; known: {list(ARMS)}")
  config_file = os.path.relpath(_CONFIG.value, HERE)
  settings = {"config_file": config_file, "set": sorted(_OVERRIDES.value)}
  try:
    root = workdirs.prepare_workdir(_WORKDIR.value, settings)
  except workdirs.WorkdirError as error:
    console.tell(f"error: {error}")
    sys.exit(1)
  if not _REPORT_ONLY.value:
    run_missing(root)
  try:
    rows, starts = collect(root), collect_starts(root)
  except MetricsError as error:
    console.tell(f"error: {error}")
    sys.exit(1)
  if not rows:
    console.tell(f"No finished run in {root}.")
    sys.exit(1)
  write_text_atomic(
    root / "runs.json", "[\n" + ",\n".join(map(json_text.dump, rows)) + "\n]\n"
  )
  write_json_atomic(root / "prm.json", starts)
  write_text_atomic(root / "table.md", table(rows))
  plot(rows, root / "curves.png")
  console.show(table(rows))


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  interrupts.run(app.run, main)
