"""What every stage of a run shares: settings, data, tokenizer, mesh, folder.

A workdir holds `config.json`, `tokenizer.model`, the prepared data set, one
folder per stage (`sft`, `prm`, `rl`), metrics and samples. A stage whose
folder has `done.json` is finished and is loaded, not run again; one that was
cut off continues from its last checkpoint.
"""

import contextlib
import dataclasses
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags
from run_settings import ConfigError, Settings, settings_from_config

from pure_jax.host import workdir as workdirs
from pure_jax.host.checkpoint import CheckpointError, load_tree, save_tree
from pure_jax.host.contract import TokenizerError, separator_table
from pure_jax.host.data import arithmetic_dataset, batches
from pure_jax.host.metrics import MetricsError, MetricsWriter, SamplesWriter
from pure_jax.host.sentencepiece_tokenizer import SentencePieceTokenizer
from pure_jax.models import prm
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import abstract_params
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training.stages import Demonstrations
from pure_jax.types import Prompts, SeparatorTable

_CONFIG = config_flags.DEFINE_config_file(
  "config", lock_config=True, help_string="A file of experiments/configs."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")
_START = flags.DEFINE_string(
  "start",
  None,
  "Another run's workdir whose data, policy and PRM this one starts from.",
)

# Fields a resumed run may change, and those a run may change that starts
# from another run's stages.
MAY_DIFFER = ("progress", "rl.iterations")
MAY_DIFFER_FROM_START = ("progress", "mesh", "rl", "start")


@dataclasses.dataclass(frozen=True)
class Workspace:
  """An open run.

  Attributes:
    settings: the resolved config.
    workdir: this run's folder.
    start: the folder whose stages it starts from; often the same.
    mesh: the devices.
    tokenizer: the world's.
    table: which ids end a step, on the devices.
    rows: the data set, by split.
    model: the policy's architecture.
    prm_model: the PRM's.
    sampler: how rollouts are drawn.
    metrics: writes metrics.jsonl and TensorBoard events.
    samples: writes samples.jsonl.
  """

  settings: Settings
  workdir: pathlib.Path
  start: pathlib.Path
  mesh: Mesh
  tokenizer: SentencePieceTokenizer
  table: SeparatorTable
  rows: dict[str, list[dict[str, Any]]]
  model: ModelConfig
  prm_model: ModelConfig
  sampler: SamplingConfig
  metrics: MetricsWriter
  samples: SamplesWriter

  @property
  def prompt_length(self) -> int:
    """Prompt columns (L): the longest problem there can be."""
    return 2 * (self.settings.world.max_operations + 1) + 1

  def encode_prompts(self, problems: list[str]) -> Prompts:
    """Problems as left-padded ids, each followed by a line break."""
    ids = [self.tokenizer.encode(f"{problem}\n") for problem in problems]
    pad = self.tokenizer.pad_id
    return Prompts(*batches.left_pad(ids, self.prompt_length, pad))

  def encode_demonstrations(
    self, rows: list[dict[str, Any]]
  ) -> tuple[list[dict[str, Any]], Demonstrations]:
    """Rows that fit the response limit, and their ids.

    Raises:
      ConfigError: if none fits.
    """
    eos, limit = self.tokenizer.eos_id, self.settings.rl.max_new_tokens
    responses = [[*self.tokenizer.encode(r["response"]), eos] for r in rows]
    fits = [len(ids) <= limit for ids in responses]
    if not any(fits):
      raise ConfigError(
        f"rl.max_new_tokens={limit} has room for none of {len(rows)} "
        f"responses; the shortest has {min(map(len, responses))} tokens."
      )
    rows = [row for row, fit in zip(rows, fits, strict=True) if fit]
    responses = [ids for ids, fit in zip(responses, fits, strict=True) if fit]
    prompts = self.encode_prompts([row["problem"] for row in rows])
    tokens, mask = batches.right_pad(responses, limit, self.tokenizer.pad_id)
    return rows, Demonstrations(prompts.tokens, prompts.mask, tokens, mask)

  def put(self, tree: Any) -> Any:
    """Host arrays [B, ...] onto the devices, rows split over the mesh."""
    return jax.device_put(tree, sharding.batch_sharding(self.mesh))

  def key(self, stage: int) -> jax.Array:
    """The random key of a stage, on every device."""
    key = jax.random.fold_in(jax.random.key(self.settings.seed), stage)
    return jax.device_put(key, sharding.replicated(self.mesh))

  def load_weights(self, stage: str, declared: Any) -> Any:
    """What a finished stage left, sharded as declared."""
    abstract = jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
      ),
      abstract_params(declared),
      sharding.weight_shardings(declared, self.mesh),
    )
    return load_tree(self.start / stage / "weights", abstract)

  def finish_stage(self, stage: str, weights: Any, facts: dict) -> None:
    """Keeps a stage's weights, then marks it done."""
    save_tree(self.start / stage / "weights", weights)
    workdirs.write_json_atomic(self.start / stage / "done.json", facts)

  def is_done(self, stage: str) -> bool:
    """Whether the stage is finished."""
    return (self.start / stage / "done.json").exists()


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
    WorkdirError: if a folder cannot be used or belongs to another config.
    ConfigError: if the devices are too few.
  """
  config = dataclasses.asdict(settings)
  # A resumed run must not change what it started from.
  config["start"] = start and str(pathlib.Path(start).absolute())
  try:
    mesh = sharding.make_mesh(settings.mesh.data, settings.mesh.fsdp)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  if start is not None:
    _check_start(pathlib.Path(start).absolute(), config)
  # Last: what was refused so far leaves no folder behind.
  path = workdirs.prepare_workdir(workdir, config, may_differ=MAY_DIFFER)
  start_path = path if start is None else pathlib.Path(start).absolute()
  tokenizer = arithmetic_dataset.world_tokenizer(
    settings.world, start_path / "tokenizer.model"
  )
  sizes = {
    "train": max(settings.sft.demonstrations, settings.prm.policy_prompts),
    "held_out": max(settings.rl.eval_prompts, settings.prm.eval_prompts),
    "judged": settings.prm.judged,
  }
  rows = arithmetic_dataset.load_world(
    settings.world, sizes, start_path / "data"
  )
  model = settings.model.architecture(tokenizer.vocab_size)
  rl = settings.rl
  with MetricsWriter(path) as metrics, SamplesWriter(path) as samples:
    yield Workspace(
      settings=settings,
      workdir=path,
      start=start_path,
      mesh=mesh,
      tokenizer=tokenizer,
      table=jax.device_put(
        separator_table(tokenizer), sharding.replicated(mesh)
      ),
      rows=rows,
      model=model,
      prm_model=prm.extend_config(model, settings.prm.extra_layers),
      sampler=SamplingConfig(
        max_new_tokens=rl.max_new_tokens,
        pad_id=tokenizer.pad_id,
        stop_ids=(tokenizer.eos_id,),
        temperature=rl.temperature,
        top_p=rl.top_p,
        top_k=rl.top_k,
        banned_ids=tokenizer.banned_ids,
      ),
      metrics=metrics,
      samples=samples,
    )


def _check_start(start: pathlib.Path, config: dict[str, Any]) -> None:
  """Refuses a start made for another world, model or PRM."""
  record = workdirs.read_record(start)
  if record is None:
    raise workdirs.WorkdirError(
      f"--start={start} is not the workdir of a run: it has no "
      f"{workdirs.CONFIG_FILE}."
    )
  differing = workdirs.config_differences(
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


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a script's main; expected failures end in a sentence, not a trace.

  Args:
    main: takes the command line's words.
  """
  flags.mark_flags_as_required(["config", "workdir"])

  def parsed(argv):
    try:
      words = app.parse_flags_with_usage(argv)
      _CONFIG.value.to_dict()  # Raises if the file could not be read.
      return words
    # What ml_collections raises for a field or a file that is not there.
    except (AttributeError, KeyError, OSError) as error:
      reason = str(error.args[0] if error.args else error).replace("\n", " ")
      print(
        f"error: --config or an override of it cannot be used: {reason} "
        "(experiments/configs/base.py lists every field.)",
        file=sys.stderr,
      )
      sys.exit(1)

  def guarded(argv):
    if len(argv) > 1:
      raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    for chatty in ("absl", "jax"):
      logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
      main(argv)
    except (
      ConfigError,
      CheckpointError,
      MetricsError,
      arithmetic_dataset.DataError,
      TokenizerError,
      workdirs.WorkdirError,
      FloatingPointError,
    ) as error:
      print(f"error: {error}", file=sys.stderr)
      sys.exit(1)

  app.run(guarded, flags_parser=parsed)
