"""The sizes of a run before it is opened.

They follow from the config, and from the config.json of models that it names.
Nothing else is read, and nothing is prepared or trained.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping

from pure_jax.host import huggingface
from pure_jax.host.data.world import dataset
from pure_jax.models import prm
from pure_jax.models.config import ModelConfig
from pure_jax.runs.memory.needs import check_count
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.tasks import arithmetic, tiny_files
from pure_jax.training.step_spec import Layouts

# Fields of the group `model` that are sizes.
_MODEL_SIZES = (
  *("width", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
  "mlp_width",
)


# The stages of a run that train something.
STAGES = ("sft", "prm", "rl")
# What, rows, columns and fields of `check_count`.
_Count = tuple[str, int, int, Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class RunSizes:
  """A run's models and lengths, and the fields that determine them.

  Attributes:
    settings: the run's settings.
    layouts: devices and rules.
    model: the policy's architecture, without adapters.
    prm_model: the PRM's architecture; None if there is none, or none is known.
    prompt_tokens: columns of the policy's prompts (L).
    prm_prompt_tokens: columns of the PRM's prompts.
  """

  settings: Settings
  layouts: Layouts
  model: ModelConfig
  prm_model: ModelConfig | None
  prompt_tokens: int
  prm_prompt_tokens: int

  @property
  def new_tokens(self) -> int:
    """Columns of the responses (C)."""
    return self.settings.rl.sampler.max_new_tokens

  @property
  def columns(self) -> int:
    """Columns of prompts with their responses (T)."""
    return self.prompt_tokens + self.new_tokens

  @property
  def lengths(self) -> dict[str, int]:
    """The fields that determine T, by name."""
    limit = {"rl.sampler.max_new_tokens": self.new_tokens}
    if self.settings.files is not None:
      return limit | {"files.prompt_tokens": self.prompt_tokens}
    return limit | {"world.max_operations": self.settings.world.max_operations}

  @property
  def step_fields(self) -> dict[str, int]:
    """The field that determines the steps of a response (S), by name."""
    return {"prm.score.max_steps": self.settings.prm.score.max_steps}

  @property
  def prm_prompt_fields(self) -> dict[str, int]:
    """The field that determines the PRM's prompts, by name."""
    if self.settings.files is None:
      return {"world.max_operations": self.settings.world.max_operations}
    return {"files.prm_prompt_tokens": self.prm_prompt_tokens}

  @property
  def row_fields(self) -> dict[str, int]:
    """The fields that determine the tokens of an iteration, by name."""
    rl = self.settings.rl
    rows = {"rl.prompts": rl.prompts}
    return (
      rows | {"rl.samples_per_prompt": rl.samples_per_prompt} | self.lengths
    )

  @property
  def model_fields(self) -> dict[str, int]:
    """The fields that determine the policy's weights, by name."""
    model, world = self.settings.model, self.settings.world
    if model is None:
      return {}
    sizes = {f"model.{name}": getattr(model, name) for name in _MODEL_SIZES}
    vocabulary = ("max_operations", "operand_max")
    return sizes | {
      f"world.{name}": getattr(world, name) for name in vocabulary
    }

  @property
  def trained_fields(self) -> dict[str, int]:
    """The fields that determine the weights that RL trains, by name."""
    rank = self.settings.rl.lora.rank
    return self.model_fields | ({"rl.lora.rank": rank} if rank else {})

  @property
  def prm_fields(self) -> dict[str, int]:
    """The fields that determine the PRM's weights, by name."""
    layers = self.settings.prm.extra_layers
    return self.model_fields | ({"prm.extra_layers": layers} if layers else {})

  @property
  def trains_prm(self) -> bool:
    """Whether the run trains its PRM instead of loading one."""
    files = self.settings.files
    if files is None:
      return True
    made = () if files.random_model is None else files.random_files
    is_given = files.prm is not None or "prm" in made
    has_data = files.labelled is not None or "labelled" in made
    return has_data and not is_given

  @property
  def benchmark_fields(self) -> dict[str, int]:
    """The fields that determine responses to benchmarks, by name."""
    rl = self.settings.rl
    limit, name = rl.benchmark_sampler.max_new_tokens, "max_new_tokens"
    name = (
      f"sampler.{name}" if limit == self.new_tokens else "benchmark_new_tokens"
    )
    fields = {"rl.benchmark_samples": rl.benchmark_samples}
    return fields | {f"rl.{name}": limit}

  @property
  def has_benchmarks(self) -> bool:
    """Whether RL evaluates on benchmarks."""
    files = self.settings.files
    if files is None:
      return False
    makes_some = files.random_model and "benchmarks" in files.random_files
    return bool(files.named_benchmarks()) or bool(makes_some)


