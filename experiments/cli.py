"""Opens a run from flags, and ends it in a sentence where it cannot go on.

A workdir holds `config.json`, the task's prepared data, one folder per stage
(`sft`, `prm`, `rl`), metrics and samples. A stage whose folder has `done.json`
is finished and is loaded, not run again; one that was cut off continues from
its last checkpoint.
"""

import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from pure_jax.host.checkpoints.record import config_differences
from pure_jax.host.distributed import (
  cluster,
  preemption,
  processes,
  shared_rows,
  watchdog,
)
from pure_jax.host.logs.metrics import MetricsWriter, NoWriter, SamplesWriter
from pure_jax.host.text.tokenization import separator_table
from pure_jax.models import policy, prm
from pure_jax.parallel import sharding
from pure_jax.runs import allocator, compilation_cache, exit_status
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.mesh import RLLayouts
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.tasks.arithmetic import ArithmeticTask
from pure_jax.runs.tasks.files import FilesTask, contents
from pure_jax.runs.workspace import (
  MAY_DIFFER,
  MAY_DIFFER_FROM_START,
  Task,
  Workspace,
)

_CONFIG = config_flags.DEFINE_config_file(
  "config", lock_config=True, help_string="A file of experiments/configs."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")
_START = flags.DEFINE_string(
  "start",
  None,
  "Another run's workdir whose data, policy and PRM this one starts from.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "host:port of process 0 of several; with --processes and --process_id. "
  "Without the three, a cluster that jax knows is asked.",
)
_PROCESSES = flags.DEFINE_integer(
  "processes", None, "How many processes there are; 1 asks no cluster."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this is, from 0."
)
_CONNECT_SECONDS = flags.DEFINE_integer(
  "connect_seconds", 300, "How long to wait for the others.", lower_bound=1
)
_SILENCE_SECONDS = flags.DEFINE_integer(
  "silence_seconds",
  100,
  "After how long without a sign of life a process counts as dead.",
  lower_bound=1,
)
_COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache",
  None,
  "Folder where compiled programs are kept for the next start, or 'off'. "
  "Without it that of JAX_COMPILATION_CACHE_DIR, else one in ~/.cache.",
)

_Kind = TypeVar("_Kind")


@contextlib.contextmanager
def open_workspace(
  settings: Settings, workdir: str, start: str | None = None
) -> Iterator[Workspace]:
  """Opens or creates a run.

  Args:
    settings: the resolved config.
    workdir: the run's folder.
    start: another run's folder to take data, policy and PRM from; None
      takes this one.

  Yields:
    The workspace; its files are closed afterwards.

  Raises:
    WorkdirError: if a folder cannot be used, or belongs to another config or
      to files that held something else.
    ConfigError: if the devices are too few, a model cannot be split over
      them, or a file is missing.
  """
  settings = settings.for_platform(jax.default_backend())
  if settings.files is None:
    # Not for real models: batches of many shapes tear holes into one heap.
    allocator.keep_freed_memory()
  config = dataclasses.asdict(settings)
  # A resumed run must not change what it started from.
  config["start"] = start and str(pathlib.Path(start).absolute())
  if settings.files is not None:
    config["contents"] = contents(settings.files)
  layout, rl_layouts = layouts(settings)
  processes.check_same(json.dumps(config), "The config and the files it names")
  shared_rows.warm_up_collectives(
    {x.mesh for x in (layout, *vars(rl_layouts).values())}
  )
  if start is not None:
    _check_start(pathlib.Path(start).absolute(), config)
  _check_iterations(pathlib.Path(workdir), settings.rl.iterations)
  path = pathlib.Path(workdir).absolute()
  start_path = path if start is None else pathlib.Path(start).absolute()
  rl = settings.rl
  with contextlib.ExitStack() as opened:
    # Last: what was refused so far leaves no folder behind.
    metrics, samples = processes.on_process_zero(
      lambda: _open_files(opened, workdir, config)
    ) or (NoWriter(), NoWriter())
    processes.check_shared(path)
    task = opened.enter_context(_open_task(settings, start_path))
    _check_fit(task, layout, rl_layouts)
    _check_held_out(task, settings.rl.eval_prompts, layout, rl_layouts)
    tokenizer = task.tokenizer
    yield Workspace(
      settings=settings,
      workdir=path,
      start=start_path,
      layout=layout,
      rl_layouts=rl_layouts,
      task=task,
      table=jax.tree.map(jnp.asarray, separator_table(tokenizer)),
      prm_model=task.prm_model,
      sampler=rl.sampler.config(
        pad_id=tokenizer.pad_id,
        stop_ids=(tokenizer.eos_id,),
        banned_ids=tokenizer.banned_ids,
      ),
      metrics=metrics,
      samples=samples,
    )


