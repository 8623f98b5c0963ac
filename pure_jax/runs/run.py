"""Opens a run: specification, folder, batches and task.

A workdir holds `config.json`, the task's prepared data, one folder per stage
(`sft`, `prm`, `rl`), metrics and samples. A stage whose folder has `done.json`
is finished and is loaded, not run again. A stage that was interrupted
continues from its last checkpoint.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pure_jax.host.checkpoints.record import config_differences
from pure_jax.host.distributed import global_batch, preemption, processes
from pure_jax.host.logs import console
from pure_jax.host.logs.generations import GenerationsWriter
from pure_jax.host.logs.metrics import (
  ALARMS_FILE,
  SAMPLES_FILE,
  MetricsWriter,
  NoWriter,
  RecordsWriter,
)
from pure_jax.host.text.stop_texts import boxed_stops
from pure_jax.host.text.tokenization import separator_table
from pure_jax.models import policy, prm
from pure_jax.parallel import sharding
from pure_jax.runs import allocator, locations
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.batches import Batches
from pure_jax.runs.folder import (
  BENCHMARKS,
  MAY_DIFFER,
  MAY_DIFFER_FROM_START,
  RunFolder,
)
from pure_jax.runs.memory.of_run import check_memory
from pure_jax.runs.memory.run_sizes import (
  STAGES,
  RunSizes,
  check_counts,
  read_sizes,
)
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.spec import RunSpec, make_layouts
from pure_jax.runs.tasks.arithmetic import ArithmeticTask
from pure_jax.runs.tasks.files import FilesTask, contents
from pure_jax.runs.tasks.task import Task
from pure_jax.training.step_spec import Layouts


@dataclasses.dataclass(frozen=True)
class Run:
  """An open run.

  Attributes:
    spec: its specification.
    folder: its folder, with results and logs.
    batches: makes and distributes its batches.
    task: its task: tokenizer, problems and graders.
  """

  spec: RunSpec
  folder: RunFolder
  batches: Batches
  task: Task

  @property
  def shows_progress(self) -> bool:
    """Whether this process draws progress bars."""
    return _shows_progress(self.spec.settings)

  def tell(self, message: str) -> None:
    """Says what takes a while, if this process shows progress."""
    if self.shows_progress:
      console.tell(message)


def _shows_progress(settings: Settings) -> bool:
  """Whether this process says what it does."""
  return settings.progress and processes.is_process_zero()


@contextlib.contextmanager
def open_run(
  settings: Settings,
  workdir: str,
  start: str | None = None,
  stages: Sequence[str] = STAGES,
) -> Iterator[Run]:
  """Opens or creates a run.

  Args:
    settings: the resolved config.
    workdir: the run's folder.
    start: another run's folder to take data, policy and PRM from; None
      takes this one.
    stages: the stages to run, of `run_sizes.STAGES`. Memory has to be enough
      for those that are not finished.

  Raises:
    WorkdirError: if a folder cannot be used, or belongs to another config or
      to files that held something else.
    ConfigError: if the devices are too few, a model cannot be split over
      them, memory is too small for what the run needs at least, or a model or
      file is missing here and on the hub.
  """
  settings = settings.for_platform(jax.default_backend())
  if settings.files is None:
    # Not for real models: batches of many shapes would fragment one heap.
    allocator.keep_freed_memory()
  path = pathlib.Path(workdir).absolute()
  start_path = path if start is None else pathlib.Path(start).absolute()
  config = dataclasses.asdict(settings)
  # Recorded, so that a resumed run cannot name another start.
  config["start"] = start and str(start_path)
  layouts = make_layouts(settings)
  # Before models are fetched, which the processes do together.
  processes.require_same(json.dumps(config), "The configs")
  if settings.files is not None:
    settings, recorded = _find_files(settings, path, start_path)
    config |= recorded
  processes.require_same(
    json.dumps(config), "The config and the files it names"
  )
  _check_sizes(
    read_sizes(settings, layouts),
    [s for s in stages if not (start_path / s / "done.json").exists()],
  )
  global_batch.warm_up_collectives(
    {layout.mesh for layout in vars(layouts).values()}
  )
  if start is not None:
    _check_start(start_path, config)
  _check_iterations(pathlib.Path(workdir), settings.rl.iterations)
  with contextlib.ExitStack() as opened:
    # After the checks above, so that a rejected config leaves no folder.
    writers = (
      processes.on_process_zero(lambda: _open_files(opened, workdir, config))
      or [NoWriter()] * 4
    )
    processes.require_shared_folder(path)
    make = ArithmeticTask if settings.files is None else FilesTask
    # Process 0 prepares files, then the others read them.
    task = processes.on_process_zero(lambda: make(settings, start_path))
    task = task or make(settings, start_path)
    opened.enter_context(contextlib.closing(task))
    _check_held_out(task, settings.rl.eval_prompts, layouts)
    yield Run(
      _make_spec(settings, task, layouts),
      RunFolder(path, start_path, *writers),
      Batches(task.prompt_encoder, task.prm_prompt_encoder, layouts.training),
      task,
    )
    # A signal that was lost must end the script before it reports success.
    preemption.raise_received()


def _make_spec(settings: Settings, task: Task, layouts: Layouts) -> RunSpec:
  """Makes the specification of a run on a task."""
  tokenizer, stops = task.tokenizer, None
  if settings.rl.rollout.stop_on_boxed:
    stops = boxed_stops(tokenizer.pieces)
  return RunSpec(
    settings=settings,
    model=task.model,
    prm_model=task.prm_model,
    prompt_tokens=task.prompt_encoder.length,
    prm_prompt_tokens=task.prm_prompt_encoder.length,
    table=jax.tree.map(jnp.asarray, separator_table(tokenizer)),
    sampler=settings.rl.sampler.config(
      pad_id=tokenizer.pad_id,
      stop_ids=tokenizer.eos_ids,
      banned_ids=tokenizer.banned_ids,
    ),
    stops=stops,
    layouts=layouts,
  )


def _find_files(
  settings: Settings, path: pathlib.Path, start_path: pathlib.Path
) -> tuple[Settings, dict[str, Any]]:
  """Finds and reads models and data.

  Returns the settings with paths in place of names on the hub, and what the
  record of the config has besides them.
  """
  files, commits = locations.locate(
    locations.locate_files, settings.files, path, start_path
  )
  if _shows_progress(settings):
    console.tell("reading the files of models and data")
  recorded: dict[str, Any] = {"contents": contents(files)}
  if commits:
    recorded[locations.COMMITS] = commits
  return dataclasses.replace(settings, files=files), recorded


def _check_sizes(run: RunSizes, stages: Sequence[str]) -> None:
  """Checks batches, the layouts of weights, and memory for some stages."""
  layouts = run.layouts
  check_counts(run, stages)
  try:
    for layout in (layouts.training, layouts.rollout, layouts.reference):
      sharding.weight_shardings(policy.declare_policy(run.model), layout)
    if run.prm_model is not None:
      for layout in (layouts.training, layouts.prm):
        sharding.weight_shardings(prm.declare_prm(run.prm_model), layout)
  except ValueError as error:
    raise ConfigError(f"{error} Choose other sizes or rules.") from error
  check_memory(run, stages)


def _check_held_out(task: Task, eval_prompts: int, layouts: Layouts) -> None:
  """Checks that the row shards divide held-out problems if they are few."""
  shards, available = layouts.all_row_shards, len(task.held_out)
  if available < eval_prompts and available % shards:
    raise ConfigError(
      f"There are {available} held-out problems, "
      f"rl.eval_prompts={eval_prompts} asks for more, and {shards} row shards "
      f"cannot divide {available}: set "
      f"--config.rl.eval_prompts={available // shards * shards or shards}"
      + (" and give more problems." if available < shards else ".")
    )


def _open_files(
  opened: contextlib.ExitStack, workdir: str, config: dict[str, Any]
) -> tuple[MetricsWriter, RecordsWriter, GenerationsWriter, RecordsWriter]:
  """Locks the folder and opens the files that process 0 writes."""
  rl_has_begun = (pathlib.Path(workdir) / "rl").exists()
  path = opened.enter_context(
    workdirs.open_workdir(
      workdir,
      config,
      may_differ=MAY_DIFFER if rl_has_begun else (*MAY_DIFFER, *BENCHMARKS),
    )
  )
  return (
    opened.enter_context(MetricsWriter(path)),
    opened.enter_context(RecordsWriter(path, SAMPLES_FILE)),
    opened.enter_context(GenerationsWriter(path)),
    opened.enter_context(RecordsWriter(path, ALARMS_FILE)),
  )


def _check_iterations(workdir: pathlib.Path, iterations: int) -> None:
  """Checks that a run is not resumed for fewer iterations than it has done."""
  saved = [int(p.name) for p in (workdir / "rl").glob("*") if p.name.isdigit()]
  if max(saved, default=0) > iterations:
    raise ConfigError(
      f"{workdir} is already at iteration {max(saved)}, beyond "
      f"rl.iterations={iterations}: ask for more, or for another workdir."
    )


def _check_start(start: pathlib.Path, config: dict[str, Any]) -> None:
  """Checks that a start has the same world, model and PRM as this run."""
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
