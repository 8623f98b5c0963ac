"""Parity with the reference's own functions, of both its branches.

The vectors are inputs and outputs of the reference, printed to nine or ten
digits: the verl branch in float64, the main branch in float32. Set
PURE_REFERENCE_VECTORS and PURE_MAIN_VECTORS to the two files, or put them at
the default paths; without a file its tests are skipped.
"""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkout import ROOT
from factories import steps_from_ends

from pure_jax import credit, settings, steps
from pure_jax.advantages import folded_rewards, pure_advantages
from pure_jax.losses import policy_objective
from pure_jax.types import Experience, PRMInputs


def _read(variable, name):
  """The cases of a file of vectors, and the mark that skips without it."""
  default = ROOT.parent / "shared/data/reference" / name
  path = pathlib.Path(os.environ.get(variable, default))
  cases = json.loads(path.read_text())["cases"] if path.exists() else []
  reason = f"{path} is missing: set {variable} to the vectors."
  return cases, pytest.mark.skipif(not cases, reason=reason)


CASES, needs_vectors = _read("PURE_REFERENCE_VECTORS", "pure_verl_vectors.json")
MAIN_CASES, needs_main = _read("PURE_MAIN_VECTORS", "pure_main_vectors.json")
TOLERANCE = {"float32": 1e-5, "float64": 1e-9}
# With no file there is still one (skipped) case, so the skip is reported.
case_ids = [f"seed{case['seed']}" for case in CASES] or ["absent"]
every_case = pytest.mark.parametrize("case", CASES or [None], ids=case_ids)
sum_form = [case for case in CASES if case["prm_temperature"] is None]
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def _step_rewards(case, dtype):
  """Step scores read from the case's logits by our own reader."""
  ends = case["step_end"]
  count = max(len(row) for row in ends)
  width = len(case["old_logprob"][0])
  logits = np.zeros((len(ends), width, 2))
  position = np.zeros((len(ends), count), np.int32)
  mask = np.zeros((len(ends), count), bool)
  for b, row in enumerate(ends):
    logits[b, row] = case["prm_logits_at_step_end"][b]
    position[b, : len(row)] = row
    mask[b, : len(row)] = True
  blank = jnp.zeros((len(ends), width), jnp.int32)
  inputs = PRMInputs(blank, blank > 0, jnp.asarray(position), jnp.asarray(mask))
  return jax.jit(steps.read_step_rewards)(jnp.asarray(logits, dtype), inputs)


def _experience(case, dtype):
  width = len(case["old_logprob"][0])
  lengths = case["lengths"]
  mask = np.arange(width)[None, :] < np.asarray(lengths)[:, None]
  rewards = _step_rewards(case, dtype)
  cut = steps_from_ends(case["step_end"], lengths, width, rewards.shape[1])
  return Experience(
    completion_mask=jnp.asarray(mask),
    steps=cut,
    step_rewards=rewards,
    correct=jnp.asarray(case["correct"], dtype),
    has_answer=jnp.asarray(case["has_answer"], bool),
    old_logp=jnp.asarray(case["old_logprob"], dtype),
    ref_logp=jnp.asarray(case["ref_logprob"], dtype),
    terminal_mask=cut.end_mask,
  )


def _configs(case):
  """The reference_verl preset with this case's own settings."""
  assert case["aggregate"] == "sum"
  preset, loss = settings.reference_verl(case["group_size"])
  temperature = case["prm_temperature"]
  config = dataclasses.replace(
    preset,
    # The reference's switch for the weighting: off is the sum form.
    form="sum" if temperature is None else "softmin",
    temperature=temperature or preset.temperature,
    process_coef=0.0 if case["reward_mode"] == "vr" else 1.0,
    verifiable_coef=(
      0.0 if case["reward_mode"] == "prm" else case["verifiable_coef"]
    ),
    kl_coef=case["kl_coef"],
    whitening="tokens" if case["whiten"] else "none",
  )
  loss = dataclasses.replace(
    loss, clip_low=case["clip"], clip_high=case["clip"]
  )
  return config, loss


