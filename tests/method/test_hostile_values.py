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
from pure_jax.kernels.decode_attention import decode_attention
from pure_jax.kernels.linear_logp import linear_logp
from pure_jax.kernels.segment_attention import segment_attention
from pure_jax.models import token_logp
from pure_jax.settings import CreditConfig, LossConfig
from pure_jax.training import critic
from pure_jax.types import PRMInputs

HOSTILE = (np.nan, np.inf, -np.inf, 1e38, -1e38)
WIDTH, VOCABULARY = 4, 6
# What the losses read of a `StepSpec`.
SPEC = types.SimpleNamespace(
  loss=LossConfig(
    kl_in_loss="k3", entropy_coef=0.1, importance_cap=2.0, dual_clip=3.0
  )
)


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


def _of_tokens(batch):
  """Functions of tokens [B, C], by name, and which of their entries count."""
  mask = np.asarray(batch.completion_mask)
  table = {}
  for function, axis in (
    (masked.masked_sum, None),
    (masked.masked_mean, 1),
    (masked.masked_var, None),
    (masked.masked_std, 1),
    (masked.masked_min, 1),
    (masked.masked_max, None),
  ):
    of_mask = functools.partial(function, mask=mask, axis=axis)
    table[function.__name__] = of_mask, mask
  for gae_lambda in (0.0, 1.0):
    of_mask = functools.partial(
      estimators.gae_advantages, mask=mask, gae_lambda=gae_lambda
    )
    table[f"gae {gae_lambda}"] = of_mask, mask, mask
  for name in ("token_mean", "sequence_mean"):
    config = LossConfig(aggregate=name)
    table[name] = (
      functools.partial(losses.aggregate_loss, mask=mask, config=config),
      mask,
    )
  return table | {
    "whiten": (lambda x: masked.whiten(x, mask), mask),
    "whiten_nonzero": (lambda x: masked.whiten_nonzero(x, mask, mask), mask),
    "explained_variance": (
      lambda x, y: masked.explained_variance(x, y, mask),
      *(mask, mask),
    ),
    "reinforce_pp": (
      lambda x, y: estimators.reinforce_pp_advantages(x, y, mask),
      *(mask.any(1), mask),
    ),
    "value loss": (
      lambda *texts: critic._objective(SPEC, 0.2, texts, mask, None)[0],
      *[mask] * 3,
    ),
  }


def _of_steps(batch):
  """Functions of outcomes [B] and steps [B, S]."""
  ends, known = batch.steps, np.asarray(batch.has_answer)
  mask = np.asarray(ends.mask)
  segments = np.arange(mask.shape[1]) // 2
  table = {
    "rloo": (lambda x: estimators.rloo_advantages(x, known, 2), known),
    "grpo": (lambda x: estimators.grpo_advantages(x, known, 2), known),
    "grpo steps": (lambda x: estimators.grpo_step_rewards(x, mask, 2), mask),
    "values_at_step_ends": (
      lambda x: steps.values_at_step_ends(x, ends),
      mask,
    ),
    "values_per_token": (lambda x: steps.values_per_token(x, ends), mask),
    "credit_metrics": (
      lambda x, y: credit_metrics(
        masked.zero_masked(x, mask), mask, y, batch, CreditConfig()
      ),
      *(mask, mask),
    ),
  }
  for baseline in ("paper_a", "step"):
    config = CreditConfig(baseline=baseline, group_size=2)
    of_returns = functools.partial(
      advantages.process_advantages,
      step_mask=mask,
      experience=batch,
      config=config,
    )
    table[f"process_advantages {baseline}"] = of_returns, mask
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
    of_mask = functools.partial(form, step_mask=mask, segment_ids=ids)
    table[name] = of_mask, mask
  return table


def _of_models(batch):
  """Functions of logits [B, T, 2], T = C, and of hidden states [B, C, D]."""
  mask, ends = np.asarray(batch.completion_mask), batch.steps
  step_mask = np.asarray(ends.mask)
  inputs = PRMInputs(ends.index, ends.end_mask, ends.end_position, ends.mask)
  read = np.zeros((*mask.shape, 2), bool)
  read[np.nonzero(ends.end_mask)] = True  # A step is scored at its last token.
  labels = np.arange(step_mask.size).reshape(step_mask.shape) % 2
  tokens = np.arange(mask.size, dtype=np.int32).reshape(mask.shape) % VOCABULARY
  embedding = np.ones((VOCABULARY, WIDTH), bool)
  states = np.broadcast_to(mask[..., None], (*mask.shape, WIDTH))
  readout = token_logp.Readout(True, 1.0, (), 4)
  xla, pallas = (
    functools.partial(
      linear_logp,
      tokens=tokens,
      mask=mask,
      tied=True,
      implementation=name,
      interpret=True,
    )
    for name in ("xla", "pallas")
  )
  return {
    "prm_loss": (lambda x: losses.prm_loss(x, inputs, labels, step_mask), read),
    "read_step_rewards": (lambda x: steps.read_step_rewards(x, inputs), read),
    "chunked_logp": (
      lambda x, y: token_logp.chunked_logp(readout, x, y, tokens, mask),
      *(embedding, states),
    ),
    "linear_logp xla": (lambda x, y: xla(x, y), embedding, states),
    "linear_logp pallas": (lambda x, y: pallas(x, y), embedding, states),
  }


