"""The folder of a run: the results of its stages, and its logs."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from pure_jax.host import json_text
from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.checkpoints.checkpointer import CheckpointError
from pure_jax.host.checkpoints.weights import load_tree, save_tree
from pure_jax.host.distributed import processes
from pure_jax.host.logs import curves
from pure_jax.host.logs.batch_dump import dump_batch
from pure_jax.host.logs.generations import (
  GENERATIONS_FILE,
  GenerationsWriter,
)
from pure_jax.host.logs.metrics import (
  ALARMS_FILE,
  METRICS_FILE,
  SAMPLES_FILE,
  MetricsWriter,
  NoWriter,
  RecordsWriter,
  read_log,
)
from pure_jax.models.params import abstract_params
from pure_jax.parallel import sharding
from pure_jax.runs import workdir as workdirs

# Config fields that a resumed run may change. Another mesh, other kernels or
# other micro-batches only change how sums are rounded. In place of commits on
# the hub the contents of the files are compared.
MAY_DIFFER = (
  *("progress", "mesh", "kernels", "rl.iterations", "commits"),
  *("rl.rollout_mesh", "rl.reference_mesh", "rl.prm_mesh"),
  *("rl.micro_batches", "rl.rollout.batches"),
  *("rl.engine", "rl.old_logp", "rl.generations"),
  *("rl.alarms", "rl.checkpoints_kept"),
  "prm.trunk_states",
)
# Only RL reads these, so that a run may add them before its RL begins. Their
# average ranks checkpoints, so that later they must stay.
BENCHMARKS = ("files.benchmarks", "contents.benchmarks")
# Config fields that may change in a run that starts from another run's stages.
MAY_DIFFER_FROM_START = (
  *("progress", "mesh", "kernels", "rl", "start", "commits"),
  "prm.trunk_states",
  *BENCHMARKS,
)


# The files of rows that have a stage and a step.
LOG_FILES = (METRICS_FILE, SAMPLES_FILE, GENERATIONS_FILE, ALARMS_FILE)


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """The folder of a run.

  A stage that is finished has a folder with ``done.json`` and ``weights``.

  Attributes:
    path: this run's folder.
    start: the folder that holds its supervised stages: `path`, or another
      run's folder.
    metrics: writes metrics.jsonl and TensorBoard events, in process 0.
    samples: writes samples.jsonl, in process 0.
    generations: writes the tables of generations, in process 0.
    alarms: writes alarms.jsonl, in process 0.
  """

  path: pathlib.Path
  start: pathlib.Path
  metrics: MetricsWriter | NoWriter
  samples: RecordsWriter | NoWriter
  generations: GenerationsWriter | NoWriter
  alarms: RecordsWriter | NoWriter

  def is_done(self, stage: str) -> bool:
    """Whether a stage is finished."""
    return processes.broadcast_from_zero(
      lambda: (self.start / stage / "done.json").exists()
    )

  def load_weights(
    self, stage: str, declared: Any, layout: sharding.Layout
  ) -> Any:
    """Loads the weights of a finished stage, sharded as `declared`.

    Raises:
      CheckpointError: if they are missing or damaged.
    """
    folder = self.start / stage
    try:
      return load_weights(folder / "weights", declared, layout)
    except CheckpointError as error:
      raise CheckpointError(
        f"{error}\nFor a finished stage to leave its weights again, from its "
        f"own checkpoints where it has them, remove {folder / 'done.json'}."
      ) from error

  def read_result(self, stage: str) -> dict[str, float | None]:
    """Reads the ``done.json`` of a finished stage: numbers, None for null.

    Raises:
      WorkdirError: if it is damaged.
    """
    path = self.start / stage / "done.json"
    try:
      result = json_text.parse(path.read_bytes(), finite=True)
      if not isinstance(result, dict) or not all(
        value is None or (type(value) in (int, float) and abs(value) < 2**63)
        for value in result.values()
      ):
        raise ValueError("it is not an object of numbers")
    except (OSError, ValueError) as error:
      raise workdirs.WorkdirError(
        f"{path} is not the result of a stage ({error}). If you remove it, the "
        "stage writes it again, from its checkpoints if it has any."
      ) from error
    return result

  def finish_stage(
    self, stage: str, weights: Any, facts: Mapping[str, float | None]
  ) -> None:
    """Saves a stage's weights, then marks it finished by ``done.json``.

    A number of `facts` that is not finite is null there.
    """
    save_tree(self.start / stage / "weights", weights)
    processes.on_process_zero(
      lambda: write_json_atomic(self.start / stage / "done.json", facts)
    )

  @contextlib.contextmanager
  def lock_start(self) -> Iterator[None]:
    """Lets one run at a time train the stages that several start from.

    Raises:
      WorkdirError: if another process uses the start folder.
    """
    with contextlib.ExitStack() as opened:
      if self.start != self.path:  # This run's own folder is locked already.
        processes.on_process_zero(
          lambda: opened.enter_context(workdirs.lock_folder(self.start))
        )
      yield

  def dump_batch(
    self, stage: str, step: int, batch: Any, facts: Mapping[str, Any]
  ) -> pathlib.Path:
    """Saves a batch that gave numbers that are not finite; returns the file.

    `pure_jax.host.logs.batch_dump` says how to read it.
    """
    path = self.path / "nonfinite" / f"{stage}_{step}.npz"
    dump_batch(path, batch, {"stage": stage, "step": step, **facts})
    return path

  def draw_curves(self) -> None:
    """Draws the metrics of all stages so far into ``curves.png``.

    Alarms are marked.
    """

    def draw() -> None:
      alarms = read_log(self.path / ALARMS_FILE)
      marks = [(row["stage"], row["step"], row["alarm"]) for row in alarms]
      curves.plot_curves(
        self.path / METRICS_FILE, self.path / "curves.png", marks
      )

    processes.on_process_zero(draw)


def load_weights(
  folder: pathlib.Path, declared: Any, layout: sharding.Layout
) -> Any:
  """Loads the weights that `RunFolder.finish_stage` saved.

  Args:
    folder: `weights` of a stage.
    declared: a `Weight` for each leaf; how the weights are sharded.
    layout: devices and rules.
  """
  abstract = jax.tree.map(
    lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf_sharding
    ),
    abstract_params(declared),
    sharding.weight_shardings(declared, layout),
  )
  return load_tree(folder, abstract)
