"""Hostile numbers under masks, and empty axes.

A table lists functions with their arrays and the entries that count. Whatever
stands in the others changes no value and no gradient.
"""

import dataclasses
import functools
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import random_experience

from pure_jax import advantages, credit, estimators, losses, masked, steps
from pure_jax.credit_metrics import credit_metrics
from pure_jax.kernels.linear_logp import linear_logp
from pure_jax.models import token_logp
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training import critic
from pure_jax.types import PRMInputs

HOSTILE = (np.nan, np.inf, -np.inf, 1e38, -1e38)
WIDTH, VOCABULARY = 4, 6


@dataclasses.dataclass(frozen=True)
class Case:
  """A function of float arrays, and which of their entries count."""

  function: Callable
  arrays: tuple[np.ndarray, ...]
  kept: tuple[np.ndarray, ...]


def _batch(prompts=2, width=6, max_steps=3, lengths=(6, 3, 1, 0), group=2):
  """An experience with a row without tokens, unless another is asked for."""
  batch, _ = random_experience(
    5,
    prompts=prompts,
    group_size=group,
    width=width,
    max_steps=max_steps,
    lengths=list(lengths),
  )
  return batch.replace(
    has_answer=batch.completion_mask.any(1),
    values=batch.old_logp / 2,
    sampled_logp=batch.old_logp - 0.125,
  )


def _with(batch, names, function):
  """A function of these fields of the batch."""
  return lambda *arrays: function(
    batch.replace(**dict(zip(names, arrays, strict=True)))
  )


def _prm(batch, function):
  """A function of PRM logits [B, T, 2]; a step is scored at its last token."""
  ends = batch.steps
  inputs = PRMInputs(ends.index, ends.end_mask, ends.end_position, ends.mask)
  return lambda logits: function(logits, inputs)


def _cases(batch):
  """The table, on the shapes of a batch."""
  rng = np.random.default_rng(11)
  mask, step_mask, known = (
    np.asarray(x)
    for x in (batch.completion_mask, batch.steps.mask, batch.has_answer)
  )
  (B, C), S = mask.shape, step_mask.shape[1]

  def case(function, *kept):
    arrays = [rng.normal(size=keep.shape).astype(np.float32) for keep in kept]
    return Case(function, tuple(arrays), kept)

  def of_batch(names, function, *kept):
    return case(_with(batch, names, function), *kept)

  cases, segments = {}, np.arange(S) // 2
  for function, axis in (
    (masked.masked_sum, None),
    (masked.masked_mean, 1),
    (masked.masked_var, None),
    (masked.masked_std, 1),
    (masked.masked_min, 1),
    (masked.masked_max, None),
  ):
    cases[function.__name__] = case(
      functools.partial(function, mask=mask, axis=axis), mask
    )
  cases |= {
    "whiten": case(lambda x: masked.whiten(x, mask), mask),
    "whiten_nonzero": case(
      lambda x: masked.whiten_nonzero(x, mask, mask), mask
    ),
    "explained_variance": case(
      lambda x, y: masked.explained_variance(x, y, mask), mask, mask
    ),
    "rloo": case(lambda x: estimators.rloo_advantages(x, known, 2), known),
    "grpo": case(lambda x: estimators.grpo_advantages(x, known, 2), known),
    "grpo steps": case(
      lambda x: estimators.grpo_step_rewards(x, step_mask, 2), step_mask
    ),
    "reinforce_pp": case(
      lambda x, y: estimators.reinforce_pp_advantages(x, y, mask),
      mask.any(1),
      mask,
    ),
    "aggregate_loss": case(
      lambda x: [
        losses.aggregate_loss(x, mask, LossConfig(aggregate=name))
        for name in ("token_mean", "sequence_mean")
      ],
      mask,
    ),
    "values_at_step_ends": case(
      lambda x: steps.values_at_step_ends(x, batch.steps), step_mask
    ),
    "values_per_token": case(
      lambda x: steps.values_per_token(x, batch.steps), step_mask
    ),
  }
  for name, ids, form in (
    ("sum", segments, credit.sum_returns),
    ("discounted", None, functools.partial(credit.sum_returns, discount=0.5)),
    ("mean", None, credit.mean_returns),
    ("min", segments, credit.min_returns),
    ("eq3", None, functools.partial(credit.min_returns, zero_after_worst=True)),
    ("softmin", segments, credit.softmin_returns),
    ("softmin rewards", None, credit.softmin_rewards),
    ("transformed", None, credit.transformed_rewards),
    ("following", segments, credit.following_returns),
  ):
    cases[name] = case(
      functools.partial(form, step_mask=step_mask, segment_ids=ids), step_mask
    )
  for gae_lambda in (0.0, 1.0):
    of_mask = functools.partial(
      estimators.gae_advantages, mask=mask, gae_lambda=gae_lambda
    )
    cases[f"gae {gae_lambda}"] = case(of_mask, mask, mask)

  # Logits: two classes at the positions that a step reads.
  read = np.zeros((B, C, 2), bool)
  read[np.nonzero(batch.steps.end_mask)] = True
  labels = np.arange(B * S).reshape(B, S) % 2
  cases["prm_loss"] = case(
    _prm(
      batch, lambda x, inputs: losses.prm_loss(x, inputs, labels, step_mask)
    ),
    read,
  )
  cases["read_step_rewards"] = case(
    _prm(batch, lambda x, inputs: steps.read_step_rewards(x, inputs)), read
  )

  # Hidden states, and a table that has no masked entry.
  wide = np.broadcast_to(mask[..., None], (*mask.shape, WIDTH))
  table = np.ones((VOCABULARY, WIDTH), bool)
  tokens = np.arange(B * C, dtype=np.int32).reshape(B, C) % VOCABULARY
  readout = token_logp.Readout(True, 1.0, (), 4)
  cases["chunked_logp"] = case(
    lambda x, y: token_logp.chunked_logp(readout, x, y, tokens, mask),
    table,
    wide,
  )
  for name in ("xla", "pallas"):
    head = functools.partial(
      linear_logp, tied=True, implementation=name, interpret=True
    )
    cases[f"linear_logp {name}"] = case(
      lambda x, y, head=head: head(x, y, tokens, mask), table, wide
    )

  loss = LossConfig(
    kl_in_loss="k3", entropy_coef=0.1, importance_cap=2.0, dual_clip=3.0
  )
  spec = types.SimpleNamespace(loss=loss)
  cases["value loss"] = case(
    lambda *texts: critic._objective(spec, 0.2, texts, mask, None)[0],
    *(mask, mask, mask),
  )
  names = ("old_logp", "ref_logp", "sampled_logp")
  objective = _with(
    batch,
    names,
    lambda batch: functools.partial(
      losses.policy_objective, experience=batch, config=loss
    ),
  )
  cases["policy_objective"] = case(
    lambda new, entropy, advantages, *arrays: objective(*arrays)(
      new, entropy, advantages
    ),
    *[mask] * 6,
  )
  fields = ("step_rewards", "correct", *names, "values")
  kept = step_mask, known, mask, mask, mask, mask
  for baseline in ("paper_a", "step", "main", "grpo", "gae"):
    config = CreditConfig(
      "min_eq3" if baseline == "main" else "softmin",
      baseline=baseline,
      group_size=2,
      verifiable_estimator="grpo" if baseline == "grpo" else "rloo",
      fold_verifiable=baseline == "gae",
      kl_in_reward="k3",
      kl_limit=10.0,
      whitening="reference_main" if baseline == "main" else "tokens",
      zero_terminal_advantage=baseline == "main",
    )
    if baseline in ("main", "grpo"):
      cases[f"pure_advantages {baseline}"] = of_batch(
        fields,
        functools.partial(advantages.pure_advantages, config=config),
        *kept,
      )
    elif baseline != "gae":  # It is in `pure_loss`.
      cases[f"process_advantages {baseline}"] = case(
        functools.partial(
          advantages.process_advantages,
          step_mask=step_mask,
          experience=batch,
          config=config,
        ),
        step_mask,
      )
  cases["value_targets"] = of_batch(
    fields, functools.partial(advantages.value_targets, config=config), *kept
  )
  cases["credit_metrics"] = case(
    lambda x, y: credit_metrics(
      masked.zero_masked(x, step_mask), step_mask, y, batch, config
    ),
    step_mask,
    step_mask,
  )
  cases["pure_loss"] = case(
    lambda new, entropy, *arrays: _with(
      batch,
      fields,
      lambda batch: losses.pure_loss(new, entropy, batch, config, loss),
    )(*arrays),
    *(mask, mask, *kept),
  )
  return cases


