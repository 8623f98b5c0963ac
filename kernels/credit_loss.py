"""Credit, baseline and clipped loss of a batch in one pass over its tokens.

The PURE loss is a chain of small operations: a scan over a response's steps, a
baseline from the prompt's other samples, a look-up of each token's step, sums
to go, a ratio, a clip. Here a kernel does all of it for one prompt at a time,
reads each array once and writes what the backward pass needs: one number a
token, the loss's slope.

Letters: P prompts, K samples of each, B = P K rows, C tokens, S steps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pure_jax import estimators, losses, masked
from pure_jax.advantages import check_experience
from pure_jax.kernels.dispatch import choose
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.types import Experience

FORMS = ("sum", "min", "softmin")
BASELINES = ("none", "paper_a", "main")
METRICS = (
  "policy_loss",
  "clip_fraction",
  "advantage_mean",
  "ratio_max",
  "ratio_min",
)
# Of what a kernel holds, some thirty arrays of a prompt's tokens: inputs and
# the output twice, and what lies between them.
VMEM_BYTES = 60 * 2**20
ARRAYS = 30
LANES = 128


def credit_loss(
  new_logp: Array,
  entropy: Array,
  experience: Experience,
  credit: CreditConfig,
  loss: LossConfig,
  *,
  implementation: str | None = None,
  interpret: bool = False,
) -> tuple[Array, losses.Metrics]:
  """The PURE loss and its gradient, see `losses.pure_loss`.

  The kernel knows the forms "sum" without a discount, "min" and "softmin", the
  baselines "none", "paper_a" and "main", outcomes apart from the process
  rewards, and no whitening, for which all tokens of the batch have to be seen
  before the first: so `settings.paper`, for one. Everything of `LossConfig` is
  there.

  Args:
    new_logp: [B, C] float32, nats, under the policy being trained.
    entropy: [B, C] float32, nats, of its next-token distributions.
    experience: Experience, B = P * K rows; each existing step has a token, and
      a row's last token ends its last step, as `steps.split_steps` makes them.
    credit: CreditConfig, static under jit.
    loss: LossConfig, static under jit.
    implementation: None or "xla", `losses.pure_loss` itself; "pallas", the
      kernel.
    interpret: runs the kernel step by step on any device, to test it.

  Returns:
    (loss [], metrics): those of `METRICS`, as `pure_loss` has them. The
    gradient reaches new_logp and entropy only.

  Raises:
    ValueError: shapes do not fit each other, or the implementation named
      cannot do what the settings ask for.
  """
  obstacle = _obstacle(new_logp, credit)
  if choose(implementation, {"pallas": obstacle}, interpret) == "xla":
    return reference(new_logp, entropy, experience, credit, loss)
  return _fused(new_logp, entropy, experience, credit, loss, interpret)


def reference(
  new_logp: Array,
  entropy: Array,
  experience: Experience,
  credit: CreditConfig,
  loss: LossConfig,
) -> tuple[Array, losses.Metrics]:
  """`credit_loss` by the library's own functions.

  Args:
    new_logp: [B, C] float, nats.
    entropy: [B, C] float, nats.
    experience: Experience.
    credit: CreditConfig.
    loss: LossConfig.

  Returns:
    (loss [], metrics).
  """
  value, metrics = losses.pure_loss(new_logp, entropy, experience, credit, loss)
  return value, {name: metrics[name] for name in METRICS}


def _obstacle(new_logp, credit) -> str | None:
  """What the kernel cannot do of the settings, None where it can do all."""
  for name, allowed in (
    ("form", FORMS),
    ("baseline", BASELINES),
    ("discount", (1,)),
    ("fold_verifiable", (False,)),
    ("whiten", (False,)),
  ):
    found = getattr(credit, name)
    if found not in allowed:
      words = " or ".join(str(value) for value in allowed)
      return f"credit.{name} is {found!r}, and the kernel knows {words}"
  if new_logp.dtype != jnp.float32:
    return f"new_logp is {new_logp.dtype}, not float32"
  needed = ARRAYS * credit.group_size * new_logp.shape[1] * 4
  if needed > VMEM_BYTES:
    return (
      f"{credit.group_size} samples of {new_logp.shape[1]} tokens need about "
      f"{needed >> 20} MB at a time, more than {VMEM_BYTES >> 20}"
    )
  return None


@dataclasses.dataclass(frozen=True)
class _Settings:
  """What is known when the kernel is compiled."""

  credit: CreditConfig
  clip_low: float
  clip_high: float
  interpret: bool


def _fused(new_logp, entropy, experience, credit, loss, interpret):
  """The kernel, and around it what is of rows, not of tokens."""
  check_experience(experience)
  mask = experience.completion_mask
  for name, x in (("new_logp", new_logp), ("entropy", entropy)):
    if x.shape != mask.shape:
      raise ValueError(
        f"{name} has shape {x.shape}, not that of completion_mask, "
        f"{mask.shape}."
      )
  if len(mask) % credit.group_size:
    raise ValueError(
      f"{len(mask)} rows are no multiple of group_size={credit.group_size}."
    )
  settings = _Settings(credit, loss.clip_low, loss.clip_high, interpret)
  rows = _rows(settings, new_logp, jax.lax.stop_gradient(experience))
  tokens = mask.sum(axis=1)
  denominator = losses.loss_denominator(mask, loss)

  def mean(total):
    if loss.aggregate == "sequence_mean":
      total = masked.safe_divide(total, tokens)
    return masked.safe_divide(total.sum(), denominator)

  policy_loss = value = mean(rows[:, 0])
  if loss.kl_in_loss is not None:
    penalty = estimators.kl_estimate(
      jnp.where(mask, new_logp, 0.0),
      jax.lax.stop_gradient(jnp.where(mask, experience.ref_logp, 0.0)),
      loss.kl_in_loss,
    )
    value += loss.kl_coef * losses.aggregate_loss(penalty, mask, loss)
  if loss.entropy_coef:
    value -= loss.entropy_coef * losses.aggregate_loss(entropy, mask, loss)
  numbers = (
    policy_loss,
    mean(rows[:, 1]),
    masked.safe_divide(rows[:, 2].sum(), tokens.sum()),
    masked.masked_max(rows[:, 3], tokens > 0),
    masked.masked_min(rows[:, 4], tokens > 0),
  )
  metrics = dict(zip(METRICS, numbers, strict=True))
  return value, jax.lax.stop_gradient(metrics)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(settings, new_logp, experience):
  """[B, 5] float32: sums over tokens of loss, clips, advantage; ratios."""
  return _run(settings, new_logp, experience)[0]


def _rows_forward(settings, new_logp, experience):
  rows, slope = _run(settings, new_logp, experience)
  return rows, slope


def _rows_backward(settings, slope, cotangent):
  """The loss alone has a gradient, and that by new_logp alone."""
  return slope * cotangent[:, :1], None


_rows.defvjp(_rows_forward, _rows_backward)


def _outcomes(experience, credit) -> Array:
  """[B] float32, the verifiable part of a row's advantage, weighted."""
  outcome, known = experience.correct, experience.has_answer
  if not credit.verifiable_coef:
    return jnp.zeros_like(outcome)
  if credit.verifiable_estimator == "none":
    found = jnp.where(known, outcome, 0.0)
  else:
    estimate = {
      "rloo": estimators.rloo_advantages,
      "grpo": estimators.grpo_advantages,
    }[credit.verifiable_estimator]
    found = estimate(outcome, known, credit.group_size)
  return credit.verifiable_coef * found