def layouts(settings: Settings) -> tuple[sharding.Layout, RLLayouts]:
  """Where the models of a run live, and what they call there.

  Args:
    settings: of the run.

  Returns:
    (of the policy in training, of the others).

  Raises:
    ConfigError: if the devices cannot be laid out so, or a kernel not run on
      them.
  """
  rl = settings.rl
  # Neither a rollout nor the PRM reads log-probs: theirs may split the head.
  headless = dataclasses.replace(settings.kernels, logp="xla")
  try:
    layout = settings.mesh.layout(settings.kernels)
    others = [
      layout if mesh is None else mesh.layout(kernels)
      for mesh, kernels in (
        (rl.rollout_mesh, headless),
        (rl.reference_mesh, settings.kernels),
        (rl.prm_mesh, headless),
      )
    ]
  except ValueError as error:
    raise ConfigError(str(error)) from error
  return layout, RLLayouts(*others)


def _check_fit(task: Task, layout: sharding.Layout, others: RLLayouts) -> None:
  """Refuses layouts that do not divide the models."""
  try:
    for place in (layout, others.rollout, others.reference):
      sharding.weight_shardings(policy.declare_policy(task.model), place)
    if task.prm_model is not None:
      for place in (layout, others.prm):
        sharding.weight_shardings(prm.declare_prm(task.prm_model), place)
  except ValueError as error:
    raise ConfigError(f"{error} Choose other sizes or rules.") from error


def _check_held_out(
  task: Task, wanted: int, layout: sharding.Layout, others: RLLayouts
) -> None:
  """Refuses held-out problems that are too few and cannot be split."""
  places = (layout, others.rollout, others.reference, others.prm)
  shards = math.lcm(*(place.row_shards for place in places))
  found = len(task.held_out)
  if found < wanted and found % shards:
    raise ConfigError(
      f"There are {found} held-out problems, rl.eval_prompts={wanted} asks for "
      f"more, and {shards} row shards cannot divide {found}: set "
      f"--config.rl.eval_prompts={found // shards * shards or shards}"
      + (" and give more problems." if found < shards else ".")
    )


def _open_files(
  opened: contextlib.ExitStack, workdir: str, config: dict[str, Any]
) -> tuple[MetricsWriter, SamplesWriter]:
  """Takes the folder, and opens what one process alone writes."""
  path = workdirs.prepare_workdir(workdir, config, may_differ=MAY_DIFFER)
  opened.enter_context(workdirs.locked(path))
  return (
    opened.enter_context(MetricsWriter(path)),
    opened.enter_context(SamplesWriter(path)),
  )


def _open_task(
  settings: Settings, folder: pathlib.Path
) -> contextlib.closing[Task]:
  """The task; process 0 makes the files that the others then find."""
  make = ArithmeticTask if settings.files is None else FilesTask
  task = processes.on_process_zero(lambda: make(settings, folder))
  return contextlib.closing(task or make(settings, folder))


def _check_iterations(workdir: pathlib.Path, iterations: int) -> None:
  """Refuses fewer iterations than a run has behind it."""
  saved = [int(p.name) for p in (workdir / "rl").glob("*") if p.name.isdigit()]
  if max(saved, default=0) > iterations:
    raise ConfigError(
      f"{workdir} is already at iteration {max(saved)}, beyond "
      f"rl.iterations={iterations}: ask for more, or for another workdir."
    )


