"""Right or wrong: a small training step against float64 and against the CPU."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from accelerator import float64, small_step
from accelerator.checks import check, compare
from accelerator.pieces import Context, PieceError
from accelerator.small_step import (
  EOS,
  LOSS,
  MODEL,
  OPTIMIZER,
  PAD,
  PRM_MODEL,
  StepResult,
)
from pure_jax import steps

BANNED = (PAD,)

# Largest difference by dtype and quantity, as a share of the largest value, and
# why. CPUs show a tenth of those in float32.
_SUMS = "sums of float32 in another order, through {n} layers"
_ROUNDED = "factors have 8 bits (2^-9 = 2e-3 each), through {n} layers"
_STORED = "weights up to 4 in float32, 2e-7 of them, by the rate 1e-3"
TOLERANCES: Mapping[str, Mapping[str, tuple[float, str]]] = {
  "float32": {
    "log-probs": (1e-5, _SUMS),
    "rewards": (1e-5, _SUMS),
    "loss": (1e-5, "a mean of log-probs"),
    "gradient": (2e-5, _SUMS + " and back"),
    "update": (1e-3, _STORED),
  },
  "bfloat16": {
    "log-probs": (1e-2, _ROUNDED),
    "rewards": (5e-2, _ROUNDED),
    "loss": (5e-2, "a mean of log-probs"),
    "gradient": (5e-2, _ROUNDED + " and back"),
    # Moments and weights are float32 here too.
    "update": (1e-3, _STORED),
  },
}
DIFFERENCE_STEP = 1e-6  # Of the central difference in float64.


def tolerance(dtype: str, quantity: str) -> tuple[float, str]:
  """The largest difference allowed and its reason."""
  allowed, reason = TOLERANCES[dtype][quantity]
  return allowed, reason.format(n=PRM_MODEL.num_layers)


def run_float32(context: Context) -> dict[str, Any]:
  """Checks the step in float32 with the highest precision of products.

  Args:
    context: what the piece is told.

  Returns:
    Checks of tokens, log-probs, rewards, loss, gradient and update.
  """
  return _check_dtype(context, "float32")


def run_bfloat16(context: Context) -> dict[str, Any]:
  """Checks the step in bfloat16, with looser tolerances.

  Args:
    context: what the piece is told.

  Returns:
    Checks as `run_float32`, without tokens, which rounding changes.
  """
  return _check_dtype(context, "bfloat16")


def _check_dtype(context, dtype):
  """Runs the step on the default device and on the CPU, and compares."""
  exact = dtype == "float32"
  result = small_step.run_step((jax.devices()[0],), dtype, greedy=exact)
  checks = check_exactly(result, dtype)
  notes = [
    "float64 is a decoder in numpy that shares no code with the models; the "
    "derivative is a central difference of its loss."
  ]
  if context.platform == "cpu":
    notes.append(
      "This is the CPU: there is no other device to compare with, and float64 "
      "alone says whether it is right."
    )
  else:
    on_cpu = small_step.run_step((find_cpu(),), dtype, greedy=exact)
    checks += check_same(result, on_cpu, dtype, "CPU")
  right = sum(line["right"] for line in checks)
  return {
    "summary": f"{right} of {len(checks)} comparisons in {dtype} hold",
    "checks": checks,
    "notes": notes,
  }


def run_engine(context: Context) -> dict[str, Any]:
  """Checks that continuous batching samples what one loop does, in float32.

  Args:
    context: what the piece is told.

  Returns:
    Checks of tokens and log-probs.
  """
  del context
  device = jax.devices()[0]
  loop = small_step.run_step((device,), "float32").sampled
  with jax.default_matmul_precision("highest"):
    layout = small_step.make_layout([device])
    rollout = jax.device_get(small_step.sample_by_engine(layout, "float32"))
  share = (loop.tokens == rollout.tokens).mean()
  return {
    "summary": f"{share:.1%} of the engine's tokens are those of one loop",
    "checks": [
      check(
        "engine's tokens = one loop",
        share == 1,
        f"{share:.1%} equal",
        "equal",
        "a row samples with its own keys, whatever the other slots do",
      ),
      compare(
        "engine's log-probs = one loop",
        rollout.sampled_logp,
        loop.sampled_logp,
        *tolerance("float32", "log-probs"),
      ),
    ],
  }


def run_devices(context: Context) -> dict[str, Any]:
  """Checks that several devices do what one does, in float32.

  Weights and rows are split over the largest power of two of them, at most 8.

  Args:
    context: what the piece is told.

  Returns:
    Checks as of the CPU in `run_float32`; a note if there is one device.
  """
  count = 2 ** int(np.log2(min(context.num_devices, 8)))
  if count == 1:
    note = "There is one device: nothing was split."
    return {"summary": note, "notes": [note]}
  devices = jax.devices()
  alone = small_step.run_step((devices[0],), "float32")
  split = small_step.run_step(tuple(devices[:count]), "float32", greedy=False)
  checks = check_same(split, alone, "float32", "one device")
  right = sum(line["right"] for line in checks)
  return {
    "summary": f"{right} of {len(checks)} comparisons of {count} devices hold",
    "checks": checks,
  }


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
      np.float64(_leaf(tree, path))
      for tree in (start, result.params, result.gradient)
    )
    decay = 0.0 if "norm" in name or "bias" in name else OPTIMIZER.weight_decay
    moves.append((before - after).ravel() / OPTIMIZER.learning_rate)
    direction = gradient / (np.abs(gradient) + 1e-8)
    expected.append((direction + decay * before).ravel())
  return np.concatenate(moves), np.concatenate(expected)


def _leaf(tree, path):
  """The array of a nested dict at a path."""
  for step in path:
    tree = tree[step.key]
  return tree


def check_same(
  result: StepResult, other: StepResult, dtype: str, name: str
) -> list[dict[str, Any]]:
  """Compares a step with the same step on other devices.

  Args:
    result: what the device computed.
    other: what the others computed.
    dtype: the compute dtype of both.
    name: of the others.

  Returns:
    The checks.
  """
  rows = [
    ("policy's log-probs", lambda r: r.scores.old_logp, "log-probs"),
    ("reference's log-probs", lambda r: r.scores.ref_logp, "log-probs"),
    ("step rewards", lambda r: r.scores.step_rewards, "rewards"),
    ("loss", lambda r: r.loss, "loss"),
    ("norm of the gradient", lambda r: r.grad_norm, "gradient"),
  ]
  checks = [
    compare(
      f"{what} = {name}", read(result), read(other), *tolerance(dtype, of)
    )
    for what, read, of in rows
  ]
  # The worst weight alone: a table of all of them says no more.
  pairs = jax.tree_util.tree_leaves_with_path(result.gradient)
  allowed, reason = tolerance(dtype, "gradient")
  worst = max(
    (
      compare(
        f"gradient of weights = {name}, worst {jax.tree_util.keystr(path)}",
        gradient,
        _leaf(other.gradient, path),
        allowed,
        reason,
      )
      for path, gradient in pairs
    ),
    key=lambda line: line["difference"],
  )
  checks.append(worst)
  if dtype == "float32":
    reason = "the same keys give the same noise, and no token is a close call"
    for what, ours, theirs in (
      ("sampled", result.sampled, other.sampled),
      ("greedy", result.greedy, other.greedy),
    ):
      if ours is None:
        continue
      share = (ours.tokens == theirs.tokens).mean()
      checks.append(
        check(
          f"{what} tokens = {name}",
          share == 1,
          f"{share:.1%} equal",
          "equal",
          reason,
        )
      )
  return checks
