"""Times every stage of RL against the limits of the machine and other programs.

  python experiments/benchmark.py --suite=all --json=benchmark.json
  python experiments/benchmark.py --suite=rollout --models=smollm2_135m \\
    --rows=1,8,32 --samples=1,8 --lengths=64:128,512:512
  python experiments/benchmark.py --suite=all --preset=accelerator \\
    --json=benchmark.json
  python experiments/benchmark.py --suite=all --preset=all_lengths \\
    --baselines=all --environments=FOLDER --json=benchmark.json --resume
  python experiments/benchmark.py --make_environments=FOLDER
  python experiments/benchmark.py --suite=rollout --baselines=transformers \\
    --environments=FOLDER

Suites: rollout, scores, update, update of texts of different lengths in packed
rows, the training step of a PRM, and a whole iteration. A preset gives the
sizes that no flag sets. Weights are random, in the shapes of
`benchmarks.cases.MODELS`, or read from a Hugging Face folder.

Each case has several arms: our programs, baselines, and probes of the rates at
which this machine streams an array as large as the weights and multiplies
matrices. All arms are compiled first, and then timed in interleaved rounds.
The table shows medians, the roofline bound that follows from the probes of the
same rounds, the share of it that is reached, and the utilisation by the FLOPs
and bytes that the method needs, always in the compute dtype; also memory and
the time to compile. No cache of compiled programs is used. A case whose weights
do not fit into memory is reported and skipped, and so is a case that fails,
which the exit status shows at the end. A case is repeated up to --repeats
times, fewer if that would take more than --seconds, but at least twice. Each
result is saved at once, and --resume measures only what the file lacks.

Baselines (`benchmarks/baselines`) are other programs that do the same as an
arm of ours, on the same weights and prompts; that their results agree is
checked. Each is a process in an environment of its own, which
--make_environments makes once. The ratio of its seconds to ours is printed.
Results of a machine that does other work at the time cannot be compared.

--quick checks in minutes that everything works; its times mean nothing. To see
whether a new GPU or TPU computes right, and how fast, take
check_accelerator.py.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import dataclasses
import pathlib
import sys

import jax
from absl import app, flags
from benchmarks import cases, machine, table
from benchmarks.baselines import check_environments, read_names
from benchmarks.baselines.process import make_environment
from benchmarks.cases import BenchmarkError, Block, Options
from benchmarks.measuring import Settings, measure_all
from benchmarks.presets import PRESETS, QUICK, QUICK_ENGINE_SLOTS
from benchmarks.results import Document
from benchmarks.suites import SUITES

from pure_jax.host.logs import console
from pure_jax.models.config import CACHE_DTYPES, REMAT
from pure_jax.parallel.kernel_calls import CHOICES
from pure_jax.runs.locations import Locator
from pure_jax.runs.settings.checks import ConfigError
from pure_jax.runs.settings.models import AUTO, compute_dtype_of

_SUITE = flags.DEFINE_enum("suite", "all", (*SUITES, "all"), "What is timed.")
_PRESET = flags.DEFINE_enum(
  "preset", "small", list(PRESETS), "Sizes and options that no flag sets."
)
_QUICK = flags.DEFINE_bool("quick", False, "Two repeats of a tiny model.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Most repeats of each arm.", 1)
_SECONDS = flags.DEFINE_float(
  "seconds", 60.0, "Time limit of a case's repeats; two are always made."
)
flags.register_validator(
  _SECONDS,
  lambda seconds: 0 <= seconds <= 1e6,
  message="must be between 0 and 1e6",
)
_JSON = flags.DEFINE_string("json", None, "File for all results, as JSON.")
_RESUME = flags.DEFINE_bool(
  "resume", False, "Measure only what --json, if the file exists, lacks."
)
_BASELINES = flags.DEFINE_list(
  "baselines", [], "Names in benchmarks.baselines.BASELINES, or all."
)
_ENVIRONMENTS = flags.DEFINE_string(
  "environments", None, "Folder of the baselines' environments."
)
_MAKE_ENVIRONMENTS = flags.DEFINE_string(
  "make_environments",
  None,
  "Folder in which to make the environments of --baselines, or of all.",
)

# Fields of `Block`, by name.
_SIZES = {
  flag.name: flag
  for flag in (
    flags.DEFINE_list("models", None, "Names in benchmarks.cases.MODELS."),
    flags.DEFINE_list("rows", None, "Responses of a batch."),
    flags.DEFINE_list("samples", None, "Responses of a prompt."),
    flags.DEFINE_list("lengths", None, "Tokens, as PROMPT:NEW."),
    flags.DEFINE_list("stops", None, "When responses end: never, early."),
  )
}
# Fields of `Options`, by name, which its docstring explains.
_OPTIONS = {
  flag.name: flag
  for flag in (
    flags.DEFINE_enum(
      "dtype", None, (AUTO, "float32", "bfloat16"), "Compute dtype."
    ),
    flags.DEFINE_integer("rows_at_a_time", None, "Rows of a micro-batch.", 1),
    flags.DEFINE_enum("remat", None, REMAT, "See ModelConfig."),
    flags.DEFINE_integer("logits_chunk", None, "See ModelConfig.", 1),
    flags.DEFINE_integer("attention_chunk", None, "See ModelConfig.", 1),
    flags.DEFINE_enum(
      "attention", None, CHOICES["attention"], "Of whole texts, see Kernels."
    ),
    flags.DEFINE_enum(
      "cache_dtype", None, CACHE_DTYPES, "Of keys and values in rollouts."
    ),
    flags.DEFINE_bool("int8_matrices", None, "In rollouts, see ModelConfig."),
    flags.DEFINE_integer(
      "engine_slots", None, "Slots of the smaller engine.", 1
    ),
    flags.DEFINE_integer("engine_chunk", None, "Tokens between host syncs.", 1),
    flags.DEFINE_string(
      "weights",
      None,
      "Hugging Face folder or hub id of a model of the shape that --models "
      "names; random weights without it.",
    ),
  )
}


def read_blocks() -> list[Block]:
  """Returns the sizes of the flags and the preset."""
  words = {name: flag.value for name, flag in _SIZES.items()}
  sizes = cases.parse_sizes(**words)
  blocks = QUICK if _QUICK.value else PRESETS[_PRESET.value].blocks
  blocks = [dataclasses.replace(block, **sizes) for block in blocks]
  models = {name for block in blocks for name in block.models}
  if _OPTIONS["weights"].value is not None and len(models) != 1:
    raise BenchmarkError(
      "--weights are those of one model: name its shape by --models, such as "
      "--models=smollm2_135m."
    )
  return blocks


def read_options() -> Options:
  """Returns how the models run."""
  given = {
    name: flag.value
    for name, flag in _OPTIONS.items()
    if flag.value is not None
  }
  if _QUICK.value:
    given = {"engine_slots": QUICK_ENGINE_SLOTS, **given}
  if "weights" in given:
    try:
      given["weights"] = Locator({}).model("--weights", given["weights"])
    except ConfigError as error:
      raise BenchmarkError(str(error)) from error
  options = dataclasses.replace(PRESETS[_PRESET.value].options, **given)
  if options.dtype != AUTO:
    return options
  dtype = compute_dtype_of(jax.default_backend())
  return dataclasses.replace(options, dtype=dtype)


def main(argv: list[str]) -> None:
  """Measures the cases of the flags; an error ends with a message."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  try:
    make_environments() if _MAKE_ENVIRONMENTS.value else run()
  except BenchmarkError as error:
    console.tell(f"error: {error}")
    sys.exit(1)


