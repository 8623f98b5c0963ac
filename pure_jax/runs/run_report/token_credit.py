"""Credit and advantages of logged samples, under each form of credit."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pure_jax.advantages import pure_advantages
from pure_jax.credit import following_returns, step_returns
from pure_jax.settings import CreditConfig
from pure_jax.types import Experience, StepBoundaries

# The forms of the paper, in the order in which a page offers them.
FORMS = ("sum", "min", "min_eq3", "softmin")
# For each form: the returns of the steps, and the advantages of their tokens.
Credit = dict[str, dict[str, list[Any]]]
_GROUPS = 8  # Computed at a time, to save memory.


def token_credit(
  samples: Sequence[Mapping[str, Any]], config: CreditConfig
) -> list[Credit]:
  """Computes the credit of samples as if the run had had each form.

  The other settings are the run's, with these exceptions: advantages are not
  whitened, which needs the whole batch, have no KL penalty, which needs
  log-probs, and are those of all tokens, also of tokens that the run leaves
  out.

  Args:
    samples: rows of samples.jsonl. Each has its group: for all samples of its
      prompt the scores and the number of tokens of each step, and verdicts.
    config: the run's. Its baseline is not "gae", and its `baseline_length` is
      set if the baseline reads it.

  Returns:
    For each sample and form ``returns``, a number for each step, and
    ``advantages``, for each step those of its first and of its last token. In
    between they are on a line.
  """
  if not samples:
    return []
  credits: list[Credit] = [{} for _ in samples]
  by_coef: dict[float, list[int]] = {}  # A roll-back may have changed it.
  for row, sample in enumerate(samples):
    by_coef.setdefault(sample["group"]["verifiable_coef"], []).append(row)
  size = _size([sample["group"] for sample in samples])
  for coef, rows in by_coef.items():
    of_rows = dataclasses.replace(
      config,
      verifiable_coef=coef,
      whitening="none",
      kl_in_reward=None,
      zero_terminal_advantage=False,
      zero_truncated_end=False,
    )
    for first in range(0, len(rows), _GROUPS):
      chunk = rows[first : first + _GROUPS]
      # All chunks have one shape, for which the functions are compiled once.
      padded = [*chunk, *[chunk[0]] * (_GROUPS - len(chunk))]
      groups = [samples[row]["group"] for row in padded]
      computed = _of_groups(groups, of_rows, size)
      for row, of_sample in zip(chunk, computed, strict=False):
        credits[row] = of_sample
  return credits


@functools.partial(jax.jit, static_argnames="config")
def _compute(
  experience: Experience, config: CreditConfig
) -> tuple[jax.Array, jax.Array]:
  """(returns of the steps [B, S], advantages of the tokens [B, C])."""
  step_mask = experience.steps.mask
  if config.exclude_empty_steps:
    step_mask &= ~experience.steps.empty
  returns = step_returns(experience.step_rewards, step_mask, config)
  advantages, _ = pure_advantages(experience, config)
  return following_returns(returns, step_mask), advantages


def _of_groups(
  groups: Sequence[Mapping[str, Any]],
  config: CreditConfig,
  size: tuple[int, int],
) -> list[Credit]:
  """The credit of one sample of each group, its member."""
  experience = _experience(groups, size)
  credits: list[Credit] = [{} for _ in groups]
  for form in FORMS:
    discount = config.discount if form == "sum" else 1.0
    of_form = dataclasses.replace(config, form=form, discount=discount)
    returns, advantages = jax.device_get(_compute(experience, of_form))
    for number, group in enumerate(groups):
      row = number * config.group_size + group["member"]
      mask = np.asarray(experience.steps.mask[row])
      last = np.asarray(experience.steps.end_position[row])[mask]
      first = np.asarray([0, *(last[:-1] + 1)], np.int64)[: len(last)]
      of_tokens = advantages[row]
      credits[number][form] = {
        "returns": _rounded(returns[row][mask]),
        "advantages": _rounded(of_tokens[np.stack([first, last], axis=1)]),
      }
  return credits


def _rounded(values: np.ndarray) -> list[Any]:
  """The values with four digits."""
  return values.astype(np.float64).round(4).tolist()


def _size(groups: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
  """(S, C), the most steps and tokens of a response."""
  responses = [tokens for group in groups for tokens in group["step_tokens"]]
  return max(map(len, responses)), max(map(sum, responses))


def _experience(
  groups: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> Experience:
  """The batch of all groups, whose tokens are known by their number."""
  lengths = [tokens for group in groups for tokens in group["step_tokens"]]
  scores = [score for group in groups for score in group["step_rewards"]]
  rows, (max_steps, columns) = len(lengths), size
  rewards = np.zeros((rows, max_steps), np.float32)
  mask = np.zeros((rows, max_steps), bool)
  end = np.zeros((rows, max_steps), np.int32)
  index = np.zeros((rows, columns), np.int32)
  is_end = np.zeros((rows, columns), bool)
  for row, (tokens, of_row) in enumerate(zip(lengths, scores, strict=True)):
    count = len(tokens)
    ends = np.cumsum(tokens, dtype=np.int64) - 1
    mask[row, :count], rewards[row, :count] = True, of_row
    end[row, :count], is_end[row, ends] = ends, True
    index[row, : sum(tokens)] = np.repeat(np.arange(count), tokens)
  total = np.asarray([sum(tokens) for tokens in lengths])
  empty = [flags for group in groups for flags in group["empty"]]
  is_empty = np.zeros((rows, max_steps), bool)
  for row, flags in enumerate(empty):
    is_empty[row, : len(flags)] = flags
  zeros = jnp.zeros((rows, columns))
  correct = [right for group in groups for right in group["correct"]]
  known = [group["uses_answer"] for group in groups for _ in group["correct"]]
  return Experience(
    completion_mask=jnp.asarray(np.arange(columns) < total[:, None]),
    steps=StepBoundaries(
      index=jnp.asarray(index),
      end_mask=jnp.asarray(is_end),
      end_position=jnp.asarray(end),
      mask=jnp.asarray(mask),
      empty=jnp.asarray(is_empty),
      overflow=jnp.zeros(rows, jnp.int32),
    ),
    step_rewards=jnp.asarray(rewards),
    correct=jnp.asarray(correct, jnp.float32),
    has_answer=jnp.asarray(known, bool),
    old_logp=zeros,
    ref_logp=zeros,
    terminal_mask=jnp.asarray(is_end),  # Not read.
  )