def _check_start(start: pathlib.Path, config: dict[str, Any]) -> None:
  """Refuses a start made for another world, model or PRM."""
  record = workdirs.read_record(start)
  if record is None:
    raise workdirs.WorkdirError(
      f"--start={start} is not the workdir of a run: it has no "
      f"{workdirs.CONFIG_FILE}."
    )
  differing = config_differences(
    record["config"], config, MAY_DIFFER_FROM_START
  )
  if differing:
    raise workdirs.WorkdirError(
      f"--start={start} was made with another config:\n  "
      + "\n  ".join(differing)
    )


@contextlib.contextmanager
def from_flags() -> Iterator[Workspace]:
  """The workspace that --config, --workdir and --start name."""
  settings = settings_from_config(_CONFIG.value)
  with open_workspace(settings, _WORKDIR.value, _START.value) as space:
    yield space


def config_and_workdir(kind: type[_Kind]) -> tuple[_Kind, str]:
  """What --config and --workdir name, for a script that trains nothing.

  Args:
    kind: the dataclass of its settings.

  Returns:
    (the settings, the folder).

  Raises:
    ConfigError: if the config cannot be used, or --start is given.
  """
  if _START.value is not None:
    raise ConfigError("--start is for training: nothing is started from here.")
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    raise ConfigError(
      f"This script runs in one process, not in {jax.process_count()}: start "
      "it once, or with --processes=1 by itself."
    )
  return settings_from_config(_CONFIG.value, kind), _WORKDIR.value


def run(
  main: Callable[[list[str]], None],
  required: Sequence[str] = ("config", "workdir"),
  keeps_programs: bool = True,
) -> None:
  """Runs a script's main; expected failures end in a sentence, not a trace.

  So do Ctrl-C, with exit status 130, and SIGTERM: with 75, "try again later",
  where a loop was under way, which is then saved to its last step, and with
  143 elsewhere. After any of them the same command continues.

  Args:
    main: takes the command line's words.
    required: flags that must be given.
    keeps_programs: whether what is compiled is kept for the next start.
  """
  flags.mark_flags_as_required(list(required))

  def parsed(argv):
    try:
      words = app.parse_flags_with_usage(argv)
      _CONFIG.value.to_dict()  # Raises if the file could not be read.
      return words
    # What ml_collections raises for a field or a file that is not there.
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
      # A KeyError's text is quoted by repr, sometimes twice.
      reason = str(error.args[0] if error.args else error)
      for quoted in ("\\n", "\n"):
        reason = reason.replace(quoted, " ")
      reason = reason.replace("\\", "").strip("\"' ")
      print(
        f"error: --config or an override of it cannot be used: {reason} "
        "(The file lists every field, or the one in its folder that it begins "
        "with.)",
        file=sys.stderr,
      )
      sys.exit(1)

  def guarded(argv):
    if len(argv) > 1:
      raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    for chatty in ("absl", "jax"):
      logging.getLogger(chatty).setLevel(logging.WARNING)
    if keeps_programs:
      _keep_programs()
    with (
      exit_status.in_a_sentence(),
      watchdog.joined(_membership()),
      preemption.terminable(),
    ):
      main(argv)

  app.run(guarded, flags_parser=parsed)


def _keep_programs() -> None:
  """Keeps compiled programs; a folder that takes none is no reason to end."""
  try:
    compilation_cache.keep(_COMPILATION_CACHE.value)
  except OSError as error:
    print(
      f"compiled programs are not kept: {error}. The next start compiles "
      "again; --compilation_cache names another folder.",
      file=sys.stderr,
    )


def _membership() -> cluster.Membership:
  """What the flags say of the other processes."""
  return cluster.Membership(
    _COORDINATOR.value,
    _PROCESSES.value,
    _PROCESS_ID.value,
    _CONNECT_SECONDS.value,
    _SILENCE_SECONDS.value,
  )