BATCH = _batch()
CASES = _cases(BATCH)


def _differentiated(case):
  """A function: every output, and the gradients of a sum of them all."""

  def total(*arrays):
    outputs = jax.tree.leaves(case.function(*arrays))
    # Unequal weights, so that gradients of opposite sign do not cancel.
    weights = [jnp.cos(jnp.arange(x.size)).reshape(x.shape) for x in outputs]
    return sum(map(jnp.vdot, weights, outputs)), outputs

  every = tuple(range(len(case.arrays)))
  differentiated = jax.value_and_grad(total, argnums=every, has_aux=True)

  def run(arrays):
    (_, outputs), gradients = differentiated(*arrays)
    return outputs, gradients

  return run


def _filled(case, first):
  """The arrays, with the hostile values in turn where nothing counts."""
  filled = []
  for x, keep in zip(case.arrays, case.kept, strict=True):
    values = np.resize(np.roll(HOSTILE, first or 0), x.shape)
    if first is None:
      values = np.zeros(x.shape)
    filled.append(np.where(keep, x, values).astype(np.float32))
  return filled


@pytest.mark.parametrize("name", CASES)
def test_what_is_masked_changes_neither_value_nor_gradient(name):
  case = CASES[name]
  run = jax.jit(_differentiated(case))
  values, gradients = run(_filled(case, None))
  for x in (*values, *gradients):
    assert np.isfinite(x).all()
  for first in range(len(HOSTILE)):
    actual, slopes = run(_filled(case, first))
    for x, y in zip(actual, values, strict=True):
      np.testing.assert_array_equal(x, y)
    for x, y, keep in zip(slopes, gradients, case.kept, strict=True):
      np.testing.assert_array_equal(x, y)
      assert not np.any(x[~keep])


@pytest.mark.parametrize(
  "shape",
  [
    {"prompts": 0, "lengths": ()},
    {"width": 0, "max_steps": 0, "lengths": [0] * 4},
  ],
  ids=["no rows", "no tokens"],
)
def test_an_empty_batch_is_zero_in_value_and_gradient(shape):
  cases = _cases(_batch(**shape))
  run = jax.jit(
    lambda arrays: {
      name: _differentiated(case)(arrays[name]) for name, case in cases.items()
    }
  )
  results = run({name: _filled(case, 0) for name, case in cases.items()})
  for name, (values, gradients) in results.items():
    for x in (*values, *gradients):
      assert np.isfinite(x).all(), name
    # A share of the rows without content is 1.
    counts_rows = name.startswith(("pure_", "credit_metrics"))
    for x in gradients if counts_rows else (*values, *gradients):
      assert not np.any(x), name
