"""A small training step on any devices: rollouts, scores, gradient, update.

The model has what real ones have: grouped queries, biases, an output matrix of
its own, and a PRM with one more layer. Weights, prompts and responses are drawn
by numpy, so that all devices read the same.
"""

import dataclasses
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from flax import struct

from accelerator.pieces import PieceError
from pure_jax.advantages import pure_advantages
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout import sampling
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.settings import CreditConfig, LossConfig, ScoreConfig
from pure_jax.training import rollouts, train, weight_copies
from pure_jax.training.optim import OptimConfig, make_optimizer
from pure_jax.training.score import ScoredBatch, Scores, make_score
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import Prompts, Rollout, SeparatorTable

PAD, EOS, SCORE, SEPARATOR, FIRST_WORD = range(5)
# Sizes that are no multiples of what a device computes at once.
P, G, L, C, S = 4, 4, 11, 13, 5
MODEL = ModelConfig(
  vocab_size=307,
  width=128,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=32,
  mlp_width=200,
  rope_theta=1e4,
  attention_bias=True,
  tied_embeddings=False,
)
PRM_MODEL = prm.extend_config(MODEL, 1)
SAMPLER = sampling.SamplingConfig(C, PAD, (EOS,))
GREEDY = dataclasses.replace(SAMPLER, temperature=0.0)
# On the first update the ratio to the old policy is 1 and the clipped loss is
# the mean of whitened advantages, 0: the penalty gives the loss a value.
LOSS = LossConfig(kl_in_loss="k3", kl_coef=0.1, entropy_coef=0.01)
OPTIMIZER = OptimConfig(learning_rate=1e-3, weight_decay=0.1)
SAMPLING_SEED = 7
# Fewer slots than rows and fewer tokens between syncs than a response has:
# slots are filled again, moved and shrunk, and the cache grows.
ENGINE = EngineConfig(slots=2 * G, sync_interval=6)


@struct.dataclass
class StepResult:
  """What a small step computes, on the host.

  Attributes:
    sampled: rollout [B, C] at temperature 1.
    greedy: rollout [B, C] at temperature 0; None if it was left out.
    scores: of the responses of `draw_rollout`.
    drift: [] float32 nats, between sampler and trainer on `sampled`.
    advantages: [B, C] float32, of each token in the update.
    loss: [] float32, of the update.
    gradient: of every weight, after clipping to `OPTIMIZER.max_grad_norm`.
    grad_norm: [] float32, before clipping.
    params: every weight after the update.
  """

  sampled: Rollout
  greedy: Rollout | None
  scores: Scores
  drift: Any
  advantages: Any
  loss: Any
  gradient: Any
  grad_norm: Any
  params: Any


def draw_params(declared: Any, seed: int) -> Any:
  """Draws weights of the size of a trained model's."""
  rng = np.random.default_rng(seed)

  def draw(path, weight):
    noise = rng.normal(size=weight.shape).astype(np.float32)
    if weight.initializer == weights.ONES:
      return 1 + np.float32(0.1) * noise
    if "embedding" in jax.tree_util.keystr(path):
      return noise
    if weight.initializer == weights.ZEROS:
      return np.float32(0.1) * noise
    return np.float32(weight.initializer.stddev) * noise

  return jax.tree_util.tree_map_with_path(
    draw, declared, is_leaf=weights.is_weight
  )


def draw_policy() -> Any:
  """Draws the policy of `MODEL`, float32."""
  return draw_params(policy.declare_policy(MODEL), seed=1)


def draw_reference() -> Any:
  """Draws a reference policy, a little away from the policy."""
  start, noise = (
    draw_policy(),
    draw_params(policy.declare_policy(MODEL), seed=6),
  )
  return jax.tree.map(lambda x, y: x + np.float32(0.03) * y, start, noise)


def draw_prm() -> Any:
  """Draws the PRM of `PRM_MODEL`, float32."""
  return draw_params(prm.declare_prm(PRM_MODEL), seed=2)