def _penalty(experience, credit) -> Array:
  """[B, C] float32, what each token's KL costs; anything where masked."""
  return credit.kl_coef * estimators.kl_estimate(
    experience.old_logp,
    experience.ref_logp,
    credit.kl_in_reward,
    credit.kl_limit,
  )


def _run(settings, new_logp, experience):
  """([B, 5] sums over rows, [B, C] slope of each token's loss)."""
  credit, steps = settings.credit, experience.steps
  B, C = new_logp.shape
  K = credit.group_size
  there = steps.mask & jnp.isfinite(experience.step_rewards)
  if credit.exclude_empty_steps:
    there &= ~steps.empty
  # Missing steps are inf, the identity of the minimum; masked tokens belong to
  # step -1; the lowest bit says that a token is to have no advantage.
  rewards = jnp.where(there, experience.step_rewards, jnp.inf)
  silent = experience.terminal_mask & credit.zero_terminal_advantage
  code = jnp.where(experience.completion_mask, 2 * steps.index + silent, -2)
  arguments = [rewards, _outcomes(experience, credit)[:, None], code]
  arguments += [new_logp, experience.old_logp]
  if credit.kl_in_reward is not None:
    # Not in the kernel: Mosaic has no expm1, of which k3 is made.
    arguments.append(_penalty(experience, credit))

  def spec(columns):
    return pl.BlockSpec((None, K, columns), lambda p: (p, 0, 0))

  arguments = [_whole_lanes(x, K) for x in arguments]
  widths = [x.shape[2] for x in arguments]
  columns = len(METRICS), widths[-1]
  rows, slope = pl.pallas_call(
    functools.partial(_kernel, settings=settings, tokens=C),
    out_shape=[
      jax.ShapeDtypeStruct((B // K, K, width), jnp.float32) for width in columns
    ],
    grid=(B // K,),
    in_specs=[spec(width) for width in widths],
    out_specs=[spec(width) for width in columns],
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
    interpret=settings.interpret,
    name="credit_loss",
  )(*arguments)
  return rows.reshape(B, -1), slope.reshape(B, -1)[:, :C]


def _whole_lanes(x: Array, samples: int) -> Array:
  """[B, n] -> [P, K, n], n filled up: lanes are rolled round whole vectors."""
  missing = -x.shape[1] % LANES if x.shape[1] > 1 else 0
  absent = jnp.inf if x.dtype == jnp.float32 else -2
  x = jnp.pad(x, ((0, 0), (0, missing)), constant_values=absent)
  return x.reshape(-1, samples, x.shape[1])


def _kernel(
  rewards, outcome, code, new_logp, old_logp, *rest, settings, tokens
):
  """All rows of one prompt."""
  *penalty, rows, slope = rest
  credit = settings.credit
  step = code[...] >> 1
  mask = step >= 0
  silent = (code[...] & 1) != 0
  advantage = jnp.broadcast_to(outcome[...], mask.shape)
  if credit.process_coef:
    process = _process(rewards[...], step, mask, credit, tokens)
    advantage += credit.process_coef * process

  def kept(x):
    # Before any exp: a masked log-prob may be -inf.
    return jnp.where(mask, x[...], 0.0)

  new, old = kept(new_logp), kept(old_logp)
  for cost in penalty:  # One, or none.
    advantage -= _to_go(jnp.add, kept(cost), 0.0)
  advantage = jnp.where(mask & ~silent, advantage, 0.0)

  ratio = jnp.exp(new - old)
  low, high = 1 - settings.clip_low, 1 + settings.clip_high
  plain = -ratio * advantage
  bounded = -jnp.clip(ratio, low, high) * advantage
  clipped = bounded > plain
  slope[...] = jnp.where(clipped, 0.0, plain)
  for column, found in enumerate(
    (
      jnp.maximum(plain, bounded).sum(axis=1, keepdims=True),
      jnp.where(clipped, 1.0, 0.0).sum(axis=1, keepdims=True),
      advantage.sum(axis=1, keepdims=True),
      jnp.where(mask, ratio, -jnp.inf).max(axis=1, keepdims=True),
      jnp.where(mask, ratio, jnp.inf).min(axis=1, keepdims=True),
    )
  ):
    rows[:, column : column + 1] = found


def _to_go(operation, values, identity):
  """Cumulates from the right in log2 steps: each takes in twice as many."""
  size = values.shape[1]
  lane = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
  reach = 1
  while reach < size:
    # Rolled all the way round but for the reach, lanes move to the left.
    later = pltpu.roll(values, size - reach, 1)
    later = jnp.where(lane < size - reach, later, identity)
    values = operation(values, later)
    reach *= 2
  return values


def _returns(rewards, credit):
  """[K, S] step returns; a missing step has that of the next, or 0."""
  there = rewards < jnp.inf
  if credit.form == "min":
    to_go = _to_go(jnp.minimum, rewards, jnp.inf)
    return jnp.where(to_go < jnp.inf, to_go, 0.0)
  present = jnp.where(there, rewards, 0.0)
  if credit.form == "softmin":
    worst = rewards.min(axis=1, keepdims=True)
    shift = jnp.where(there, rewards - worst, 0.0)
    weight = jnp.where(there, jnp.exp(-shift / credit.temperature), 0.0)
    total = weight.sum(axis=1, keepdims=True)
    present = weight / jnp.where(total > 0, total, 1.0) * present
  return _to_go(jnp.add, present, 0.0)


def _process(rewards, step, mask, credit, length):
  """[K, C] return of each token's step, less the baseline."""
  K, S = rewards.shape
  returns = _returns(rewards, credit)
  lane = jax.lax.broadcasted_iota(jnp.int32, returns.shape, 1)
  ones = jnp.where(mask, 1.0, 0.0)
  tokens = ones.sum(axis=1, keepdims=True)
  main = credit.baseline == "main"
  # Of step s to the end: its tokens and those after it, each step's last left
  # out or not.
  count = jnp.max(step, axis=1, keepdims=True) + 1

  def one_step(s, carry):
    to_go, cost, before = carry
    of_step = step == s
    # One lane of each row, without a sum of more than one number.
    value = jnp.where(lane == s, returns, 0.0).sum(axis=1, keepdims=True)
    to_go = jnp.where(of_step, value, to_go)
    if main:
      left = tokens - before
      if not credit.count_step_end:
        left -= (count - s).astype(jnp.float32)
      cost = jnp.where(of_step, left, cost)
      before += jnp.where(of_step, 1.0, 0.0).sum(axis=1, keepdims=True)
    return to_go, cost, before

  nothing = jnp.zeros(step.shape, jnp.float32)
  to_go, cost, _ = jax.lax.fori_loop(
    0, S, one_step, (nothing, nothing, jnp.zeros_like(tokens))
  )
  if credit.baseline == "none":
    return to_go
  # Rewards that sum to the returns add up to the first of them.
  total = returns[:, :1]
  others = total.sum(axis=0, keepdims=True) - total
  if main:
    among = tokens.sum(axis=0, keepdims=True) - tokens
    share = jnp.where(among > 0, others / jnp.where(among > 0, among, 1.0), 0.0)
  else:
    share = others / ((K - 1) * (credit.baseline_length or length))
    cost = _to_go(jnp.add, ones, 0.0)
  return to_go - cost * share
