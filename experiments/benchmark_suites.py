"""The functions of `pure_jax.training`, compiled and ready to be repeated.

`SUITES` maps the name of a suite to a function that compiles its arms for a
case. What is measured is what a run calls: the same makers, on weights drawn
at random in the case's shape.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import benchmark_batches as batches
import benchmark_bounds as bounds
import jax
import jax.numpy as jnp
import numpy as np
from benchmark_cases import MODELS, BenchmarkError, Case
from benchmark_timing import Arm, timed
from plan_compiler import Memory

from pure_jax import losses
from pure_jax.advantages import pure_advantages
from pure_jax.host import hlo_costs
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training import train
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.training.score import ScoreConfig, experience_from, make_score
from pure_jax.types import Prompts


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
      a rollout the lengths [B] of its responses.
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


def _frozen(params: Any, model: ModelConfig) -> tuple[Any, Any]:
  """A reference and a PRM on the same trunk, in arrays of their own."""
  layout, declared = sharding.make_layout(), policy.declare_policy(model)
  copy = train.make_compute_copy(declared, model, layout, layout)
  reference, judge = (jax.tree.map(jnp.copy, copy(params)) for _ in range(2))
  wanted = prm.declare_prm(model)
  head = weights.init_params(jax.random.key(1), {"score": wanted["score"]})
  return reference, {name: (judge | head)[name] for name in wanted}


def rollout(case: Case, options: Options) -> dict[str, Compiled]:
  """Sampling the responses of a batch.

  Args:
    case: sizes and stops.
    options: how the model runs.

  Returns:
    One arm, "generate"; its work is the tokens that were drawn.
  """
  model = options.model(case.model)
  arguments = (
    init_policy(model, copied=True),
    batches.draw_prompts(case, model.vocab_size),
    jax.random.key(1),
  )
  generate, compilation = compile_call(
    train.make_generate(
      model,
      batches.sampler(case, model.vocab_size),
      case.samples,
      sharding.make_layout(),
    ),
    *arguments,
  )
  # The same key each time: the same tokens, so the same work.
  lengths = np.asarray(generate(*arguments).completion_mask).sum(axis=1)
  phases = bounds.rollout_phases(
    model, case.prompts, case.prompt_tokens, lengths, options.itemsize
  )
  arm = Arm(timed(generate, *arguments), int(lengths.sum()))
  return {"generate": Compiled(arm, phases, compilation, lengths)}


def score(case: Case, options: Options) -> dict[str, Compiled]:
  """Old and reference log-probs, steps, and the rewards of a PRM.

  Args:
    case: sizes.
    options: how the three models run.

  Returns:
    One arm, "score"; its work is the tokens of prompts and responses.
  """
  model = options.model(case.model)
  params = init_policy(model)
  table = batches.separator_table(model.vocab_size)
  prompts = batches.draw_prompts(case, model.vocab_size)
  drawn = batches.draw_rollout(case, prompts, model.vocab_size)
  arguments = (
    params,
    *_frozen(params, model),
    drawn,
    # The PRM reads the prompts that the policy answered.
    Prompts(drawn.prompt_tokens, drawn.prompt_mask),
  )
  compiled, compilation = compile_call(
    make_score(
      model,
      model,
      batches.sampler(case, model.vocab_size),
      ScoreConfig(batches.MAX_STEPS),
      table,
      sharding.make_layout(),
      options.rows_at_a_time,
    ),
    *arguments,
  )
  judged, *_ = batches.draw_judgement(drawn, table)
  phases = bounds.score_phases(
    model,
    case.rows,
    case.prompt_tokens,
    case.new_tokens,
    int(judged.steps.mask.sum()) // case.rows,
    options.itemsize,
  )
  arm = Arm(timed(compiled, *arguments), _tokens(case))
  return {"score": Compiled(arm, phases, compilation)}


def update(case: Case, options: Options) -> dict[str, Compiled]:
  """One gradient step of the PURE loss with AdamW.

  Args:
    case: sizes.
    options: how the model runs.

  Returns:
    One arm, "update"; its work is the tokens of prompts and responses.

  Raises:
    BenchmarkError: when repeated, if an update was skipped: it would have
      had nothing to apply.
  """
  model = options.model(case.model)
  table = batches.separator_table(model.vocab_size)
  optimizer = make_optimizer(OptimConfig(learning_rate=1e-6))
  layout, declared = sharding.make_layout(), policy.declare_policy(model)
  drawn = batches.draw_rollout(
    case, batches.draw_prompts(case, model.vocab_size), model.vocab_size
  )
  batch = (drawn, *batches.draw_judgement(drawn, table))
  state = train.start_state(init_policy(model), declared, optimizer, layout)
  compiled, compilation = compile_call(
    train.make_update(
      model,
      batches.sampler(case, model.vocab_size),
      CreditConfig(group_size=case.samples),
      LossConfig(),
      optimizer,
      table,
      layout,
      batches.micro_batches(case.rows, options.rows_at_a_time),
    ),
    state,
    *batch,
  )

  def seconds() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(state, *batch))
    taken = time.perf_counter() - start
    if metrics["skipped_updates"]:
      raise BenchmarkError(
        f"{case}: the loss or a gradient is not finite, so there was no update."
      )
    return taken

  phases = bounds.update_phases(
    model,
    case.rows,
    case.prompt_tokens,
    case.new_tokens,
    weights.count_params(declared),
    options.itemsize,
  )
  arm = Arm(seconds, _tokens(case))
  return {"update": Compiled(arm, phases, compilation)}


def credit(case: Case, options: Options) -> dict[str, Compiled]:
  """Credit alone, the loss with and without it, and the update around them.

  Args:
    case: sizes.
    options: how the model of the update runs.

  Returns:
    The arms "credit", "loss" and "credit and loss", the last two with their
    gradient by the log-probs, and "update".
  """
  vocab_size = MODELS[case.model].vocab_size
  table = batches.separator_table(vocab_size)
  drawn = batches.draw_rollout(
    case, batches.draw_prompts(case, vocab_size), vocab_size
  )
  experience = jax.jit(experience_from)(
    drawn, *batches.draw_judgement(drawn, table), table
  )
  settings, loss = CreditConfig(group_size=case.samples), LossConfig()
  logp, entropy = drawn.sampled_logp, -drawn.sampled_logp

  def alone(experience):
    return pure_advantages(experience, settings)

  def given(logp, entropy, advantages, experience):
    return losses.policy_objective(logp, entropy, advantages, experience, loss)

  def fused(logp, entropy, experience):
    return losses.pure_loss(logp, entropy, experience, settings, loss)

  def gradient(function):
    return jax.jit(jax.value_and_grad(function, has_aux=True))

  def ready(function, arguments, phases=()):
    compiled, compilation = compile_call(function, *arguments)
    arm = Arm(timed(compiled, *arguments), case.rows * case.new_tokens)
    return Compiled(arm, phases, compilation)

  # It reads its input and writes a number for each token.
  moved = sum(leaf.nbytes for leaf in jax.tree.leaves(experience)) + logp.nbytes
  advantages = jax.random.normal(jax.random.key(3), logp.shape)
  arms = {
    "credit": ready(jax.jit(alone), (experience,), [bounds.Phase(0.0, moved)]),
    "loss": ready(gradient(given), (logp, entropy, advantages, experience)),
    "credit and loss": ready(gradient(fused), (logp, entropy, experience)),
  }
  return arms | update(case, options)


def _tokens(case: Case) -> int:
  """Of prompts and responses."""
  return case.rows * (case.prompt_tokens + case.new_tokens)


SUITES: dict[str, Callable[[Case, Options], dict[str, Compiled]]] = {
  "rollout": rollout,
  "score": score,
  "update": update,
  "credit": credit,
}