def draw_prompts() -> Prompts:
  """Draws left-padded prompts [P, L] of 1 to L tokens."""
  rng = np.random.default_rng(3)
  lengths = np.linspace(1, L, P).astype(int)
  mask = np.arange(L) >= L - lengths[:, None]
  tokens = rng.integers(FIRST_WORD, MODEL.vocab_size, (P, L))
  return Prompts(np.where(mask, tokens, PAD).astype(np.int32), mask)


def draw_rollout() -> Rollout:
  """Draws responses [P G, C] of 1 to C tokens with steps of a few tokens."""
  rng = np.random.default_rng(4)
  prompts = draw_prompts()
  lengths = np.linspace(1, C, P * G).astype(int)
  mask = np.arange(C) < lengths[:, None]
  tokens = rng.integers(FIRST_WORD, MODEL.vocab_size, mask.shape)
  tokens[rng.random(mask.shape) < 0.25] = SEPARATOR
  nothing = np.zeros(mask.shape, np.float32)
  return Rollout(
    prompt_tokens=np.repeat(prompts.tokens, G, axis=0),
    prompt_mask=np.repeat(prompts.mask, G, axis=0),
    tokens=np.where(mask, tokens, PAD).astype(np.int32),
    completion_mask=mask,
    sampled_logp=nothing,
    full_logp=nothing,
    truncated=np.ones(P * G, bool),
  )


def draw_outcomes() -> tuple[np.ndarray, np.ndarray]:
  """Draws (correct [B] float32, has_answer [B] bool)."""
  correct = np.random.default_rng(5).integers(0, 2, P * G).astype(np.float32)
  return correct, np.ones(P * G, bool)


def make_layout(devices: Sequence[jax.Device]) -> sharding.Layout:
  """Splits weights and rows over devices."""
  return sharding.make_layout(fsdp=len(devices), devices=devices)


def model_of(config: ModelConfig, dtype: str) -> ModelConfig:
  """Makes the model compute in a dtype."""
  return dataclasses.replace(config, compute_dtype=dtype)


def step_spec(layout: sharding.Layout, dtype: str) -> StepSpec:
  """Specifies the step: PURE with the default credit and loss."""
  ids = np.arange(MODEL.vocab_size, dtype=np.int32)
  none = np.zeros(MODEL.vocab_size, bool)
  table = SeparatorTable(
    ends_step=ids == SEPARATOR,
    half=none,
    stem=ids,
    has_stem=none,
    score_id=np.int32(SCORE),
    eos_ids=np.array([EOS], np.int32),
    pad_id=np.int32(PAD),
  )
  return StepSpec(
    model_of(MODEL, dtype),
    model_of(PRM_MODEL, dtype),
    SAMPLER,
    ScoreConfig(S),
    table,
    Layouts.same(layout),
    credit=CreditConfig(form="min", baseline="main", group_size=G),
    loss=LOSS,
  )


def place(
  params: Any, declared: Any, layout: sharding.Layout, dtype: str
) -> Any:
  """Puts weights onto devices in a compute dtype, as models read them."""
  params = jax.device_put(params, sharding.weight_shardings(declared, layout))
  model = model_of(MODEL, dtype)
  return weight_copies.make_compute_copy(declared, model, layout, layout)(
    params
  )


def place_policy(layout: sharding.Layout, dtype: str) -> Any:
  """Puts the policy onto devices, as rollouts read it."""
  return place(draw_policy(), policy.declare_policy(MODEL), layout, dtype)


def sampling_arguments(layout: sharding.Layout) -> tuple[Any, Any]:
  """Puts prompts and key onto devices."""
  key = jax.random.key(SAMPLING_SEED)
  return jax.device_put((draw_prompts(), key), sharding.replicated(layout))


def sample(
  layout: sharding.Layout, dtype: str, sampler: sampling.SamplingConfig
) -> Rollout:
  """Samples responses to `draw_prompts` in one compiled loop."""
  generate = rollouts.make_generate(model_of(MODEL, dtype), sampler, G, layout)
  params = place_policy(layout, dtype)
  return generate(params, *sampling_arguments(layout))