def _of_batches(batch):
  """Functions of log-probs, and of the fields of an experience."""
  mask, step_mask, known = map(
    np.asarray, (batch.completion_mask, batch.steps.mask, batch.has_answer)
  )
  fields = {
    "step_rewards": step_mask,
    "correct": known,
    **dict.fromkeys(("old_logp", "ref_logp", "sampled_logp", "values"), mask),
  }

  def replaced(*arrays):
    return batch.replace(**dict(zip(fields, arrays, strict=True)))

  folded = CreditConfig(
    baseline="gae",
    group_size=2,
    fold_verifiable=True,
    kl_in_reward="k3",
    kl_limit=10.0,
  )
  table = {
    "policy_objective": (
      lambda new, entropy, each, *arrays: losses.policy_objective(
        new, entropy, each, replaced(*arrays), SPEC.loss
      ),
      *(mask, mask, mask, *fields.values()),
    ),
    "value_targets": (
      lambda *arrays: advantages.value_targets(replaced(*arrays), folded),
      *fields.values(),
    ),
    "pure_loss": (
      lambda new, entropy, *arrays: losses.pure_loss(
        new, entropy, replaced(*arrays), folded, SPEC.loss
      ),
      *(mask, mask, *fields.values()),
    ),
  }
  for baseline in ("main", "grpo"):
    config = CreditConfig(
      baseline=baseline,
      group_size=2,
      verifiable_estimator="grpo" if baseline == "grpo" else "rloo",
      kl_in_reward="k3",
      whitening="reference_main" if baseline == "main" else "tokens",
    )
    table[f"pure_advantages {baseline}"] = (
      lambda *arrays, config=config: advantages.pure_advantages(
        replaced(*arrays), config
      ),
      *fields.values(),
    )
  return table


def _cases(batch):
  """The whole table, on the shapes of a batch."""
  rng = np.random.default_rng(11)
  return {
    name: Case(
      function,
      tuple(rng.normal(size=x.shape).astype(np.float32) for x in kept),
      tuple(kept),
    )
    for part in (_of_tokens, _of_steps, _of_models, _of_batches)
    for name, (function, *kept) in part(batch).items()
  }


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


# Each needs all that is kept.
NEED_ALL = (
  *("masked_sum", "masked_mean", "masked_var", "masked_std", "whiten"),
  *("whiten_nonzero", "explained_variance", "reinforce_pp", "value loss"),
  *("rloo", "grpo", "grpo steps", "sum", "mean", "softmin", "token_mean"),
  "prm_loss",
)
# These clip log-ratios, the infinite ones too.
CLIPPING = ("policy_objective", "pure_loss")


@pytest.mark.parametrize(
  ("value", "names"),
  [(np.nan, NEED_ALL + CLIPPING), (np.inf, NEED_ALL)],
  ids=["nan", "inf"],
)
def test_what_counts_and_is_not_finite_is_never_hidden(value, names):
  """A zero in its place would be an update without a signal, and no alarm."""
  arrays = {}
  for name in names:
    arrays[name] = _filled(CASES[name], None)
    keep = np.argwhere(CASES[name].kept[0])[0]
    arrays[name][0][tuple(keep)] = value
  run = jax.jit(
    lambda arrays: {n: CASES[n].function(*arrays[n]) for n in names}
  )
  hidden = [
    name
    for name, outputs in run(arrays).items()
    if all(np.isfinite(x).all() for x in jax.tree.leaves(outputs))
  ]
  assert not hidden


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


def test_attention_without_rows_or_tokens():
  attend = functools.partial(
    segment_attention, implementation="splash", interpret=True
  )
  for shape in ((0, 4), (2, 0)):
    q, k = jnp.zeros((*shape, 4, 8)), jnp.zeros((shape[0], 2, shape[1], 8))
    assert jax.jit(attend)(q, k, k, jnp.zeros(shape, int)).shape == q.shape


@pytest.mark.parametrize("name", ["xla", "pallas"])
def test_decoding_reads_no_masked_slot(name):
  rng = np.random.default_rng(0)
  q, cached = rng.normal(size=(2, 2, 4)), rng.normal(size=(2, 1, 3, 4))
  mask = np.array([[True, True, False], [False, True, False]])
  attend = functools.partial(
    decode_attention, implementation=name, interpret=True
  )
  run = jax.jit(lambda cached: attend(jnp.float32(q), [(cached, cached, mask)]))
  # NaN is not allowed: a weight of 0 times NaN is NaN.
  expected, *others = (
    run(jnp.float32(np.where(mask[:, None, :, None], cached, filler)))
    for filler in (0, 1e38, -1e38)
  )
  for actual in others:
    np.testing.assert_array_equal(actual, expected)
  nothing = jnp.zeros((0, 2, 4))
  assert attend(nothing, []).shape == nothing.shape
  empty = jnp.zeros((2, 1, 0, 4))
  with pytest.raises(ValueError, match="segment 0 has a mask of shape"):
    attend(jnp.float32(q), [(empty, empty, mask[:, :0])])
