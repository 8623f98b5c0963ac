"""A small training step against numpy in float64.

Tokens, log-probs, rewards and the loss are computed again. The gradient is
checked along a random direction, by a central difference of the loss, and the
update by AdamW's equations.
"""

import functools
from typing import Any

import jax
import numpy as np

from accelerator import float64, small_step
from accelerator.checks import check, compare
from accelerator.small_step import (
  EOS,
  LOSS,
  MODEL,
  OPTIMIZER,
  PAD,
  PRM_MODEL,
  StepResult,
  find_cpu,
)
from accelerator.tolerances import tolerance
from pure_jax import steps

BANNED = (PAD,)
DIFFERENCE_STEP = 1e-6  # Of the central difference in float64.


@functools.cache
def exact_policy() -> tuple[Any, Any]:
  """Log-probs of `draw_rollout` in float64: of the policy, of the reference."""
  given = small_step.draw_rollout()
  return tuple(
    float64.read_logp(float64.as_float64(params), MODEL, given, BANNED)[0]
    for params in (small_step.draw_policy(), small_step.draw_reference())
  )


def check_exactly(result: StepResult, dtype: str) -> list[dict[str, Any]]:
  """Compares a step with numpy in float64.

  Args:
    result: what a device computed.
    dtype: its compute dtype, which names the tolerances.

  Returns:
    The checks.
  """

  def close(name, value, reference, quantity):
    words = f"{name} = float64"
    return compare(words, value, reference, *tolerance(dtype, quantity))

  params = float64.as_float64(small_step.draw_policy())
  prm = float64.as_float64(small_step.draw_prm())
  scores, sampled = result.scores, result.sampled
  old_logp, ref_logp = exact_policy()
  again, _ = float64.read_logp(params, MODEL, sampled, BANNED)
  rewards = float64.read_rewards(prm, PRM_MODEL, _prm_inputs())
  checks = [
    close("sampled log-probs", sampled.sampled_logp, again, "log-probs"),
    close("policy's log-probs", scores.old_logp, old_logp, "log-probs"),
    close("reference's log-probs", scores.ref_logp, ref_logp, "log-probs"),
    close("step rewards", scores.step_rewards, rewards, "rewards"),
    compare(
      "sampler = trainer",
      result.drift / np.abs(again).max(),
      0.0,
      *tolerance(dtype, "log-probs"),
    ),
  ]
  if dtype == "float32":
    checks += check_tokens(result, params)
  rng = np.random.default_rng(8)
  direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
  loss, slope = exact_loss(params, direction, result.advantages)
  gradient = unclip(result)
  along = sum(
    np.vdot(x, y)
    for x, y in zip(
      jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
    )
  )
  return [
    *checks,
    close("loss", result.loss, loss, "loss"),
    close("gradient along a direction", along, slope, "gradient"),
    close("update", *exact_update(result), "update"),
  ]


def _prm_inputs():
  """What the PRM reads of `draw_rollout`."""
  given = small_step.draw_rollout()
  spec = small_step.step_spec(
    small_step.make_layout(jax.devices()[:1]), "float32"
  )
  split = jax.jit(steps.split_steps, static_argnames="max_steps")
  build = jax.jit(steps.build_prm_inputs, static_argnames="separator")
  boundaries = split(
    given.tokens,
    given.completion_mask,
    spec.table,
    max_steps=spec.scoring.max_steps,
  )
  inputs = build(
    given.prompt_tokens,
    given.prompt_mask,
    given.tokens,
    given.completion_mask,
    boundaries,
    spec.table,
    separator=spec.scoring.separator,
  )
  return jax.device_get(inputs)


def check_tokens(result: StepResult, params: Any) -> list[dict[str, Any]]:
  """Samples the responses again in float64, with the noise of their keys."""
  rollouts = {"sampled": result.sampled, "greedy": result.greedy}
  checks = []
  for name, rollout in rollouts.items():
    expected = np.full_like(rollout.tokens, PAD)
    closest = np.inf
    for row in range(len(expected)):
      prompt = rollout.prompt_tokens[row][rollout.prompt_mask[row]]
      noise = np.zeros((small_step.C, MODEL.vocab_size))
      if name == "sampled":
        noise = row_noise(row)
      tokens, gap = float64.sample(params, MODEL, prompt, noise, BANNED, EOS)
      expected[row, : len(tokens)] = tokens
      closest = min(closest, gap)
    share = (expected == rollout.tokens).mean()
    checks.append(
      check(
        f"{name} tokens = float64",
        share == 1,
        f"{share:.1%} equal",
        "equal",
        f"the closest second token lost by {closest:.1e}, far above rounding",
      )
    )
  return checks


def row_noise(row: int) -> np.ndarray:
  """Gumbel noise [C, V] of a row: token t has fold_in(fold_in(key, row), t)."""
  with jax.default_device(find_cpu()):
    key = jax.random.fold_in(jax.random.key(small_step.SAMPLING_SEED), row)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(small_step.C))
    shape = (MODEL.vocab_size,)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)
    return np.asarray(noise, np.float64)


def exact_loss(
  params: Any, direction: Any, advantages: np.ndarray
) -> tuple[float, float]:
  """Computes the loss of the update in float64, and its slope.

  At the old policy its ratio is 1, and the slope is that of
  mean(-A ratio + c (exp(d) - d - 1) - e H), d = reference - new log-prob.

  Args:
    params: the policy in float64.
    direction: along which the slope is taken, like `params`.
    advantages: [B, C] of the tokens.

  Returns:
    (loss, derivative along the direction).
  """
  given = small_step.draw_rollout()
  old_logp, ref_logp = exact_policy()
  mask = given.completion_mask

  def loss(shift):
    moved = jax.tree.map(lambda x, y: x + shift * y, params, direction)
    logp, entropy = float64.read_logp(moved, MODEL, given, BANNED)
    ahead = ref_logp - logp
    penalty = np.exp(ahead) - ahead - 1
    value = -advantages * np.exp(logp - old_logp)
    value = value + LOSS.kl_coef * penalty - LOSS.entropy_coef * entropy
    return value[mask].mean()

  h = DIFFERENCE_STEP
  return loss(0.0), (loss(h) - loss(-h)) / (2 * h)


def unclip(result: StepResult) -> Any:
  """The gradient before it was clipped to a global norm, float64."""
  scale = max(1.0, float(result.grad_norm) / OPTIMIZER.max_grad_norm)
  return jax.tree.map(lambda x: scale * np.float64(x), result.gradient)


def exact_update(result: StepResult) -> tuple[np.ndarray, np.ndarray]:
  """AdamW's first step from the device's own gradient, in float64.

  Norms and biases do not decay.

  Returns:
    (moves of all weights in units of the learning rate, what they should be).
  """
  start = small_step.draw_policy()
  moves, expected = [], []
  for path, before in jax.tree_util.tree_leaves_with_path(start):
    name = jax.tree_util.keystr(path)
    before, after, gradient = (
      np.float64(small_step.leaf(tree, path))
      for tree in (start, result.params, result.gradient)
    )
    decay = 0.0 if "norm" in name or "bias" in name else OPTIMIZER.weight_decay
    moves.append((before - after).ravel() / OPTIMIZER.learning_rate)
    direction = gradient / (np.abs(gradient) + 1e-8)
    expected.append((direction + decay * before).ravel())
  return np.concatenate(moves), np.concatenate(expected)
