"""The sizes of a run before it is opened.

They follow from the config, and from the config.json of models that it names.
Nothing else is read, and nothing is prepared or trained.
"""

import dataclasses
from collections.abc import Callable, Collection

from pure_jax.host import huggingface
from pure_jax.host.data.world import dataset
from pure_jax.models import prm
from pure_jax.models.config import ModelConfig
from pure_jax.runs.memory.needs import check_count
from pure_jax.runs.settings.files import FilesSettings
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.tasks import arithmetic, tiny_files
from pure_jax.training.step_spec import Layouts

# What, rows, columns and fields of `check_count`.
_Count = tuple[str, int, int, tuple[str, ...]]

# The stages of a run that train something.
STAGES = ("sft", "prm", "rl")

# ===== The settings that sizes follow from; a run uses some of each =====
_MODEL_FIELDS = (
  *("width", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
  "mlp_width",
)
# Of the policy's weights; the numbers of the world make its vocabulary.
MODEL = (
  *(f"model.{name}" for name in _MODEL_FIELDS),
  *("world.max_operations", "world.operand_max"),
)
# Of the columns of a prompt with its response, and of an iteration's tokens.
LENGTH = (
  *("rl.sampler.max_new_tokens", "world.max_operations"),
  "files.prompt_tokens",
)
ROWS = ("rl.prompts", "rl.samples_per_prompt", *LENGTH)
# Of what the PRM reads of a response besides its tokens.
PRM_READS = ("prm.score.max_steps", "files.prm_prompt_tokens")


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
  def trains_prm(self) -> bool:
    """Whether the run trains its PRM instead of loading one."""
    files = self.settings.files
    if files is None:
      return True
    made = _made(files)
    is_given = files.prm is not None or "prm" in made
    return not is_given and (files.labelled is not None or "labelled" in made)

  @property
  def benchmark_fields(self) -> tuple[str, ...]:
    """The settings that determine responses to benchmarks."""
    is_own = self.settings.rl.benchmark_new_tokens is not None
    limit = "benchmark_new_tokens" if is_own else "sampler.max_new_tokens"
    return ("rl.benchmark_samples", f"rl.{limit}")

  @property
  def has_benchmarks(self) -> bool:
    """Whether RL evaluates on benchmarks."""
    files = self.settings.files
    if files is None:
      return False
    return bool(files.named_benchmarks()) or "benchmarks" in _made(files)


def _made(files: FilesSettings) -> tuple[str, ...]:
  """The files that a run makes for itself."""
  return () if files.random_model is None else files.random_files


def _read_model(folder: str) -> ModelConfig:
  """The architecture of a model's folder."""
  return huggingface.read_config(folder).model


def read_sizes(
  settings: Settings,
  layouts: Layouts,
  read_model: Callable[[str], ModelConfig] = _read_model,
) -> RunSizes:
  """Reads the sizes of a run.

  Args:
    settings: the run's settings.
    layouts: devices and rules.
    read_model: reads the architecture of a model that the config names.

  Raises:
    HuggingFaceError: if the folder of a model cannot be read.
  """
  files, extra_layers = settings.files, settings.prm.extra_layers
  if files is None:
    model = settings.model.architecture(dataset.vocab_size(settings.world))
    prm_model = prm.extend_config(model, extra_layers)
    length = arithmetic.prompt_tokens(settings.world)
    return RunSizes(settings, layouts, model, prm_model, length, length)
  made = _made(files)
  if files.random_model is None:
    model = read_model(files.policy)
  else:
    model = tiny_files.architecture(
      tied=files.random_model != "untied", llama=files.random_model == "llama"
    )
  model = files.computed(model)
  has_labels = files.labelled is not None or "labelled" in made
  if files.prm is not None:
    prm_model = files.computed(read_model(files.prm))
  elif "prm" in made:
    prm_model = files.computed(tiny_files.architecture(tied=False))
  elif has_labels or settings.rl.reward_mode != "vr":
    prm_model = prm.extend_config(model, extra_layers)
  else:
    prm_model = None
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
  settings, counts = run.settings, []
  if "sft" in stages and settings.sft is not None:
    rows, fields = settings.sft.batch_size, ("sft.batch_size", *LENGTH)
    counts.append(("a batch of demonstrations", rows, run.columns, fields))
  if "prm" in stages:
    counts += _prm_counts(run)
  if "rl" in stages:
    counts += _rl_counts(run)
  for count in counts:
    check_count(settings, *count)


def _prm_counts(run: RunSizes) -> list[_Count]:
  """The batches of the PRM's training, and the policy's samples for it."""
  settings, steps = run.settings.prm, run.settings.prm.score.max_steps
  batch = ("prm.batch_size", "prm.score.max_steps")
  if run.settings.files is not None:
    # Solutions of a file have columns for the longest of them.
    return [("the labels of a batch", settings.batch_size, steps, batch)]
  what, columns = "a batch of the PRM's training", run.columns + steps
  counts = [(what, settings.batch_size, columns, (*batch, *LENGTH))]
  for name in ("policy_prompts", "eval_prompts"):
    rows = getattr(settings, name) * settings.policy_samples
    fields = (f"prm.{name}", "prm.policy_samples", *LENGTH, *PRM_READS)
    counts.append(("what the policy samples", rows, columns, fields))
  return counts


def _rl_counts(run: RunSizes) -> list[_Count]:
  """The batches of RL."""
  rl, rows = run.settings.rl, run.settings.rl.responses
  prm_columns = run.prm_prompt_tokens + run.new_tokens
  prm_columns += run.settings.prm.score.max_steps
  what, fields = "what the PRM reads in an iteration", (*ROWS, *PRM_READS)
  epochs = (*ROWS, "rl.updates.epochs")
  counts = [
    ("an iteration", rows, run.columns, ROWS),
    (what, rows, prm_columns, fields),
    ("the order of updates", rows, rl.updates.epochs, epochs),
  ]
  if rl.packed_tokens is not None:
    of_batch, fields = rows // rl.micro_batches, (*ROWS, "rl.packed_tokens")
    counts.append(("a micro-batch", of_batch, rl.packed_tokens, fields))
  if run.settings.files is None:
    fields = ("rl.eval_prompts", *LENGTH)
    counts.append(("a validation", rl.eval_prompts, run.columns, fields))
  if run.has_benchmarks:
    samples = max(rl.benchmark_samples, 1)
    columns = run.prompt_tokens + rl.benchmark_sampler.max_new_tokens
    what, fields = "a problem of a benchmark", run.benchmark_fields
    counts.append((what, samples, columns, fields))
  return counts
