"""Settings of step scores, credit and loss, and three presets of them.

The settings are frozen and hashable, so they can be static arguments of a
jitted function. Impossible values raise a ValueError that says what to change.
The presets `paper`, `reference_main` and `reference_verl` describe the paper
and the two branches of its reference code; their docstrings say how these
differ. Use `dataclasses.replace` to change a preset.
"""

import dataclasses
import typing

from pure_jax import ranges
from pure_jax.ranges import within

# Seeds are 0..SEEDS - 1, since `jax.random.key` keeps 32 bits of a seed.
Seed = typing.NewType("Seed", int)
SEEDS = 2**32

FORMS = ("sum", "mean", "min", "min_eq3", "softmin", "min_dense")
BASELINES = ("paper_a", "paper_b", "main", "step", "grpo", "gae", "none")
WHITENINGS = ("none", "tokens", "reference_main")
KL_KINDS = ("k1", "k2", "k3")
AGGREGATES = ("token_mean", "sequence_mean", "constant_length")
SEPARATORS = ("insert", "replace", "each")


def _require_one_of(name: str, value: object, allowed: tuple) -> None:
  """Raises ValueError with the choices unless value is one of them."""
  if value not in allowed:
    raise ValueError(f"{name} must be one of {allowed}, not {value!r}.")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
  """How responses are cut into steps and scored by the PRM.

  Attributes:
    max_steps: S, >= 1; the rest of a response is merged into the last step.
    separator: what the PRM reads: "insert" adds a score token after each step,
      "replace" overwrites the separator (see `steps.build_prm_inputs`), "each"
      encodes the text of every step by itself, followed by the score token
      (on the host, see `pure_jax.host.text.tokenization`).
    empty_step_reward: -1..1, replaces the PRM's score of an empty step, so
      that a policy cannot earn rewards with empty steps; None keeps the score.
    read_end: True lets the PRM read EOS before the last score, so that it can
      score an end that comes too early. Needs separator "insert", and a PRM
      that was trained so.
  """

  max_steps: int
  separator: str = "insert"
  empty_step_reward: float | None = None
  read_end: bool = False

  def __post_init__(self):
    if self.max_steps < 1:
      raise ValueError(f"max_steps must be >= 1, not {self.max_steps}.")
    _require_one_of("separator", self.separator, SEPARATORS)
    within(-1, 1, self, "empty_step_reward")
    if self.read_end and self.separator != "insert":
      raise ValueError(
        f"read_end needs separator='insert', not {self.separator!r}: the "
        "others have no place for EOS."
      )

  @property
  def inserted_tokens(self) -> int:
    """Columns that the PRM's inputs have beyond prompt and response."""
    return 0 if self.separator == "replace" else self.max_steps