def sample_by_engine(layout: sharding.Layout, dtype: str) -> Rollout:
  """Samples the responses of `sample` with continuous batching."""
  engine = rollouts.make_engine(
    model_of(MODEL, dtype), SAMPLER, G, layout, ENGINE
  )
  params = place_policy(layout, dtype)
  return engine.generate(params, *sampling_arguments(layout))


def precision_of(dtype: str) -> AbstractContextManager[Any]:
  """A context in which products of float32 have the highest precision.

  An accelerator would round their factors by default. Those of bfloat16 are
  exact anyway, and some compilers know no precision for them.
  """
  return jax.default_matmul_precision(
    "highest" if dtype == "float32" else "default"
  )


@functools.lru_cache(maxsize=8)
def run_step(
  devices: tuple[jax.Device, ...], dtype: str, *, greedy: bool
) -> StepResult:
  """Samples, scores and updates on some devices, once in a process.

  Scores and update read the responses of `draw_rollout`, so that one token that
  was sampled differently changes nothing else.

  Args:
    devices: one device, or several over which weights and rows are split.
    dtype: compute dtype.
    greedy: whether to sample at temperature 0 as well.

  Returns:
    The result, on the host.
  """
  layout = make_layout(devices)
  with jax.default_device(devices[0]), precision_of(dtype):
    sampled = sample(layout, dtype, SAMPLER)
    likeliest = sample(layout, dtype, GREEDY) if greedy else None
    return jax.device_get(_train(layout, dtype, sampled, likeliest))


def _train(layout, dtype, sampled, likeliest):
  """Scores and updates, after rollouts."""
  spec, declared = step_spec(layout, dtype), policy.declare_policy(MODEL)
  optimizer = make_optimizer(OPTIMIZER, declared)
  start = jax.device_put(
    draw_policy(), sharding.weight_shardings(declared, layout)
  )
  state = train.start_state(start, declared, optimizer, layout)
  reference = place(draw_reference(), declared, layout, dtype)
  prm_params = place(draw_prm(), prm.declare_prm(PRM_MODEL), layout, dtype)
  by_rows = sharding.batch_sharding(layout)
  given, outcomes = jax.device_put((draw_rollout(), draw_outcomes()), by_rows)

  score = make_score(spec)

  def score_rollout(rollout):
    prompts = Prompts(rollout.prompt_tokens, rollout.prompt_mask)
    return score(state.params, reference, prm_params, rollout, prompts)

  scores, _ = score_rollout(given)
  _, drift = score_rollout(sampled)
  batch = ScoredBatch(given, scores, *outcomes)
  # The moments begin at 0: the first is (1 - beta1) times the gradient.
  state, metrics = train.make_update(spec, optimizer)(state, batch, {})
  moments = find_moments(state.opt_state)
  experience = train.experience_from(batch, spec.table)
  advantages, _ = jax.jit(pure_advantages, static_argnums=1)(
    experience, spec.credit
  )
  return StepResult(
    sampled=sampled,
    greedy=likeliest,
    scores=scores,
    drift=drift,
    advantages=advantages,
    loss=(
      metrics["policy_loss"]
      + LOSS.kl_coef * metrics["kl_reference"]
      - LOSS.entropy_coef * metrics["entropy"]
    ),
    gradient=jax.tree.map(lambda m: m / (1 - OPTIMIZER.beta1), moments),
    grad_norm=metrics["grad_norm"],
    params=state.params,
  )


def find_moments(opt_state: Any) -> Any:
  """Finds Adam's first moments in the state of the optimizer."""
  _, (adam, *_) = opt_state
  return adam.mu


def leaf(tree: Any, path: tuple[Any, ...]) -> Any:
  """Finds the array of a nested dict at a path of `jax.tree_util`."""
  for step in path:
    tree = tree[step.key]
  return tree


def find_cpu() -> jax.Device:
  """Finds the CPU next to an accelerator.

  Raises:
    PieceError: if jax was told to leave it out.
  """
  try:
    return jax.devices("cpu")[0]
  except RuntimeError as error:
    raise PieceError(
      f"jax has no CPU to compare with ({error}): unset JAX_PLATFORMS, or add "
      "',cpu' to it."
    ) from error
