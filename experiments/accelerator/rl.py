"""RL of the user's model on GSM8K, for the time that is left.

The run is one of `train_pure.py`, with the fields of `configs/files.py`, in the
folder `work/rl` of the check. A repeated check continues it.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.machine import available_bytes
from configs import files
from ml_collections import ConfigDict

from accelerator.pieces import Context, Options, PieceError
from pure_jax.host import huggingface
from pure_jax.host.data import sources
from pure_jax.host.data.formats import problems
from pure_jax.host.distributed import preemption
from pure_jax.host.logs.metrics import read_log, read_metrics
from pure_jax.models import policy
from pure_jax.models.params import count_params
from pure_jax.runs import compilation_cache
from pure_jax.runs.exit_status import USER_ERRORS
from pure_jax.runs.run import Run, open_run
from pure_jax.runs.settings.conversion import settings_from_config
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.workdir import read_record

# Time for the iteration under way, its checkpoint and the curves.
RESERVE_SECONDS = {"tiny": 10.0, "full": 45.0}
# More iterations than there is time for.
_ITERATIONS = 100_000
# Bytes of a weight that is trained: weight, gradient and two moments, and the
# copies of rollouts and of the reference in 16 bits.
_TRAINED_BYTES = 16 + 2 + 2
_SAVED_BYTES = 12  # Of a weight in a checkpoint: itself and two moments.
# Checkpoints that exist at one time: two, the best, and one being written.
_CHECKPOINTS = 4
_SAMPLES = 4  # Responses of samples.jsonl in the file of the piece, the last.
# Columns of the report, of those of metrics.jsonl.
_SHOWN = {
  "rl_eval": ("accuracy", "greedy_accuracy", "response_tokens", "truncated"),
  "rl": ("accuracy", "response_tokens", "truncated", "grad_norm"),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of the run.

  Attributes:
    prompts: problems of an iteration.
    samples: responses to each.
    new_tokens: longest response.
    rows_at_a_time: responses of a micro-batch.
    eval_prompts: problems of an evaluation.
    eval_every: iterations between evaluations.
  """

  prompts: int
  samples: int
  new_tokens: int
  rows_at_a_time: int
  eval_prompts: int
  eval_every: int


SIZES = {
  "tiny": Sizes(2, 4, 32, 4, 4, 5),
  "full": Sizes(16, 8, 320, 8, 128, 15),
}


@dataclasses.dataclass(frozen=True)
class Files:
  """What the user names.

  Attributes:
    model: folder of the policy.
    train: problems of RL, as GSM8K's files have them.
    held_out: problems of evaluations.
    prm: folder of a PRM, None for outcome rewards only.
  """

  model: str
  train: str
  held_out: str
  prm: str | None = None


def check_files(options: Options) -> None:
  """Looks at what the user names, in a second.

  Args:
    options: what the command line says, with a model.

  Raises:
    PieceError: if a file is missing, or its first row is none of GSM8K.
    HuggingFaceError: if a folder holds no model.
    DataError: if a file cannot be read.
  """
  named = _named_files(options)
  for folder in (named.model, named.prm):
    if folder is not None:
      huggingface.read_config(folder)
  for path in (named.train, named.held_out):
    first = next(sources.read_rows(pathlib.Path(path)), None)
    if first is None:
      raise PieceError(f"{path} has no row.")
    fault = first.fault
    try:
      problems.GSM8K.parse(first.row or {}, 0)
    except ValueError as error:
      fault = fault or str(error)
    if fault is not None:
      raise PieceError(f"{first.location} is no row of GSM8K: {fault}.")


def run_rl(context: Context) -> dict[str, Any]:
  """Trains until the time is over, and saves the state.

  Args:
    context: what the piece is told.

  Returns:
    Evaluations and iterations of the run, its folder, and a summary.

  Raises:
    PieceError: if a file is missing or cannot be used, or the time was over
      before the first iteration.
  """
  named = _named_files(context)
  folder = context.folder("rl")
  with contextlib.suppress(OSError):
    compilation_cache.enable()
  seconds = context.seconds_left() - RESERVE_SECONDS[context.size]
  try:
    settings = make_settings(context, named)
    train_for(seconds, settings, folder)
  except USER_ERRORS as error:
    raise PieceError(str(error)) from error
  return _report(context, folder, settings)


def make_settings(context: Context, named: Files) -> Settings:
  """Makes the config of the run.

  Args:
    context: what the piece is told.
    named: what the user names.

  Returns:
    The settings; adapters are trained if the memory, or the disk for the
    checkpoints, has no room for all weights. A run goes on as it began.

  Raises:
    HuggingFaceError: if the folder of the policy cannot be read.
    ConfigError: if a field does not fit.
    WorkdirError: if the record of a run that goes on is damaged.
  """
  begun = read_record(context.folder("rl"))
  if begun is None:
    trains_all = _has_room(context, named)
  else:  # Its own checkpoints are on the disk now.
    trains_all = begun["config"]["rl"]["lora"]["rank"] == 0
  config = _make_config(SIZES[context.size], named)
  if not trains_all:
    # The base is not trained and needs no more digits than products have.
    config.files.model.param_dtype = "bfloat16"
    config.rl.lora.update({"rank": 32, "alpha": 32.0})
    config.rl.optim.learning_rate = 1e-4
  return settings_from_config(config)


def _has_room(context: Context, named: Files) -> bool:
  """Whether memory and disk have room to train all weights."""
  model = huggingface.read_config(named.model).model
  weights = count_params(policy.declare_policy(model))
  free = shutil.disk_usage(context.out).free
  return (
    _TRAINED_BYTES * weights < available_bytes() / 2
    and _CHECKPOINTS * _SAVED_BYTES * weights < free / 2
  )


