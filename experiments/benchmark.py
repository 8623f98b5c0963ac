"""Measures every stage of RL beside what the machine and other programs do.

  python experiments/benchmark.py --suite=all --json=benchmark.json
  python experiments/benchmark.py --suite=rollout --models=smollm2_135m \\
    --rows=1,8,32 --samples=1,8 --lengths=64:128,512:512
  python experiments/benchmark.py --suite=all --preset=accelerator \\
    --json=benchmark.json
  python experiments/benchmark.py --suite=all --preset=all_lengths \\
    --peer=all --peers=FOLDER --json=benchmark.json --resume
  python experiments/benchmark.py --make_peers=FOLDER
  python experiments/benchmark.py --suite=rollout --peer=transformers \\
    --peers=FOLDER

Suites: rollout, score, update, credit, the training step of a PRM, a whole
iteration, kernels, and precision. Sizes are a preset's where no flag gives
them; weights are random, in the shapes of `benchmarks.cases.MODELS`, or those
of a Hugging Face folder.
Every arm of a case is compiled first, then all take turns: ours, and probes of
the rate at which this machine streams an array as large as the weights and
multiplies matrices. Medians are printed with the roofline bound that follows
from the probes of the same turns and the share of it that is reached, with the
utilisation of the method's own FLOPs and bytes; time to compile and memory
apart. Nothing is read from a cache of compiled programs. A case whose weights
do not fit the memory is named and left out; so is one with a fault, which the
exit status tells in the end. A case is repeated up to --repeats times, fewer if
that would take more than --seconds, and at least twice. Each is in the file as
soon as it is measured, and --resume goes on with those that are not.

Peers (`benchmarks/rivals.py`) are other programs that do the same as an arm of
ours, with the same weights on the same prompts, which is checked. Each is a
process in an environment of its own, which --make_peers makes, once. Its line
has the same bound as ours, and the ratio of its seconds to ours is printed. A
machine that does something else at the time compares nothing.

--quick measures next to nothing, in minutes: to see that all of it works.
"""

import dataclasses
import pathlib
import sys

import jax
from absl import app, flags
from benchmarks import cases, environments, machine, table
from benchmarks.cases import BenchmarkError, Block
from benchmarks.document import Document
from benchmarks.measuring import How, measure_all
from benchmarks.presets import PRESETS, QUICK, QUICK_ENGINE_ROWS
from benchmarks.programs import Options
from benchmarks.rivals import RIVALS, check_names

from pure_jax.models.config import REMAT
from pure_jax.runs.settings import models

_SUITE = flags.DEFINE_enum(
  "suite", "all", (*cases.SUITES, "all"), "What is measured."
)
_PRESET = flags.DEFINE_enum(
  "preset", "small", list(PRESETS), "Sizes and options where no flag says."
)
_MODELS = flags.DEFINE_list("models", None, "Names in benchmarks.cases.MODELS.")
_ROWS = flags.DEFINE_list("rows", None, "Responses of a batch.")
_SAMPLES = flags.DEFINE_list("samples", None, "Responses of a prompt.")
_LENGTHS = flags.DEFINE_list(
  "lengths", None, "Prompt tokens and new tokens, as PROMPT:NEW."
)
_STOPS = flags.DEFINE_list(
  "stops", None, "never, early: whether responses stop before the last token."
)
_WEIGHTS = flags.DEFINE_string(
  "weights",
  None,
  "Hugging Face folder of a model of the shape that --models names, such as "
  "unpack_smollm2.py writes; random without.",
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Of each arm at most.", 1)
_SECONDS = flags.DEFINE_float(
  "seconds",
  60.0,
  "That repeats of a case may take; after two of them no more are begun that "
  "would take longer.",
  0.0,
)
_JSON = flags.DEFINE_string("json", None, "File for everything, as JSON.")
_RESUME = flags.DEFINE_bool(
  "resume", False, "Measure what --json, if it is there, does not have."
)
_PEER = flags.DEFINE_list(
  "peer", [], "Names in benchmarks.rivals.RIVALS, or all."
)
_PEERS = flags.DEFINE_string("peers", None, "Folder of peers' environments.")
_MAKE_PEERS = flags.DEFINE_string(
  "make_peers",
  None,
  "Folder to make the environments of --peer in, of all "
  "without it; nothing is measured.",
)
_QUICK = flags.DEFINE_bool("quick", False, "Two repeats of a tiny model.")
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  (models.AUTO, "float32", "bfloat16"),
  "Of products: auto takes float32 on a CPU, else bfloat16.",
)
_ROWS_AT_A_TIME = flags.DEFINE_integer(
  "rows_at_a_time", None, "Rows that scores and updates read together.", 1
)
_REMAT = flags.DEFINE_enum("remat", None, REMAT, "See ModelConfig.")
_LOGITS_CHUNK = flags.DEFINE_integer(
  "logits_chunk", None, "See ModelConfig.", 1
)
_ATTENTION_CHUNK = flags.DEFINE_integer(
  "attention_chunk", None, "See ModelConfig.", 1
)
_ENGINE_ROWS = flags.DEFINE_integer(
  "engine_rows",
  None,
  "Rows of the engine whose other prompts wait; beside it runs one with a row "
  "for every response.",
  1,
)
_ENGINE_CHUNK = flags.DEFINE_integer(
  "engine_chunk", None, "Tokens between two looks of the engine's host.", 1
)


