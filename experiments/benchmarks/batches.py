"""Random prompts, responses and scores of the sizes that a case states."""

import jax
import numpy as np

from benchmarks.cases import Case
from pure_jax import steps
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training.score import ScoredBatch, Scores
from pure_jax.types import Prompts, Rollout, SeparatorTable

PAD_ID, EOS_ID, SCORE_ID, SEPARATOR_ID, FIRST_WORD = range(5)
MAX_STEPS = 16
# Mean tokens of a step: few responses have more than `MAX_STEPS`.
STEP_TOKENS = 20
# Makes the distribution of any model nearly uniform.
UNIFORM_TEMPERATURE = 1e6
# Shortest and longest response of `draw_unequal_rollout`, as shares of C.
SHORTEST_RESPONSE, LONGEST_RESPONSE = 0.08, 0.78
SHORTEST_PROMPT = 0.25  # Of L.


def separator_table(vocab_size: int) -> SeparatorTable:
  """Makes a vocabulary in which one id separates steps and merges with none.

  Args:
    vocab_size: V, larger than the special ids.

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
  """Configures sampling to the full length, or with stops at random.

  Random weights give a nearly uniform distribution over the ids that are not
  banned, and so do any weights at a high temperature. Responses end early
  because all ids but C / 2 are banned, one of which ends a response: lengths
  are geometric, cut at C. The model computes the logits of all ids either way.

  Args:
    case: gives the stops and the new tokens.
    vocab_size: V.
    uniform: whether the model's distribution is nearly uniform already.

  Returns:
    The sampling config.
  """
  if case.stops != "early":
    return plain_sampler(case)
  first_banned = EOS_ID + max(2, case.new_tokens // 2)
  return SamplingConfig(
    max_new_tokens=case.new_tokens,
    pad_id=PAD_ID,
    stop_ids=(EOS_ID,),
    banned_ids=tuple(range(first_banned, vocab_size)),
    temperature=1.0 if uniform else UNIFORM_TEMPERATURE,
  )


def plain_sampler(case: Case) -> SamplingConfig:
  """Configures sampling to the full length, from all ids but padding.

  Args:
    case: gives the new tokens.

  Returns:
    The sampling config.
  """
  return SamplingConfig(
    max_new_tokens=case.new_tokens, pad_id=PAD_ID, stop_ids=()
  )


def draw_prompts(case: Case, vocab_size: int) -> Prompts:
  """Draws prompts of random words, without padding.

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


def draw_rollout(case: Case, vocab_size: int) -> Rollout:
  """Draws responses of random words and separators, all of the full length.

  Args:
    case: B responses of C tokens, to the prompts of `draw_prompts`.
    vocab_size: V.

  Returns:
    [B, C] responses with the log-probs of a uniform policy, on the device.
  """
  rng = np.random.default_rng(1)
  shape = case.rows, case.new_tokens
  tokens = rng.integers(FIRST_WORD, vocab_size, shape, dtype=np.int32)
  tokens[rng.random(shape) < 1 / STEP_TOKENS] = SEPARATOR_ID
  tokens[:, -1] = EOS_ID
  prompts = jax.device_get(draw_prompts(case, vocab_size))
  logp = np.full(shape, -np.log(vocab_size), np.float32)
  return jax.device_put(
    Rollout(
      prompt_tokens=np.repeat(prompts.tokens, case.samples, axis=0),
      prompt_mask=np.repeat(prompts.mask, case.samples, axis=0),
      tokens=tokens,
      completion_mask=np.ones(shape, bool),
      sampled_logp=logp,
      full_logp=logp,
      truncated=np.zeros(case.rows, bool),
    )
  )


def draw_unequal_rollout(case: Case, vocab_size: int) -> Rollout:
  """Cuts the texts of `draw_rollout` to lengths that differ.

  Args:
    case: B responses of at most C tokens, to prompts of at most L.
    vocab_size: V.

  Returns:
    [B, C] responses of 8 to 78 % of C, to left-padded prompts of a quarter of
    L or more, on the device.
  """
  rollout = jax.device_get(draw_rollout(case, vocab_size))
  rng, C, L = np.random.default_rng(5), case.new_tokens, case.prompt_tokens
  shortest, longest = int(SHORTEST_RESPONSE * C), int(LONGEST_RESPONSE * C)
  lengths = rng.integers(max(1, shortest), longest + 1, (case.rows, 1))
  mask = np.arange(C) < lengths
  least = max(1, int(SHORTEST_PROMPT * L))
  padding = L - rng.integers(least, L + 1, case.prompts)
  padding = np.repeat(padding, case.samples)[:, None]
  prompt_mask = np.arange(L) >= padding
  logp = np.where(mask, rollout.sampled_logp, 0)
  return jax.device_put(
    rollout.replace(
      prompt_tokens=np.where(prompt_mask, rollout.prompt_tokens, PAD_ID),
      prompt_mask=prompt_mask,
      tokens=np.where(mask, rollout.tokens, PAD_ID),
      completion_mask=mask,
      sampled_logp=logp,
      full_logp=logp,
    )
  )


def draw_scored_batch(rollout: Rollout, table: SeparatorTable) -> ScoredBatch:
  """Draws the step rewards and outcomes of responses at random.

  Args:
    rollout: [B, C] responses.
    table: which ids end a step.

  Returns:
    The responses with step rewards, the rollout's log-probs and an outcome
    each, on the device.
  """
  rng = np.random.default_rng(2)
  mask, logp = rollout.completion_mask, rollout.sampled_logp
  split = jax.jit(steps.split_steps, static_argnames="max_steps")
  boundaries = split(rollout.tokens, mask, table, max_steps=MAX_STEPS)
  rewards = rng.uniform(-1, 1, boundaries.mask.shape).astype(np.float32)
  rows = len(rollout.tokens)
  correct = rng.integers(0, 2, rows).astype(np.float32)
  scores = Scores(boundaries, rewards, logp, logp)
  return jax.device_put(
    ScoredBatch(rollout, scores, correct, np.ones(rows, bool))
  )


def draw_labels(case: Case) -> np.ndarray:
  """Draws labels of steps at random.

  Args:
    case: B rows.

  Returns:
    [B, S] int32, 1 for a good step, 0 for a bad one.
  """
  shape = case.rows, MAX_STEPS
  return np.random.default_rng(3).integers(0, 2, shape, dtype=np.int32)