def read_sizes(settings: Settings, layouts: Layouts) -> RunSizes:
  """Reads the sizes of a run.

  Args:
    settings: the run's settings.
    layouts: devices and rules.

  Raises:
    HuggingFaceError: if the folder of a model cannot be read.
  """
  files, extra_layers = settings.files, settings.prm.extra_layers
  if files is None:
    model = settings.model.architecture(dataset.vocab_size(settings.world))
    prm_model = prm.extend_config(model, extra_layers)
    length = arithmetic.prompt_tokens(settings.world)
    return RunSizes(settings, layouts, model, prm_model, length, length)
  made = () if files.random_model is None else files.random_files
  if files.random_model is not None:
    tied, is_llama = (
      files.random_model != "untied",
      files.random_model == "llama",
    )
    model = tiny_files.architecture(tied, is_llama)
  else:
    model = huggingface.read_config(files.policy).model
  model = files.computed(model)
  if files.prm is not None:
    prm_model = files.computed(huggingface.read_config(files.prm).model)
  elif "prm" in made:
    prm_model = files.computed(tiny_files.architecture(tied=False))
  elif (
    files.labelled is None
    and "labelled" not in made
    and (settings.rl.reward_mode == "vr")
  ):
    prm_model = None
  else:
    prm_model = prm.extend_config(model, extra_layers)
  lengths = files.prompt_tokens, files.prm_prompt_tokens
  return RunSizes(settings, layouts, model, prm_model, *lengths)


def check_counts(run: RunSizes, stages: Collection[str]) -> None:
  """Validates that the tokens of every batch can be counted.

  Args:
    run: the run.
    stages: the stages that are going to run, of `STAGES`.

  Raises:
    ConfigError: if a batch has too many; it names the field.
  """
  counts = {"sft": _sft_counts, "prm": _prm_counts, "rl": _rl_counts}
  for stage in stages:
    for count in counts[stage](run):
      check_count(*count)


def _sft_counts(run: RunSizes) -> list[_Count]:
  """The batches of the supervised start."""
  if run.settings.sft is None:
    return []
  rows = run.settings.sft.batch_size
  fields = {"sft.batch_size": rows} | run.lengths
  return [("a batch of demonstrations", rows, run.columns, fields)]


def _prm_counts(run: RunSizes) -> list[_Count]:
  """The batches of the PRM's training, and the policy's samples for it."""
  settings, files = run.settings.prm, run.settings.files
  batch, steps = {"prm.batch_size": settings.batch_size}, run.step_fields
  if files is not None:
    # Solutions of a file have columns for the longest of them.
    what, columns = "the labels of a batch", settings.score.max_steps
    return [(what, settings.batch_size, columns, batch | steps)]
  columns, lengths = run.columns + settings.score.max_steps, run.lengths
  what, fields = "a batch of the PRM's training", batch | lengths | steps
  counts = [(what, settings.batch_size, columns, fields)]
  samples = {"prm.policy_samples": settings.policy_samples}
  for name in ("policy_prompts", "eval_prompts"):
    fields = {f"prm.{name}": getattr(settings, name)} | samples
    rows, what = math.prod(fields.values()), "what the policy samples"
    counts.append((what, rows, columns, fields | lengths | steps))
  return counts


def _rl_counts(run: RunSizes) -> list[_Count]:
  """The batches of RL."""
  rl, fields = run.settings.rl, run.row_fields
  steps = run.step_fields
  prm_columns = run.prm_prompt_tokens + run.new_tokens + sum(steps.values())
  epochs = {"rl.updates.epochs": rl.updates.epochs}
  counts = [
    ("an iteration", rl.responses, run.columns, fields),
    (
      "what the PRM reads in an iteration",
      rl.responses,
      prm_columns,
      fields | steps | run.prm_prompt_fields,
    ),
    ("the order of updates", rl.responses, rl.updates.epochs, fields | epochs),
  ]
  if rl.packed_tokens is not None:
    packed = {"rl.packed_tokens": rl.packed_tokens}
    rows = rl.responses // rl.micro_batches
    counts.append(("a micro-batch", rows, rl.packed_tokens, fields | packed))
  if run.settings.files is None:
    held_out = {"rl.eval_prompts": rl.eval_prompts} | run.lengths
    counts.append(("a validation", rl.eval_prompts, run.columns, held_out))
  if run.has_benchmarks:
    samples = max(rl.benchmark_samples, 1)
    columns = run.prompt_tokens + rl.benchmark_sampler.max_new_tokens
    counts.append(
      ("a problem of a benchmark", samples, columns, run.benchmark_fields)
    )
  return counts