def read_blocks() -> list[Block]:
  """What the flags combine."""
  blocks = [
    dataclasses.replace(
      block,
      sizes=cases.parse_sizes(
        block.sizes,
        models=_MODELS.value,
        rows=_ROWS.value,
        samples=_SAMPLES.value,
        lengths=_LENGTHS.value,
        stops=_STOPS.value,
      ),
    )
    for block in (QUICK if _QUICK.value else PRESETS[_PRESET.value].blocks)
  ]
  models = {name for block in blocks for name in block.sizes.models}
  if _WEIGHTS.value is not None and len(models) != 1:
    raise BenchmarkError(
      "--weights are those of one model: name its shape by --models, such as "
      "--models=smollm2_135m."
    )
  return blocks


def read_options() -> Options:
  """How the models run."""
  given = {
    "dtype": _DTYPE.value,
    "rows_at_a_time": _ROWS_AT_A_TIME.value,
    "remat": _REMAT.value,
    "logits_chunk": _LOGITS_CHUNK.value,
    "attention_chunk": _ATTENTION_CHUNK.value,
    "engine_rows": _ENGINE_ROWS.value,
    "engine_chunk": _ENGINE_CHUNK.value,
    "weights": _WEIGHTS.value,
  }
  if _QUICK.value and _ENGINE_ROWS.value is None:
    given["engine_rows"] = QUICK_ENGINE_ROWS
  options = dataclasses.replace(
    PRESETS[_PRESET.value].options,
    **{name: value for name, value in given.items() if value is not None},
  )
  if options.dtype != models.AUTO:
    return options
  dtype = models.compute_dtype_of(jax.default_backend())
  return dataclasses.replace(options, dtype=dtype)


def main(argv: list[str]) -> None:
  """Measures what the flags name; a fault of theirs ends in a sentence."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  try:
    make_peers() if _MAKE_PEERS.value else run()
  except BenchmarkError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


def make_peers() -> None:
  """Makes the environments of peers, of all where none is named."""
  folder = pathlib.Path(_MAKE_PEERS.value).absolute()
  names = read_peers() or RIVALS
  for name in dict.fromkeys(environments.SHARED.get(x, x) for x in names):
    environments.make_environment(folder, name)
  print(f"Name them by --peers={folder}")


def read_peers() -> list[str]:
  """Names of peers."""
  return list(RIVALS) if _PEER.value == ["all"] else _PEER.value


def run() -> None:
  """Measures, prints a table and writes JSON."""
  names, folder = read_peers(), _PEERS.value
  folder = folder and pathlib.Path(folder).absolute()
  check_names(names, folder)
  path = _JSON.value and pathlib.Path(_JSON.value)
  if path and not path.absolute().parent.is_dir():
    raise BenchmarkError(f"--json={path}: its folder does not exist.")
  if _RESUME.value and not path:
    raise BenchmarkError("--resume needs --json, the file to go on with.")
  suites = tuple(cases.SUITES) if _SUITE.value == "all" else (_SUITE.value,)
  chosen = cases.combine_blocks(suites, read_blocks())
  machine.share_memory(with_peers=bool(names))
  options = read_options()
  # The time to compile is measured.
  jax.config.update("jax_enable_compilation_cache", False)
  repeats, side = (2, 64) if _QUICK.value else (_REPEATS.value, None)
  how = How(options, repeats, _SECONDS.value, side, names, folder)
  measured_on = machine.describe(sys.argv)
  settings = dataclasses.asdict(options) | {
    "repeats": repeats,
    "seconds": _SECONDS.value,
    "peers": names,
  }
  document = Document(path, measured_on, settings, _RESUME.value)
  print(table.heading(measured_on, settings), flush=True)
  failed = measure_all(chosen, how, document)
  if failed:
    raise BenchmarkError(
      f"{len(failed)} of {len(chosen)} cases failed, see above."
    )


if __name__ == "__main__":
  app.run(main)
