"""pure_jax.settings: impossible values raise an error; presets differ."""

import dataclasses

import pytest

from pure_jax import settings
from pure_jax.settings import CreditConfig, LossConfig, ScoreConfig


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"form": "minimum"}, "form must be one of"),
    ({"baseline": "rloo"}, "baseline must be one of"),
    ({"kl_in_reward": "k4"}, "kl_in_reward must be one of"),
    ({"verifiable_estimator": "gae"}, "verifiable_estimator must be one of"),
    ({"temperature": 0.0}, "temperature must be between 1e-06 and"),
    ({"temperature": float("nan")}, "temperature must be between 1e-06 and"),
    (
      {"discount": 1.5, "form": "sum"},
      "discount must be between 0 and 1, got 1.5",
    ),
    ({"discount": 0.9}, "needs form='sum'"),
    ({"group_size": 0}, "group_size must be >= 1"),
    ({"group_size": 1}, "leaves no other sample"),
    (
      {"group_size": 1, "baseline": "none"},
      "leaves no other sample",
    ),
    ({"baseline_length": 0}, "baseline_length must be >= 1"),
    ({"process_coef": -1.0}, "process_coef must be between 0 and"),
    ({"kl_limit": 0.0}, "kl_limit must be between 1e-09 and"),
    ({"whitening": "batch"}, "whitening must be one of"),
    ({"whitening": True}, "whitening must be one of"),
    ({"baseline": "grpo", "fold_verifiable": True}, "one baseline for all"),
    ({"form": "min_dense"}, "set fold_verifiable=True"),
    ({"fold_verifiable": True}, "set baseline to 'paper_b', 'gae'"),
    (
      {
        "fold_verifiable": True,
        "baseline": "none",
        "verifiable_estimator": "grpo",
      },
      "leave verifiable_estimator",
    ),
  ],
  ids=str,
)
def test_impossible_credit_raises(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    CreditConfig(**changes)


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"aggregate": "mean"}, "aggregate must be one of"),
    ({"kl_in_loss": "k0"}, "kl_in_loss must be one of"),
    ({"clip_low": 1.5}, "clip_low must be between 0 and 1"),
    ({"clip_high": -0.1}, "clip_high must be between 0 and"),
    ({"entropy_coef": -0.1}, "entropy_coef must be between 0 and"),
    ({"kl_limit": 0.0}, "or None for no limit, got 0.0"),
    ({"log_ratio_limit": -1.0}, "log_ratio_limit must be between 1e-06 and 60"),
    (
      {"log_ratio_limit": float("nan")},
      "log_ratio_limit must be between 1e-06 and 60",
    ),
    ({"dual_clip": 1.0}, "dual_clip must be between 1.0001 and"),
    ({"ratio_guard": 0.5}, "ratio_guard must be between 1.0001 and"),
    ({"ratio_guard": float("inf")}, "ratio_guard must be between 1.0001 and"),
    ({"aggregate": "constant_length"}, "set both or neither"),
    ({"constant_length": 8}, "set both or neither"),
    (
      {"aggregate": "constant_length", "constant_length": 0},
      ">= 1 token",
    ),
  ],
  ids=str,
)
def test_impossible_loss_raises(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    LossConfig(**changes)


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"max_steps": 0}, "max_steps must be >= 1"),
    ({"separator": "drop"}, "separator must be one of"),
    ({"empty_step_reward": -1.5}, "empty_step_reward must be between -1 and 1"),
  ],
  ids=str,
)
def test_impossible_scores_raise(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    ScoreConfig(**{"max_steps": 4} | changes)


def test_one_sample_is_enough_if_nothing_is_compared():
  config = CreditConfig(
    group_size=1, baseline="none", verifiable_estimator="none"
  )
  assert config.group_size == 1


def test_presets_differ_where_the_method_says():
  paper, paper_loss = settings.paper(4)
  main, main_loss = settings.reference_main(4)
  verl, verl_loss = settings.reference_verl(4)
  assert [c.baseline for c in (paper, main, verl)] == [
    "paper_a",
    "main",
    "paper_b",
  ]
  assert [c.kl_in_reward for c in (paper, main, verl)] == ["k1", "k1", "k3"]
  assert [c.whitening for c in (paper, main, verl)] == [
    "none",
    "reference_main",
    "tokens",
  ]
  for name in ("zero_terminal_advantage", "zero_truncated_end"):
    values = [getattr(config, name) for config in (paper, main, verl)]
    assert values == [False, True, False], name
  # Only the verl branch limits the penalty in the reward.
  assert [c.kl_limit for c in (paper, main, verl)] == [None, None, 10.0]
  assert {c.form for c in (paper, main, verl)} == {"softmin"}
  assert {c.kl_coef for c in (paper, main, verl)} == {1e-3}
  assert main_loss.aggregate == "sequence_mean"
  assert paper_loss == verl_loss == LossConfig()
  assert (verl_loss.kl_limit, verl_loss.log_ratio_limit) == (10.0, 20.0)
  assert (verl_loss.dual_clip, verl_loss.ratio_guard) == (None, None)


def test_the_reference_fault_is_never_a_default():
  # The dense minimum must be asked for by name.
  assert settings.reference_verl(strict_min=True)[0].form == "min_dense"
  for preset in (
    settings.paper,
    settings.reference_main,
    settings.reference_verl,
  ):
    assert preset()[0].form == "softmin"
  assert CreditConfig().form == "softmin"


def test_configs_are_hashable_and_frozen():
  # Static arguments of a jitted function must be both.
  assert hash(CreditConfig()) == hash(CreditConfig())
  with pytest.raises(dataclasses.FrozenInstanceError):
    LossConfig().clip_low = 0.1