@dataclasses.dataclass(frozen=True)
class CreditConfig:
  """How step rewards and outcome rewards become token advantages.

  Attributes:
    form: "sum" (collapses), "mean" (the sum of rewards that weigh 1 / n),
      "min" (suffix), "min_eq3" (Eq. 3: zero after the worst step), "softmin"
      (Eq. 5-6, which the reference uses), or "min_dense", a fault of the
      reference kept for comparison: the minimum runs over the dense token
      row, whose zeros turn positive returns and a verifiable +1 into 0.
      "min_dense" needs fold_verifiable.
    temperature: T of softmin, in `ranges.SOFTMIN_TEMPERATURE`.
    discount: 0..1 per step; values below 1 need form "sum".
    baseline: the baseline of the process return, see
      `advantages.process_advantages`: "paper_a", "paper_b", "main", "step"
      (known to be biased by the number of steps), "grpo" (rewards normalised
      in the group, then summed), "gae" (a critic's values, with generalised
      advantage estimates over token rewards) or "none". "gae" needs
      fold_verifiable and `Experience.values`.
    gae_lambda: 0..1, weight of later TD errors in "gae"; 1 gives the sum to go
      minus the value, 0 the TD error.
    baseline_length: N of the paper's baselines in tokens; None means C.
    count_step_end: whether "main" counts the token that ends a step among
      the step's tokens; the reference does not.
    group_size: G, samples per prompt, contiguous rows.
    process_coef: weight of the process part; 0 leaves the PRM out.
    verifiable_coef: weight of the verifiable part; 0 leaves it out.
    verifiable_estimator: "rloo", "grpo" or "none" (the bare outcome; with
      baseline "none", whitening and KL in the reward that is REINFORCE++).
    fold_verifiable: whether outcome and KL are added to the token rewards
      before one common baseline ("paper_b", "gae" or "none"), as in the
      reference's verl branch.
    kl_in_reward: estimator of the KL penalty to the reference policy in the
      reward: "k1", "k2" or "k3"; None has no penalty.
    kl_coef: weight of that penalty, per nat.
    kl_limit: clips the penalty of a token to +-limit nats; None does not clip.
    whitening: "tokens" gives the batch's advantages mean 0 and variance 1.
      "reference_main" whitens with the faults of that branch, see
      `masked.whiten_nonzero`. "none" leaves them as they are.
    zero_terminal_advantage: whether separators and EOS get no advantage.
    zero_truncated_end: whether the last token of a truncated response gets no
      advantage. This is a fault of the reference's main branch, which
      overwrites the token with EOS: the policy did not choose to stop there.
    exclude_empty_steps: whether steps without content are treated as absent.
  """

  form: str = "softmin"
  temperature: float = 0.1
  discount: float = 1.0
  baseline: str = "paper_a"
  gae_lambda: float = 1.0
  baseline_length: int | None = None
  count_step_end: bool = True
  group_size: int = 8
  process_coef: float = 1.0
  verifiable_coef: float = 1.0
  verifiable_estimator: str = "rloo"
  fold_verifiable: bool = False
  kl_in_reward: str | None = None
  kl_coef: float = 1e-3
  kl_limit: float | None = None
  whitening: str = "tokens"
  zero_terminal_advantage: bool = False
  zero_truncated_end: bool = False
  exclude_empty_steps: bool = False

  def __post_init__(self):
    _require_one_of("form", self.form, FORMS)
    _require_one_of("baseline", self.baseline, BASELINES)
    _require_one_of("kl_in_reward", self.kl_in_reward, (None, *KL_KINDS))
    _require_one_of("whitening", self.whitening, WHITENINGS)
    _require_one_of(
      "verifiable_estimator",
      self.verifiable_estimator,
      ("rloo", "grpo", "none"),
    )
    within(*ranges.SOFTMIN_TEMPERATURE, self, "temperature")
    within(*ranges.PROBABILITY, self, "discount gae_lambda")
    within(*ranges.WEIGHT, self, "process_coef verifiable_coef kl_coef")
    within(*ranges.KL, self, "kl_limit", "None for no limit")
    if self.discount != 1 and (self.form != "sum" or self.fold_verifiable):
      raise ValueError(
        "A discount other than 1 needs form='sum' and fold_verifiable=False."
      )
    if self.group_size < 1:
      raise ValueError(f"group_size must be >= 1, not {self.group_size}.")
    if self.baseline_length is not None and self.baseline_length < 1:
      raise ValueError("baseline_length must be >= 1, or None for C.")
    if self.form == "min_dense" and not self.fold_verifiable:
      raise ValueError(
        "form='min_dense' is a fault of folded token rewards: set"
        " fold_verifiable=True, or choose form='min'."
      )
    if self.baseline == "gae":
      self._check_gae()
    if self.fold_verifiable:
      self._check_folded()
    self._check_group()

  def _check_gae(self):
    if not self.fold_verifiable:
      raise ValueError(
        "baseline='gae' estimates advantages of one row of token rewards: set"
        " fold_verifiable=True."
      )
    if self.form == "min_dense":
      raise ValueError(
        "baseline='gae' adds token rewards up, and form='min_dense' takes their"
        " minimum: choose form='min'."
      )

  def _check_folded(self):
    if self.baseline not in ("paper_b", "gae", "none"):
      raise ValueError(
        "fold_verifiable has one baseline for all rewards: set baseline to"
        f" 'paper_b', 'gae' or 'none', not {self.baseline!r}."
      )
    if self.verifiable_estimator != "rloo":
      raise ValueError(
        "fold_verifiable replaces the verifiable estimator: leave"
        " verifiable_estimator at 'rloo'."
      )

  def _check_group(self):
    groups = self.baseline not in ("gae", "none")
    compares = self.process_coef > 0 and groups
    if not self.fold_verifiable:
      verifies = self.verifiable_coef > 0
      compares |= verifies and self.verifiable_estimator != "none"
    else:
      compares |= groups
    if compares and self.group_size == 1:
      raise ValueError(
        "group_size=1 leaves no other sample to compare with: use at least 2,"
        " or baseline='none' and verifiable_estimator='none'."
      )


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """How advantages become one scalar to minimise.

  Attributes:
    clip_low: 0..1; the ratio is clipped below at 1 - clip_low.
    clip_high: >= 0; the ratio is clipped above at 1 + clip_high. A value above
      clip_low is "clip-higher", which leaves rare tokens room to grow.
    aggregate: "token_mean" over the batch's tokens, "sequence_mean" of
      per-response token means, or "constant_length": sum of tokens over
      constant_length, mean over responses.
    constant_length: > 0, tokens; used only by "constant_length".
    kl_in_loss: estimator of the KL penalty to the reference policy in the
      loss: "k1", "k2" or "k3"; None has no penalty.
    kl_coef: weight of that penalty, per nat.
    entropy_coef: weight of the entropy bonus, per nat.
    importance_cap: > 0, cap of a token's importance weight, policy over
      sampler, see `importance`; None gives all tokens the same weight.
    kl_limit: > 0, clips the penalty in the loss to +-limit nats per token, as
      verl does with k3; a clipped token gets no gradient from it. None clips
      nothing, and a policy far from the reference can then overflow.
    log_ratio_limit: > 0, clips log(policy / old policy) to +-limit nats
      before the ratio is taken, as verl and OpenRLHF do; a clipped token gets
      no gradient from its ratio. None clips only above 60 nats.
    dual_clip: c > 1, bounds the loss of a token with A < 0 by -c * A, see
      `ratios.dual_clip` (verl has 3); None does not.
    ratio_guard: > 1; the loss and gradients of an update are 0 if the mean
      ratio of its tokens exceeds it, see `ratios.apply_guard` (TRL has 10);
      None has no guard.
  """

  clip_low: float = 0.2
  clip_high: float = 0.2
  aggregate: str = "token_mean"
  constant_length: int | None = None
  kl_in_loss: str | None = None
  kl_coef: float = 1e-3
  entropy_coef: float = 0.0
  importance_cap: float | None = None
  kl_limit: float | None = 10.0
  log_ratio_limit: float | None = 20.0
  dual_clip: float | None = None
  ratio_guard: float | None = None

  def __post_init__(self):
    _require_one_of("aggregate", self.aggregate, AGGREGATES)
    _require_one_of("kl_in_loss", self.kl_in_loss, (None, *KL_KINDS))
    within(*ranges.PROBABILITY, self, "clip_low")
    within(0, ranges.CAP[1], self, "clip_high")
    within(*ranges.WEIGHT, self, "kl_coef entropy_coef")
    within(*ranges.CAP, self, "importance_cap", "None for no weights")
    within(*ranges.KL, self, "kl_limit", "None for no limit")
    within(*ranges.LOG_RATIO, self, "log_ratio_limit", "None for 60")
    within(*ranges.CAP_ABOVE_1, self, "dual_clip ratio_guard", "None for none")
    wants_length = self.aggregate == "constant_length"
    if wants_length != (self.constant_length is not None):
      raise ValueError(
        "constant_length goes with aggregate='constant_length': set both or"
        " neither."
      )
    if wants_length and self.constant_length < 1:
      raise ValueError("constant_length must be >= 1 token.")


