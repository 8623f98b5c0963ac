"""Random batches for tests, built with Python loops and numpy only."""

import jax.numpy as jnp
import numpy as np

from pure_jax.types import Experience, StepBoundaries


def steps_from_ends(ends, lengths, width, max_steps, empty=None):
  """Steps of rows whose step ends are listed; one Python loop per row."""
  rows = len(ends)
  index = np.zeros((rows, width), np.int32)
  end_mask = np.zeros((rows, width), bool)
  position = np.zeros((rows, max_steps), np.int32)
  mask = np.zeros((rows, max_steps), bool)
  for b, row in enumerate(ends):
    start = 0
    for s, end in enumerate(row):
      index[b, start : end + 1] = s
      end_mask[b, end] = True
      position[b, s] = end
      mask[b, s] = True
      start = end + 1
    assert start == lengths[b], "the last step ends at the last token"
  no_step = np.zeros((rows, max_steps), bool)
  return StepBoundaries(
    index=jnp.asarray(index),
    end_mask=jnp.asarray(end_mask),
    end_position=jnp.asarray(position),
    mask=jnp.asarray(mask),
    empty=jnp.asarray(no_step if empty is None else empty),
    overflow=jnp.zeros(rows, jnp.int32),
  )


def random_ends(rng, lengths, max_steps):
  """Random step ends per row; the last token always ends a step."""
  ends = []
  for length in lengths:
    count = int(rng.integers(0, min(max_steps, length))) if length else 0
    inner = rng.choice(length - 1, count, replace=False) if count else []
    ends.append([*sorted(int(i) for i in inner), length - 1] if length else [])
  return ends


def random_experience(
  seed, *, prompts=3, group_size=4, width=9, max_steps=4, lengths=None
):
  """A batch with ragged lengths; returns (Experience, lists it came from)."""
  rng = np.random.default_rng(seed)
  rows = prompts * group_size
  if lengths is None:
    lengths = rng.integers(1, width + 1, rows).tolist()
  ends = random_ends(rng, lengths, max_steps)
  rewards = np.zeros((rows, max_steps), np.float32)
  for b, row in enumerate(ends):
    rewards[b, : len(row)] = rng.uniform(-1, 1, len(row))
  mask = np.arange(width)[None, :] < np.asarray(lengths)[:, None]
  old_logp = np.where(mask, -rng.exponential(1, (rows, width)), 0)
  ref_logp = np.where(mask, old_logp + rng.normal(0, 0.2, mask.shape), 0)
  has_answer = np.repeat(rng.random(prompts) < 0.6, group_size)
  correct = rng.integers(0, 2, rows).astype(np.float32)
  steps = steps_from_ends(ends, lengths, width, max_steps)
  experience = Experience(
    completion_mask=jnp.asarray(mask),
    steps=steps,
    step_rewards=jnp.asarray(rewards),
    correct=jnp.asarray(correct),
    has_answer=jnp.asarray(has_answer),
    old_logp=jnp.asarray(old_logp, jnp.float32),
    ref_logp=jnp.asarray(ref_logp, jnp.float32),
    terminal_mask=steps.end_mask,
    truncated=jnp.zeros(rows, bool),
  )
  return experience, {"lengths": lengths, "ends": ends}


def pad_columns(experience, extra_tokens, extra_steps, fill=0.0):
  """The same batch with more padding; `fill` stands in padded floats."""

  def pad(x, extra, value):
    padded = np.pad(x, ((0, 0), (0, extra)), constant_values=value)
    return jnp.asarray(padded)

  steps = experience.steps
  return experience.replace(
    completion_mask=pad(experience.completion_mask, extra_tokens, False),
    steps=steps.replace(
      index=pad(steps.index, extra_tokens, 0),
      end_mask=pad(steps.end_mask, extra_tokens, False),
      end_position=pad(steps.end_position, extra_steps, 0),
      mask=pad(steps.mask, extra_steps, False),
      empty=pad(steps.empty, extra_steps, False),
    ),
    step_rewards=pad(experience.step_rewards, extra_steps, fill),
    old_logp=pad(experience.old_logp, extra_tokens, fill),
    ref_logp=pad(experience.ref_logp, extra_tokens, fill),
    terminal_mask=pad(experience.terminal_mask, extra_tokens, False),
  )
