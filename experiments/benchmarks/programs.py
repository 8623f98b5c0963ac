"""Models as the benchmark runs them, and functions compiled to be repeated."""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import bounds
from benchmarks.cases import MODELS, BenchmarkError, Case
from benchmarks.timing import Arm
from pure_jax.host import huggingface
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.runs.planning.compiler import Memory
from pure_jax.runs.planning.hlo.costs import Costs, count_costs
from pure_jax.training import weight_copies

# Fields of `ModelConfig` that weights are made for.
SHAPE = (
  "vocab_size",
  "width",
  "num_layers",
  "num_heads",
  "num_kv_heads",
  "head_dim",
  "mlp_width",
  "rope_theta",
  "norm_eps",
  "attention_bias",
  "qk_norm",
  "tied_embeddings",
)


@dataclasses.dataclass(frozen=True)
class Options:
  """How the models of all cases run.

  Attributes:
    dtype: of matrix products.
    rows_at_a_time: that scores and updates read together at most.
    remat: what the backward pass keeps, see `ModelConfig`. None tried was
      faster than "dots" for a scanned model on a CPU, see docs/speed.md.
    logits_chunk: see `ModelConfig`.
    attention_chunk: see `ModelConfig`.
    engine_rows: rows of a second engine, in which the prompts of a larger
      batch wait for their turn; the first has a row for every response.
    engine_chunk: tokens between two looks of its host.
    weights: a Hugging Face folder to read the weights of every case from;
      None draws them at random.
  """

  dtype: str = "float32"
  rows_at_a_time: int = 8
  remat: str = "dots"
  logits_chunk: int | None = None
  attention_chunk: int | None = None
  engine_rows: int = 16
  engine_chunk: int = 16
  weights: str | None = None

  def model(self, name: str) -> ModelConfig:
    """The architecture of a name in `MODELS`, run in this way."""
    return dataclasses.replace(
      MODELS[name],
      compute_dtype=self.dtype,
      remat=self.remat,
      logits_chunk=self.logits_chunk,
      attention_chunk=self.attention_chunk,
    )

  @property
  def remakes_layers(self) -> bool:
    """Whether peers too compute whole layers again for the backward pass."""
    return self.remat in ("layer", "offload")

  @property
  def itemsize(self) -> int:
    """Bytes of a weight as products read it."""
    return jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Compilation:
  """What the compiler made of a function.

  Attributes:
    seconds: that tracing and compiling took, without a cache.
    memory: of one call, as the compiler laid it out.
    costs: counted in the program, None for a GPU, whose compiler calls
      libraries for its products.
  """

  seconds: float
  memory: Memory
  costs: Costs | None


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A function ready to be repeated.

  Attributes:
    arm: one call; its work is tokens.
    phases: the least that the method needs for it, () where no bound is
      known.
    compilation: what the compiler says of it, None where it is more than one
      program.
    answer: what a peer that does the same is held to, where there is one: of
      a rollout the lengths [B] of its responses, of credit advantages [B, C],
      of an update its loss and the norm of its gradient, of an iteration the
      `Iterated`.
    instead_of: the arm that does the same in another way, None for the way
      that peers are held to.
    drift: of a rollout, mean and largest difference between the sampler's and
      the trainer's log-prob of a token, nats; None where it is not asked for.
  """

  arm: Arm
  phases: Sequence[bounds.Phase]
  compilation: Compilation | None
  answer: Any = None
  instead_of: str | None = None
  drift: tuple[float, float] | None = None


def compile_call(
  function: Any, *arguments: Any
) -> tuple[Callable[..., Any], Compilation]:
  """Compiles a jitted function for its arguments.

  Args:
    function: as `jax.jit` gives it.
    *arguments: what it will be called with.

  Returns:
    The compiled function and what the compiler says of it.
  """
  start = time.perf_counter()
  compiled = function.lower(*arguments).compile()
  seconds = time.perf_counter() - start
  found = compiled.memory_analysis()
  memory = Memory(
    found.argument_size_in_bytes,
    found.output_size_in_bytes,
    found.alias_size_in_bytes,
    found.temp_size_in_bytes,
  )
  costs = None
  if jax.default_backend() != "gpu":
    costs = count_costs(compiled.as_text(), devices=1)
  return compiled, Compilation(seconds, memory, costs)


_COMPILED: dict[Any, tuple[Callable[..., Any], Compilation]] = {}


def compile_once(
  name: str,
  case: Case,
  options: Options,
  make: Callable[[], Any],
  *arguments: Any,
) -> tuple[Callable[..., Any], Compilation]:
  """`compile_call` of what may be in several suites, the first time.

  Args:
    name: of the function; with the case's sizes and the options it says all
      there is to know of the program.
    case: whose suite does not count.
    options: how the models run.
    make: gives the jitted function.
    *arguments: what it will be called with, the same shapes each time.

  Returns:
    As `compile_call`.
  """
  model = options.model(case.model)
  key = name, dataclasses.replace(case, suite=""), options, model
  if key not in _COMPILED:
    _COMPILED[key] = compile_call(make(), *arguments)
  return _COMPILED[key]


@functools.lru_cache(maxsize=4)
def _make_init(model: ModelConfig, copied: bool) -> Callable[..., Any]:
  """A function from a key to a policy, compiled once for all cases."""
  declared = policy.declare_policy(model)

  def init(key):
    params = weights.init_params(key, declared)
    return _make_copy(model)(params) if copied else params

  return jax.jit(init)


def _make_copy(model: ModelConfig) -> Callable[[Any], Any]:
  """From weights as they are stored to weights as products read them."""
  layout, declared = sharding.make_layout(), policy.declare_policy(model)
  return weight_copies.make_compute_copy(declared, model, layout, layout)


def init_policy(name: str, options: Options, copied: bool = False) -> Any:
  """Weights, the same each time: drawn at random or read from a folder.

  Args:
    name: in `MODELS`.
    options: how the model runs, and the folder if there is one.
    copied: False for weights as they are stored and trained, True as rollouts
      and frozen models read them; random ones that are stored are then never
      all there.

  Returns:
    The weights.

  Raises:
    BenchmarkError: if the folder holds another shape.
  """
  model = options.model(name)
  if options.weights is None:
    return _make_init(model, copied)(jax.random.key(0))
  # Arrays of its own, as random ones are.
  params = jax.tree.map(jnp.copy, _read(name, options.weights, model))
  return _make_copy(model)(params) if copied else params


def init_prm(name: str, options: Options, copied: bool = False) -> Any:
  """A PRM on the policy's trunk, in arrays of its own.

  Args:
    name: in `MODELS`.
    options: how the model runs.
    copied: as of `init_policy`.

  Returns:
    Weights as `prm.declare_prm` declares them; the head is random.
  """
  declared = prm.declare_prm(options.model(name))
  trunk = init_policy(name, options, copied)
  head = weights.init_params(jax.random.key(1), {"score": declared["score"]})
  return {part: (trunk | head)[part] for part in declared}


@functools.lru_cache(maxsize=1)
def _read(name: str, folder: str, model: ModelConfig) -> Any:
  """Weights of a folder, of this shape."""
  if not pathlib.Path(folder).is_dir():
    raise BenchmarkError(f"--weights={folder}: no such folder.")
  try:
    params, found = huggingface.load_policy(folder, sharding.make_layout())
  except huggingface.HuggingFaceError as error:
    raise BenchmarkError(f"--weights: {error}") from error
  differ = [
    field
    for field in SHAPE
    # Files may hold numbers that were rounded to float32.
    if not math.isclose(
      getattr(found, field), getattr(model, field), rel_tol=1e-6
    )
  ]
  if differ:
    raise BenchmarkError(
      f"--weights={folder} is not of the shape {name}: it differs in "
      f"{', '.join(differ)}. Name its shape by --models."
    )
  return params