@dataclasses.dataclass(frozen=True)
class AdaptiveKLConfig:
  """How the KL coefficient follows the measured KL (arXiv 1909.08593, 2.2).

  Attributes:
    target: > 0, nats per token, the KL to the reference policy that the
      coefficient aims at.
    horizon: >= 1, responses; the longer, the slower the coefficient changes,
      see `estimators.adaptive_kl_coef`.
  """

  target: float = 0.1
  horizon: int = 10_000

  def __post_init__(self):
    within(*ranges.KL, self, "target")
    if self.horizon < 1:
      raise ValueError(f"horizon must be >= 1, not {self.horizon}.")


def paper(group_size: int = 8) -> tuple[CreditConfig, LossConfig]:
  """The method as the paper writes it (arXiv 2504.15275).

  It has softmin credit at T = 0.1 (Eq. 5-6), RLOO on the outcome, and the token
  baseline in reading A: the baseline is subtracted inside the sum over j >= t,
  where the equation has it. The KL penalty is in the reward; it is k1, the
  plain log-ratio. No equation has whitening or a limit of that penalty, so
  there is neither, although the reference's verl branch has both.

  Args:
    group_size: G, samples per prompt.

  Returns:
    (CreditConfig, LossConfig).
  """
  credit = CreditConfig(
    baseline="paper_a",
    kl_in_reward="k1",
    whitening="none",
    group_size=group_size,
  )
  return credit, LossConfig()


