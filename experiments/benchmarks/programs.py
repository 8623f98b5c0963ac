"""Models as the benchmark runs them, and functions compiled to be repeated."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from plan_compiler import Memory

from benchmarks import bounds
from benchmarks.cases import MODELS
from benchmarks.timing import Arm
from pure_jax.host import hlo_costs
from pure_jax.models import params as weights
from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.training import train


@dataclasses.dataclass(frozen=True)
class Options:
  """How the models of all cases run.

  Attributes:
    dtype: of matrix products.
    rows_at_a_time: that scores and updates read together at most.
    remat: what the backward pass keeps, see `ModelConfig`.
    logits_chunk: see `ModelConfig`.
    attention_chunk: see `ModelConfig`.
  """

  dtype: str = "float32"
  rows_at_a_time: int = 8
  remat: str = "none"
  logits_chunk: int | None = None
  attention_chunk: int | None = None

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
  costs: hlo_costs.Costs | None


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A function ready to be repeated.

  Attributes:
    arm: one call; its work is tokens.
    phases: the least that the method needs for it, () where no bound is
      known.
    compilation: what the compiler says of it.
    answer: what a peer that does the same is held to, where there is one: of
      a rollout the lengths [B] of its responses, of credit advantages [B, C],
      of an update its loss and the norm of its gradient.
  """

  arm: Arm
  phases: Sequence[bounds.Phase]
  compilation: Compilation
  answer: np.ndarray | None = None


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
    costs = hlo_costs.count(compiled.as_text(), devices=1)
  return compiled, Compilation(seconds, memory, costs)


@functools.lru_cache(maxsize=4)
def _make_init(model: ModelConfig, copied: bool) -> Callable[..., Any]:
  """A function from a key to a policy, compiled once for all cases."""
  layout, declared = sharding.make_layout(), policy.declare_policy(model)
  copy = train.make_compute_copy(declared, model, layout, layout)

  def init(key):
    params = weights.init_params(key, declared)
    return copy(params) if copied else params

  return jax.jit(init)


def init_policy(model: ModelConfig, copied: bool = False) -> Any:
  """Random weights, the same each time.

  Args:
    model: the architecture.
    copied: False for weights as they are stored and trained, True as rollouts
      and frozen models read them; those stored are then never all there.

  Returns:
    The weights.
  """
  return _make_init(model, copied)(jax.random.key(0))