def _close(actual, expected, dtype, what):
  assert np.asarray(actual).dtype == dtype, what
  tolerance = TOLERANCE[dtype]
  np.testing.assert_allclose(
    actual, expected, rtol=tolerance, atol=tolerance, err_msg=what
  )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _compute(batch, new_logp, config, loss_config):
  """Every field the reference computes after the step scores."""
  returns = credit.step_returns(batch.step_rewards, batch.steps.mask, config)
  rewards = credit.transformed_rewards(returns, batch.steps.mask)
  plain = dataclasses.replace(config, whitening="none")
  advantages, _ = pure_advantages(batch, config)
  _, metrics = policy_objective(
    new_logp, jnp.zeros_like(new_logp), advantages, batch, loss_config
  )
  return {
    "token_reward": folded_rewards(rewards, batch, config),
    "returns": pure_advantages(batch, plain)[0],
    "advantages": advantages,
    "policy_loss": metrics.sums["policy_loss"],
    "clip_fraction": metrics.sums["clip_fraction"],
  }


@needs_vectors
@every_dtype
@every_case
def test_reference_verl_reproduces_every_field(case, dtype):
  with jax.enable_x64(dtype == "float64"):
    batch = _experience(case, dtype)
    config, loss_config = _configs(case)
    expect = case["expect"]
    scores = np.asarray(batch.step_rewards)
    for b, row in enumerate(expect["step_score"]):
      _close(scores[b, : len(row)], row, dtype, "step_score")

    new_logp = jnp.asarray(case["new_logprob"], dtype)
    actual = _compute(batch, new_logp, config, loss_config)
    for name, value in actual.items():
      _close(value, expect[name], dtype, name)
    assert set(actual) | {"step_score"} == set(expect)


@needs_vectors
@pytest.mark.parametrize(
  "case", sum_form or [None], ids=lambda case: f"seed{case and case['seed']}"
)
def test_strict_min_is_the_minimum_over_the_dense_row(case):
  # numpy's running minimum over the reference's own token rewards.
  with jax.enable_x64(True):
    batch = _experience(case, "float64")
    config, _ = _configs(case)
    config = dataclasses.replace(
      config, form="min_dense", whitening="none", baseline="none"
    )
    actual, _ = jax.jit(pure_advantages, static_argnums=1)(batch, config)
    dense = np.asarray(case["expect"]["token_reward"])
    least = np.minimum.accumulate(dense[:, ::-1], axis=1)[:, ::-1]
    kept = np.asarray(batch.completion_mask)
    np.testing.assert_allclose(actual, np.where(kept, least, 0), atol=1e-9)


def _main_experience(case):
  """A case of the main branch; it marks no advantage on a truncated end."""
  lengths, ends = case["lengths"], case["step_end"]
  width, count = max(lengths), max(map(len, ends))
  mask = np.arange(width)[None, :] < np.asarray(lengths)[:, None]
  rewards = np.zeros((len(lengths), count), np.float32)
  logp = np.zeros((2, len(lengths), width), np.float32)
  terminal = np.zeros(mask.shape, bool)
  for b, length in enumerate(lengths):
    rewards[b, : len(ends[b])] = case["step_rewards"][b]
    logp[0, b, :length] = case["old_logp"][b]
    logp[1, b, :length] = case["ref_logp"][b]
    terminal[b, case["terminal"][b]] = True
  return Experience(
    completion_mask=jnp.asarray(mask),
    steps=steps_from_ends(ends, lengths, width, count),
    step_rewards=jnp.asarray(rewards),
    correct=jnp.asarray(case["correct"], jnp.float32),
    has_answer=jnp.asarray(case["has_answer"], bool),
    old_logp=jnp.asarray(logp[0]),
    ref_logp=jnp.asarray(logp[1]),
    terminal_mask=jnp.asarray(terminal),
    truncated=jnp.asarray(case["truncated"], bool),
  )


def _main_config(case):
  """The reference_main preset with this case's own settings."""
  config, _ = settings.reference_main(case["K"])
  zeroes = case["zero_terminal"]
  return dataclasses.replace(
    config,
    baseline={"token": "main", "step": "step"}[case["baseline"]],
    process_coef=float("PRM" in case["mode"]),
    verifiable_coef=float("VR" in case["mode"]),
    kl_in_reward=case["kl_estimator"],
    kl_coef=case["kl_coef"],
    whitening=config.whitening if case["whiten"] else "none",
    # The branch has one switch for both.
    zero_terminal_advantage=config.zero_terminal_advantage and zeroes,
    zero_truncated_end=config.zero_truncated_end and zeroes,
  )


@needs_main
@pytest.mark.parametrize("number", range(len(MAIN_CASES)) or [None])
def test_reference_main_reproduces_every_advantage(number):
  case = MAIN_CASES[number]
  compute = jax.jit(pure_advantages, static_argnums=1)
  actual, _ = compute(_main_experience(case), _main_config(case))
  for b, row in enumerate(case["advantages"]):
    _close(actual[b, : len(row)], row, "float32", f"row {b}")