def make_environments() -> None:
  """Makes the environments of the named baselines, or of all."""
  folder = pathlib.Path(_MAKE_ENVIRONMENTS.value).absolute()
  for name in read_names(_BASELINES.value or ["all"]):
    make_environment(folder, name)
  console.show(f"Name them by --environments={folder}")


def run() -> None:
  """Measures all cases, prints a table and writes JSON."""
  baselines, folder = read_names(_BASELINES.value), _ENVIRONMENTS.value
  folder = folder and pathlib.Path(folder).absolute()
  check_environments(baselines, folder)
  path = _JSON.value and pathlib.Path(_JSON.value)
  if path and not path.absolute().parent.is_dir():
    raise BenchmarkError(f"--json={path}: its folder does not exist.")
  if _RESUME.value and not path:
    raise BenchmarkError("--resume needs --json, the file to go on with.")
  names = SUITES if _SUITE.value == "all" else (_SUITE.value,)
  suites = [SUITES[name] for name in names]
  blocks = read_blocks()
  machine.share_memory(with_baselines=bool(baselines))
  options = read_options()
  chosen = cases.combine_blocks(suites, blocks, options)
  # The time to compile is measured.
  jax.config.update("jax_enable_compilation_cache", False)
  repeats, probe_side = (2, 64) if _QUICK.value else (_REPEATS.value, None)
  settings = Settings(repeats, _SECONDS.value, probe_side, baselines, folder)
  description = machine.describe(sys.argv)
  saved = dataclasses.asdict(options) | {
    "repeats": repeats,
    "seconds": _SECONDS.value,
    "baselines": baselines,
  }
  document = Document(path, description, saved, _RESUME.value)
  console.show(table.heading(description, saved))
  failed = measure_all(chosen, settings, document)
  if failed:
    raise BenchmarkError(
      f"{len(failed)} of {len(chosen)} cases failed, see above."
    )


if __name__ == "__main__":
  interrupts.run(app.run, main)
