"""Measures rollout, score, update and credit, beside what the machine can do.

  python experiments/benchmark.py --suite=all --json=benchmark.json
  python experiments/benchmark.py --suite=rollout --models=smollm2_135m \\
    --rows=1,8,32 --samples=1,8 --lengths=64:128,512:512
  python experiments/benchmark.py --make_peers=FOLDER
  python experiments/benchmark.py --suite=rollout --peer=transformers \\
    --peers=FOLDER

Weights are random, in the shapes of `benchmarks.cases.MODELS`. Every arm of a
case is compiled first, then all take turns: ours, and probes of the rate at
which this machine streams an array as large as the weights and multiplies
matrices. Medians are printed with the roofline bound that follows from the
probes of the same turns and the share of it that is reached; time to compile
and memory, as the compiler lays it out, apart. Nothing is read from a cache of
compiled programs.

Peers (`benchmarks/rivals.py`) are other programs that do the same as an arm of
ours, with the same weights on the same prompts, which is checked. Each is a
process in an environment of its own, which --make_peers makes, once. Its line
has the same bound as ours, and the ratio of its seconds to ours is printed. A
machine that does something else at the time compares nothing.

--quick measures next to nothing, in a minute: to see that all of it works.
"""

import dataclasses
import pathlib
import sys

import compute_dtype
import jax
from absl import app, flags
from benchmarks import cases, environments, machine, report
from benchmarks.cases import BenchmarkError, Sizes
from benchmarks.programs import Options
from benchmarks.report import measure
from benchmarks.rivals import RIVALS, running

from pure_jax.host.workdir import write_json_atomic
from pure_jax.models.config import REMAT

_SUITE = flags.DEFINE_enum(
  "suite", "all", (*cases.SUITES, "all"), "What is measured."
)
_MODELS = flags.DEFINE_list(
  "models", ["10m", "smollm2_135m"], "Names in benchmarks.cases.MODELS."
)
_ROWS = flags.DEFINE_list("rows", ["1", "8", "32"], "Responses of a batch.")
_SAMPLES = flags.DEFINE_list("samples", ["1", "8"], "Responses of a prompt.")
_LENGTHS = flags.DEFINE_list(
  "lengths", ["64:128"], "Prompt tokens and new tokens, as PROMPT:NEW."
)
_STOPS = flags.DEFINE_list(
  "stops", list(cases.STOPS), "Whether rollouts stop early."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Of each arm.", 1)
_JSON = flags.DEFINE_string("json", None, "File for everything, as JSON.")
_PEER = flags.DEFINE_list("peer", [], "Names in benchmarks.rivals.RIVALS.")
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
  compute_dtype.AUTO,
  (compute_dtype.AUTO, "float32", "bfloat16"),
  "Of products: auto takes float32 on a CPU, else bfloat16.",
)
_ROWS_AT_A_TIME = flags.DEFINE_integer(
  "rows_at_a_time", 8, "Rows that scores and updates read together.", 1
)
_REMAT = flags.DEFINE_enum("remat", "none", REMAT, "See ModelConfig.")
_LOGITS_CHUNK = flags.DEFINE_integer(
  "logits_chunk", None, "See ModelConfig.", 1
)
_ATTENTION_CHUNK = flags.DEFINE_integer(
  "attention_chunk", None, "See ModelConfig.", 1
)


def read_sizes() -> Sizes:
  """What the flags combine."""
  if _QUICK.value:
    return cases.QUICK
  return cases.parse_sizes(
    _MODELS.value, _ROWS.value, _SAMPLES.value, _LENGTHS.value, _STOPS.value
  )


def read_options() -> Options:
  """How the models run."""
  dtype = _DTYPE.value
  if dtype == compute_dtype.AUTO:
    dtype = compute_dtype.for_platform(jax.default_backend())
  return Options(
    dtype=dtype,
    rows_at_a_time=_ROWS_AT_A_TIME.value,
    remat=_REMAT.value,
    logits_chunk=_LOGITS_CHUNK.value,
    attention_chunk=_ATTENTION_CHUNK.value,
  )


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
  for name in _PEER.value or RIVALS:
    environments.make_environment(folder, name)
  print(f"Name them by --peers={folder}")


def run() -> None:
  """Measures, prints a table and writes JSON."""
  sizes, options = read_sizes(), read_options()
  suites = cases.SUITES if _SUITE.value == "all" else (_SUITE.value,)
  chosen = cases.combine(suites, sizes)
  path = _JSON.value and pathlib.Path(_JSON.value)
  if path and not path.absolute().parent.is_dir():
    raise BenchmarkError(f"--json={path}: its folder does not exist.")
  # The time to compile is measured.
  jax.config.update("jax_enable_compilation_cache", False)
  repeats, side = (2, 64) if _QUICK.value else (_REPEATS.value, None)
  measured_on = machine.describe(sys.argv)
  print(report.heading(measured_on, repeats, options.dtype), flush=True)
  results = []
  peers = _PEERS.value and pathlib.Path(_PEERS.value).absolute()
  with running(_PEER.value, peers) as rivals:
    for case in chosen:
      results.append(measure(case, options, repeats, side, rivals))
      print(report.as_text(results[-1]), flush=True)
      if path:  # After each case: what was measured is not lost.
        found = report.as_json(
          results, measured_on, dataclasses.asdict(options)
        )
        write_json_atomic(path, found)


if __name__ == "__main__":
  app.run(main)
