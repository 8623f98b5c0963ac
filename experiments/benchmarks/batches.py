"""Random prompts, rollouts and scores of the sizes a case states."""

from typing import Any

import jax
import numpy as np

from benchmarks.cases import BenchmarkError, Case
from pure_jax import steps
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training.score import Scores
from pure_jax.types import Prompts, Rollout, SeparatorTable

PAD_ID, EOS_ID, SCORE_ID, SEPARATOR_ID, FIRST_WORD = range(5)
MAX_STEPS = 16
# One id in so many ends a step, so that few responses have too many.
STEP_TOKENS = 20
# Logits of any model are next to nothing beside it.
UNIFORM_TEMPERATURE = 1e6


def separator_table(vocab_size: int) -> SeparatorTable:
  """One id separates steps, and no id merges it with anything.

  Args:
    vocab_size: V, more than the ids with a name.

  Returns:
    The table, as numpy arrays.
  """
  ids, none = np.arange(vocab_size, dtype=np.int32), np.zeros(vocab_size, bool)
  return SeparatorTable(
    ends_step=ids == SEPARATOR_ID,
    half=none,
    stem=ids,
    has_stem=none,
    score_id=np.int32(SCORE_ID),
    eos_id=np.int32(EOS_ID),
    pad_id=np.int32(PAD_ID),
  )


def sampler(
  case: Case, vocab_size: int, uniform: bool = True
) -> SamplingConfig:
  """Plain sampling, to the full length or with stops by chance.

  The next token of random weights is nearly uniform over all ids that are not
  banned, that of any weights at a high temperature is. Early stops come from
  banning all ids but C / 2, one of which ends a response: lengths are
  geometric, cut off at C. The model computes the logits of all ids either way.

  Args:
    case: whose stops and new tokens are meant.
    vocab_size: V.
    uniform: whether the model's distribution is nearly uniform as it is.

  Returns:
    How to sample.
  """
  if case.stops != "early":
    return plain_sampler(case)
  first = EOS_ID + max(2, case.new_tokens // 2)
  return SamplingConfig(
    max_new_tokens=case.new_tokens,
    pad_id=PAD_ID,
    stop_ids=(EOS_ID,),
    banned_ids=tuple(range(first, vocab_size)),
    temperature=1.0 if uniform else UNIFORM_TEMPERATURE,
  )


def plain_sampler(case: Case) -> SamplingConfig:
  """Sampling to the full length, of all ids but padding.

  Args:
    case: whose new tokens are meant.

  Returns:
    How to sample.
  """
  return SamplingConfig(
    max_new_tokens=case.new_tokens, pad_id=PAD_ID, stop_ids=()
  )


def draw_prompts(case: Case, vocab_size: int) -> Prompts:
  """Prompts of random words, without padding.

  Args:
    case: P prompts of L tokens.
    vocab_size: V.

  Returns:
    [P, L] tokens and mask, on the device.
  """
  rng = np.random.default_rng(0)
  shape = case.prompts, case.prompt_tokens
  tokens = rng.integers(FIRST_WORD, vocab_size, shape, dtype=np.int32)
  return jax.device_put(Prompts(tokens, np.ones(shape, bool)))


def draw_rollout(case: Case, prompts: Prompts, vocab_size: int) -> Rollout:
  """Responses of random words and separators, all of the full length.

  Args:
    case: B responses of C tokens.
    prompts: of the case, [P, L].
    vocab_size: V.

  Returns:
    [B, C] responses with the log-probs of a uniform policy, on the device.
  """
  rng = np.random.default_rng(1)
  shape = case.rows, case.new_tokens
  tokens = rng.integers(FIRST_WORD, vocab_size, shape, dtype=np.int32)
  tokens[rng.random(shape) < 1 / STEP_TOKENS] = SEPARATOR_ID
  tokens[:, -1] = EOS_ID
  asked = [np.repeat(x, case.samples, axis=0) for x in jax.device_get(
    (prompts.tokens, prompts.mask))]  # fmt: skip
  return jax.device_put(
    Rollout(
      prompt_tokens=asked[0],
      prompt_mask=asked[1],
      tokens=tokens,
      completion_mask=np.ones(shape, bool),
      sampled_logp=np.full(shape, -np.log(vocab_size), np.float32),
      full_logp=np.full(shape, -np.log(vocab_size), np.float32),
      truncated=np.zeros(case.rows, bool),
    )
  )


def draw_prm_responses(
  rollout: Rollout, table: SeparatorTable
) -> tuple[Any, ...]:
  """What an update is given beside a rollout, at random.

  Args:
    rollout: [B, C] responses.
    table: which ids end a step.

  Returns:
    (scores, correct [B], has_answer [B]), on the device.
  """
  rng = np.random.default_rng(2)
  mask, logp = rollout.completion_mask, rollout.sampled_logp
  split = jax.jit(steps.split_steps, static_argnames="max_steps")
  cut = split(rollout.tokens, mask, table, max_steps=MAX_STEPS)
  rewards = rng.uniform(-1, 1, cut.mask.shape).astype(np.float32)
  rows = len(rollout.tokens)
  correct = rng.integers(0, 2, rows).astype(np.float32)
  scores = Scores(cut, rewards, logp, logp)
  return jax.device_put((scores, correct, np.ones(rows, bool)))


def micro_batches(rows: int, rows_at_a_time: int) -> int:
  """In how few equal parts a batch has no part with too many rows.

  Args:
    rows: B.
    rows_at_a_time: the most of a part.

  Returns:
    The number of parts.

  Raises:
    BenchmarkError: if not even a row may be read.
  """
  if rows_at_a_time < 1:
    raise BenchmarkError(
      f"--rows_at_a_time={rows_at_a_time} must be at least 1."
    )
  return next(
    count
    for count in range(1, rows + 1)
    if rows % count == 0 and rows // count <= rows_at_a_time
  )
