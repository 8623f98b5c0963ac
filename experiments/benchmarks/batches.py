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


def separator_table(case: Case) -> SeparatorTable:
  """Makes a vocabulary in which one id separates steps and merges with none."""
  ids = np.arange(case.vocab_size, dtype=np.int32)
  none = np.zeros(case.vocab_size, bool)
  return SeparatorTable(
    ends_step=ids == SEPARATOR_ID,
    half=none,
    stem=ids,
    has_stem=none,
    score_id=np.int32(SCORE_ID),
    eos_ids=np.array([EOS_ID], np.int32),
    pad_id=np.int32(PAD_ID),
  )


def plain_sampler(new_tokens: int, temperature: float = 1.0) -> SamplingConfig:
  """Configures sampling to the full length, from all ids but padding."""
  return SamplingConfig(
    max_new_tokens=new_tokens,
    pad_id=PAD_ID,
    stop_ids=(),
    temperature=temperature,
  )


def sampler(case: Case, uniform: bool) -> SamplingConfig:
  """Configures sampling to the full length, or with stops at random.

  Random weights give a nearly uniform distribution over the ids that are not
  banned, and so do any weights at a high temperature. Responses end early
  because all ids but C / 2 are banned, one of which ends a response: lengths
  are geometric, cut at C. The model computes the logits of all ids either way.
  `uniform` tells that the weights are random.
  """
  if case.stops != "early":
    return plain_sampler(case.new_tokens)
  first_banned = EOS_ID + max(2, case.new_tokens // 2)
  return SamplingConfig(
    max_new_tokens=case.new_tokens,
    pad_id=PAD_ID,
    stop_ids=(EOS_ID,),
    banned_ids=tuple(range(first_banned, case.vocab_size)),
    temperature=1.0 if uniform else UNIFORM_TEMPERATURE,
  )


def draw_prompts(case: Case) -> Prompts:
  """Draws prompts [P, L] of random words, without padding, on the device."""
  rng = np.random.default_rng(0)
  shape = case.prompts, case.prompt_tokens
  tokens = rng.integers(FIRST_WORD, case.vocab_size, shape, dtype=np.int32)
  return jax.device_put(Prompts(tokens, np.ones(shape, bool)))


def draw_rollout(case: Case) -> Rollout:
  """Draws responses [B, C] to the prompts of `draw_prompts`, on the device.

  They are random words and separators, have the full length, and the log-probs
  of a uniform policy.
  """
  rng = np.random.default_rng(1)
  shape = case.rows, case.new_tokens
  tokens = rng.integers(FIRST_WORD, case.vocab_size, shape, dtype=np.int32)
  tokens[rng.random(shape) < 1 / STEP_TOKENS] = SEPARATOR_ID
  tokens[:, -1] = EOS_ID
  prompts = jax.device_get(draw_prompts(case))
  logp = np.full(shape, -np.log(case.vocab_size), np.float32)
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


def draw_unequal_rollout(case: Case) -> Rollout:
  """Cuts the texts of `draw_rollout` to lengths that differ.

  Responses have 8 to 78 % of C, left-padded prompts a quarter of L or more.
  """
  rollout = jax.device_get(draw_rollout(case))
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


def draw_scored_batch(case: Case, rollout: Rollout) -> ScoredBatch:
  """Draws step rewards and outcomes of responses [B, C] at random."""
  rng = np.random.default_rng(2)
  mask, logp = rollout.completion_mask, rollout.sampled_logp
  split = jax.jit(steps.split_steps, static_argnames="max_steps")
  boundaries = split(
    rollout.tokens, mask, separator_table(case), max_steps=MAX_STEPS
  )
  rewards = rng.uniform(-1, 1, boundaries.mask.shape).astype(np.float32)
  correct = rng.integers(0, 2, case.rows).astype(np.float32)
  scores = Scores(boundaries, rewards, logp, logp)
  return jax.device_put(
    ScoredBatch(rollout, scores, correct, np.ones(case.rows, bool))
  )


def draw_labels(case: Case) -> np.ndarray:
  """Draws labels [B, S] of steps at random: 1 for a good step, 0 for a bad."""
  shape = case.rows, MAX_STEPS
  return np.random.default_rng(3).integers(0, 2, shape, dtype=np.int32)