def _make_config(sizes: Sizes, named: Files) -> ConfigDict:
  """The fields of a run that trains all weights."""
  config = files.get_config()
  config.files.update(
    {
      "policy": named.model,
      "prm": named.prm,
      "train": named.train,
      "train_format": "gsm8k",
      "held_out": named.held_out,
      "held_out_format": "gsm8k",
      # Nearly every problem of GSM8K is shorter.
      "prompt_tokens": 256,
      "prm_prompt_tokens": 256,
    }
  )
  config.files.model.logits_chunk = 256
  config.rl.update(
    {
      "iterations": _ITERATIONS,
      "prompts": sizes.prompts,
      "samples_per_prompt": sizes.samples,
      "micro_batches": sizes.prompts * sizes.samples // sizes.rows_at_a_time,
      "eval_prompts": sizes.eval_prompts,
      "eval_every": sizes.eval_every,
      "checkpoint_every": sizes.eval_every,
      "samples_every": 5,
    }
  )
  config.progress = False  # The number of iterations is not known.
  config.rl.sampler.max_new_tokens = sizes.new_tokens
  config.rl.rollout.stop_on_boxed = True
  config.rl.optim.learning_rate = 2e-6
  if named.prm is None:
    config.rl.credit.process_coef = 0.0
  return config


def train_for(
  seconds: float, settings: Settings, workdir: pathlib.Path
) -> None:
  """Trains for a time, or goes on with a run.

  The run ends as after SIGTERM: the iteration under way is finished and saved.

  Args:
    seconds: the time, after which the run ends.
    settings: config of the run.
    workdir: folder of the run.

  Raises:
    PieceError: if the time was over before the first iteration.
    Preempted: after a SIGTERM of somebody else; so is Terminated.
  """
  # It defines the flags of a training run, which are none of the check's.
  import train_pure

  alarm = Alarm(seconds)
  try:
    with (
      preemption.raise_on_sigterm(),
      alarm,
      open_run(settings, str(workdir)) as run,
    ):
      _train_until_sigterm(train_pure.train_rl, run, alarm)
  except preemption.Terminated:
    if not alarm.rang:
      raise
    raise PieceError(
      "the time was over before the first iteration ended; a repeated check "
      "with more --minutes goes on"
    ) from None


def _train_until_sigterm(
  train: Callable[[Run], Any], run: Run, alarm: "Alarm"
) -> None:
  """Trains; draws the curves if the alarm ends it, as its own end would."""
  try:
    train(run)
  except preemption.Preempted:
    if not alarm.rang:
      raise
    run.folder.draw_curves()


class Alarm:
  """Sends SIGTERM to this process after a time, unless the context has ended.

  Attributes:
    rang: whether it did.
  """

  def __init__(self, seconds: float):
    """Makes an alarm for a time after the context has begun."""
    self.rang = False
    self._timer = threading.Timer(max(0.0, seconds), self._ring)
    self._timer.daemon = True

  def _ring(self) -> None:
    self.rang = True
    os.kill(os.getpid(), signal.SIGTERM)

  def __enter__(self) -> "Alarm":
    self._timer.start()
    return self

  def __exit__(self, *unused: object) -> None:
    self._timer.cancel()
    self._timer.join()  # It does not ring after the handler is gone.


def _named_files(context: Context | Options) -> Files:
  """The files of the flags.

  Raises:
    PieceError: naming the flags that are missing.
  """
  named = {name: str(path) for name, path in context.rl_files.items()}
  missing = [f"--{x}" for x in ("train", "held_out") if x not in named]
  if missing:
    raise PieceError(
      f"it needs {' and '.join(missing)}: GSM8K's train.jsonl and test.jsonl, "
      "rows with a question and an answer"
    )
  return Files(str(context.model), **named)


def _report(
  context: Context, folder: pathlib.Path, settings: Settings
) -> dict[str, Any]:
  """What the run wrote, in short."""
  evaluations, iterations = (
    read_metrics(folder, stage) for stage in ("rl_eval", "rl")
  )
  first, last = evaluations[0], evaluations[-1]
  trained = (
    f"adapters of rank {settings.rl.lora.rank}"
    if settings.rl.lora.rank
    else "all weights"
  )
  where = folder.relative_to(context.out)
  return {
    "summary": (
      f"{len(iterations)} iterations of {trained}; after {last['step']}, "
      f"accuracy on held-out problems {_change('accuracy', first, last)}, "
      f"greedy {_change('greedy_accuracy', first, last)}"
    ),
    "tables": {
      "Evaluations": _shown(evaluations, "rl_eval"),
      "Iterations": _shown(iterations, "rl"),
    },
    "notes": [
      f"{where} has metrics.jsonl, curves.png, samples.jsonl and generations.",
      f"Each iteration has {settings.rl.prompts} problems with "
      f"{settings.rl.samples_per_prompt} responses of up to "
      f"{settings.rl.sampler.max_new_tokens} tokens.",
    ],
    "evaluations": evaluations,
    "iterations": iterations,
    "samples": read_log(folder / "samples.jsonl")[-_SAMPLES:],
  }


def _change(name: str, first: dict[str, Any], last: dict[str, Any]) -> str:
  """A metric before and after; null without any response."""
  before, after = (
    "undefined" if row[name] is None else f"{row[name]:.3f}"
    for row in (first, last)
  )
  return f"{before} -> {after}"


def _shown(rows: Sequence[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
  """The columns to read, and every speed that a row has."""
  return [dict(_columns(row, stage)) for row in rows]


def _columns(row: dict[str, Any], stage: str) -> Iterator[tuple[str, Any]]:
  yield "step", row["step"]
  for name, value in row.items():
    if name in _SHOWN[stage] or name.endswith("_per_second"):
      yield name, value