def reference_main(group_size: int = 8) -> tuple[CreditConfig, LossConfig]:
  """The reference's main branch, and how it differs from `paper`.

  The baseline is the total reward of the other samples over their total
  tokens, times the tokens of a step without the one that ends it. Separators
  and EOS get no advantage, so that stopping gets no gradient. The loss is a
  mean over responses of token means. Three faults of the branch are kept:

  * the last token of a truncated response gets no advantage either;
  * the variance of its whitening is too large, because it sums the square of
    the mean over the tokens that are left out;
  * an advantage that is exactly 0 is left out of the whitening and stays 0.

  Args:
    group_size: G, samples per prompt.

  Returns:
    (CreditConfig, LossConfig).
  """
  credit = CreditConfig(
    baseline="main",
    count_step_end=False,
    kl_in_reward="k1",
    whitening="reference_main",
    zero_terminal_advantage=True,
    zero_truncated_end=True,
    group_size=group_size,
  )
  return credit, LossConfig(aggregate="sequence_mean")


def reference_verl(
  group_size: int = 8, strict_min: bool = False
) -> tuple[CreditConfig, LossConfig]:
  """The reference's verl branch, and how it differs from `paper`.

  Outcome (on the last token), process rewards and KL (k3, clipped at 10
  nats) are folded into one row of token rewards. The baseline is reading B,
  the mean return-to-go of the other samples, with N the padded length C.
  Advantages are whitened; nothing is zeroed at separators.

  Args:
    group_size: G, samples per prompt.
    strict_min: whether to use the branch's "strict min-form", the minimum over
      the dense token row. Every token that ends no step counts as a reward of
      0 (less KL), so positive returns become 0 and a verifiable +1 vanishes.
      This fault is kept for comparison; `form="min"` is the correct version.

  Returns:
    (CreditConfig, LossConfig).
  """
  credit = CreditConfig(
    form="min_dense" if strict_min else "softmin",
    baseline="paper_b",
    fold_verifiable=True,
    kl_in_reward="k3",
    kl_limit=10.0,
    whitening="tokens",
    group_size=group_size,
  )
  return credit, LossConfig()
