r"""Steps of a response as arrays: boundaries, PRM inputs, score reading.

A separator ("\n\n") ends a step. It is a token whose text ends with "\n\n". If
a tokenizer writes it as two tokens ("\n", "\n"), the second of them ends the
step. The last step ends at EOS, or at the last generated token if the length
limit cut the response. Everything here is device code with static shapes. The
host turns the strings of a tokenizer into a `SeparatorTable`.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pure_jax import masked
from pure_jax.types import PRMInputs, SeparatorTable, StepBoundaries


def _separator_ends(tokens, completion_mask, table):
  """Marks the tokens that complete a separator, [B, C] bool.

  In a run of halves only the second token counts: several blank lines are one
  separator, and the remaining halves belong to the next step.
  """
  half = jnp.asarray(table.half)[tokens] & completion_mask
  nothing = jnp.zeros_like(half[:, :1])
  before = jnp.concatenate([nothing, half[:, :-1]], axis=1)
  two_before = jnp.concatenate([nothing, before[:, :-1]], axis=1)
  whole = jnp.asarray(table.ends_step)[tokens] & completion_mask
  return whole | (half & before & ~two_before)


def split_steps(
  tokens: Array,
  completion_mask: Array,
  table: SeparatorTable,
  *,
  max_steps: int,
) -> StepBoundaries:
  """Finds where each step of each completion ends.

  If a response has more than max_steps steps, everything after the first
  max_steps - 1 is merged into one last step, and `overflow` counts the merged
  steps. A row without a token has no step.

  >>> import numpy as np
  >>> ends = np.arange(9) == 8
  >>> none = np.zeros(9, bool)
  >>> table = SeparatorTable(ends, none, None, none, 2, [1], 0)
  >>> tokens, mask = np.array([[5, 8, 6, 7, 1]]), np.ones((1, 5), bool)
  >>> split_steps(tokens, mask, table, max_steps=4).index.tolist()
  [[0, 0, 1, 1, 1]]

  Args:
    tokens: [B, C] int32, completion ids.
    completion_mask: [B, C] bool, True on generated tokens, EOS included.
    table: SeparatorTable, which ids end a step.
    max_steps: S, at least 1.

  Returns:
    StepBoundaries: integers and bools, which carry no gradient.

  Raises:
    ValueError: max_steps is below 1.
  """
  if max_steps < 1:
    raise ValueError(f"max_steps must be at least 1, not {max_steps}.")
  separator = _separator_ends(tokens, completion_mask, table)
  # A token is the last of its row when no kept token follows it.
  following = jnp.cumsum(completion_mask[:, ::-1], axis=1)[:, ::-1]
  last = completion_mask & (following == 1)
  ends = completion_mask & (separator | _is_eos(tokens, table)) | last

  # Exclusive count: how many steps ended before this token.
  raw_index = jnp.cumsum(ends, axis=1) - ends
  num_steps = jnp.sum(ends, axis=1)
  index = jnp.where(completion_mask, jnp.minimum(raw_index, max_steps - 1), 0)
  end_mask = (ends & (raw_index < max_steps - 1)) | last
  columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)

  def row(index, end_mask, content):
    per_step = jnp.zeros((max_steps,), jnp.int32)
    position = per_step.at[index].max(jnp.where(end_mask, columns, 0))
    has_content = per_step.at[index].max(content.astype(jnp.int32)) > 0
    return position, has_content

  end_position, has_content = jax.vmap(row)(
    index, end_mask, completion_mask & _is_content(tokens, table)
  )
  exists = jnp.arange(max_steps)[None, :] < num_steps[:, None]
  return StepBoundaries(
    index=index.astype(jnp.int32),
    end_mask=end_mask,
    end_position=jnp.where(exists, end_position, 0),
    mask=exists,
    empty=exists & ~has_content,
    overflow=jnp.maximum(num_steps - max_steps, 0).astype(jnp.int32),
  )


def _is_eos(tokens: Array, table: SeparatorTable) -> Array:
  """Marks every id that ends a response; padding may be one of them."""
  eos_ids = jnp.asarray(table.eos_ids, jnp.int32)
  return jnp.any(tokens[..., None] == eos_ids[None, None, :], axis=-1)


def _is_bare(tokens: Array, table: SeparatorTable) -> Array:
  """Marks tokens without content: bare separators, halves, EOS."""
  separator = jnp.asarray(table.ends_step)[tokens]
  whole = separator & ~jnp.asarray(table.has_stem)[tokens]
  return whole | jnp.asarray(table.half)[tokens] | _is_eos(tokens, table)


def _is_content(tokens: Array, table: SeparatorTable) -> Array:
  """Marks tokens that make a step more than empty."""
  bare = _is_bare(tokens, table)
  if table.blank is None:
    return ~bare
  return ~(bare | jnp.asarray(table.blank)[tokens])


def terminal_mask(
  tokens: Array, completion_mask: Array, table: SeparatorTable
) -> Array:
  """Marks separators and EOS, the tokens that end a step by choice.

  The reference's main branch gives these tokens no advantage, so stopping
  gets no gradient. `CreditConfig.zero_terminal_advantage` does the same. The
  last token of a truncated response is an ordinary token, so this mask is
  False there; `CreditConfig.zero_truncated_end` is about that token.

  Args:
    tokens: [B, C] int32, completion ids.
    completion_mask: [B, C] bool, True on generated tokens, EOS included.
    table: SeparatorTable, which ids end a step.

  Returns:
    [B, C] bool, all False for an empty row.
  """
  ends = _separator_ends(tokens, completion_mask, table)
  return ends | (completion_mask & _is_eos(tokens, table))


def values_at_step_ends(step_values: Array, steps: StepBoundaries) -> Array:
  """Puts each step's value on the token that ends the step.

  Args:
    step_values: [B, S] float, one value per step.
    steps: StepBoundaries of the same rows.

  Returns:
    [B, C] in the dtype of step_values, 0 on all other tokens. The function is
    linear; gradients flow to the values of existing steps only.
  """
  values = jnp.take_along_axis(step_values, steps.index, axis=-1)
  return masked.zero_masked(values, steps.end_mask)


def values_per_token(step_values: Array, steps: StepBoundaries) -> Array:
  """Gives each token the value of its step.

  Args:
    step_values: [B, S] float, one value per step.
    steps: StepBoundaries of the same rows.

  Returns:
    [B, C] in the dtype of step_values, 0 after the last step's end.
  """
  values = jnp.take_along_axis(step_values, steps.index, axis=-1)
  ends_to_come = jnp.cumsum(steps.end_mask[:, ::-1], axis=1)[:, ::-1]
  return masked.zero_masked(values, ends_to_come > 0)


def tokens_per_step(steps: StepBoundaries, completion_mask: Array) -> Array:
  """Counts the tokens of each step, its end included.

  Args:
    steps: StepBoundaries of the rows.
    completion_mask: [B, C] bool, True on generated tokens.

  Returns:
    [B, S] int32, 0 where the step does not exist.
  """

  def row(index, mask):
    per_step = jnp.zeros((steps.mask.shape[1],), jnp.int32)
    return per_step.at[index].add(mask.astype(jnp.int32))

  return jax.vmap(row)(steps.index, completion_mask)


def replace_empty_steps(
  step_rewards: Array, steps: StepBoundaries, empty_step_reward: float
) -> Array:
  """Overwrites the score of steps without content, a guard against hacking.

  A PRM scores an empty step at a bare score token, and the score may be very
  high. The other guard, `CreditConfig.exclude_empty_steps`, leaves such steps
  out of credit.

  Args:
    step_rewards: [B, S] float, -1..1.
    steps: StepBoundaries of the same rows.
    empty_step_reward: -1..1, the reward of an empty step.

  Returns:
    [B, S] like step_rewards. No gradient flows to the replaced rewards.
  """
  return jnp.where(steps.empty, empty_step_reward, step_rewards)


def build_prm_inputs(
  prompt_tokens: Array,
  prompt_mask: Array,
  tokens: Array,
  completion_mask: Array,
  steps: StepBoundaries,
  table: SeparatorTable,
  *,
  separator: str = "insert",
  read_end: bool = False,
) -> PRMInputs:
  r"""Lays out the prompt and the steps, each followed by a score token.

  With "insert" (the default) the PRM reads the content of each step, then
  score_id. A bare separator (one token or two) or EOS is replaced by score_id.
  A merged separator (".\n\n") is replaced by its stem and score_id, so
  punctuation is kept. The last token of a truncated response is kept, and
  score_id follows it. With `read_end` EOS is kept as well. With "replace" (the
  reference) score_id overwrites the id at each step end. Lengths do not change,
  but merged ids and the last token of a truncated response lose their content.

  If several steps were merged into the last one (overflow), the separators
  inside it stay. A row without a step has its prompt and no score.

  Args:
    prompt_tokens: [B, L] int32, left-padded.
    prompt_mask: [B, L] bool, True on prompt tokens.
    tokens: [B, C] int32, completion ids.
    completion_mask: [B, C] bool, True on generated tokens, EOS included.
    steps: StepBoundaries from `split_steps` on the same tokens.
    table: SeparatorTable that `split_steps` used.
    separator: "insert" or "replace". The inputs of "each" need the texts of
      the steps, so the host makes them.
    read_end: True keeps EOS before the last score token; "insert" only.

  Returns:
    PRMInputs of T = L + C + S ("insert") or L + C ("replace") tokens.

  Raises:
    ValueError: separator is neither of the two.
  """
  if separator == "insert":
    response, response_mask, score_position = _insert_scores(
      tokens, completion_mask, steps, table, read_end
    )
  elif separator == "replace":
    response = jnp.where(steps.end_mask, table.score_id, tokens)
    response = jnp.where(completion_mask, response, table.pad_id)
    response_mask, score_position = completion_mask, steps.end_position
  else:
    raise ValueError(
      f"separator must be 'insert' or 'replace', not {separator!r}."
    )
  offset = prompt_tokens.shape[1]
  return PRMInputs(
    tokens=jnp.concatenate([prompt_tokens, response], 1).astype(jnp.int32),
    mask=jnp.concatenate([prompt_mask, response_mask], axis=1),
    score_position=jnp.where(steps.mask, score_position + offset, 0),
    score_mask=steps.mask,
  )


def _insert_scores(
  tokens: Array,
  completion_mask: Array,
  steps: StepBoundaries,
  table: SeparatorTable,
  read_end: bool,
) -> tuple[Array, Array, Array]:
  """Returns (ids, mask, score position) of responses with inserted scores."""
  width = tokens.shape[1] + steps.mask.shape[1]
  separator = jnp.asarray(table.ends_step)[tokens]
  has_stem = separator & jnp.asarray(table.has_stem)[tokens]
  # At a step end the score token replaces a bare separator (both halves, if
  # there are two) and follows any other token. Elsewhere tokens stay.
  replaced = steps.end_mask & _is_bare(tokens, table)
  if read_end:
    replaced &= ~_is_eos(tokens, table)
  half = jnp.asarray(table.half)[tokens]
  second = jnp.concatenate(
    [(replaced & half)[:, 1:], jnp.zeros_like(half[:, :1])], axis=1
  )
  content = completion_mask & ~replaced & ~(half & second)
  content_id = jnp.where(
    steps.end_mask & has_stem, jnp.asarray(table.stem)[tokens], tokens
  )
  emitted = content.astype(jnp.int32) + steps.end_mask.astype(jnp.int32)
  start = jnp.cumsum(emitted, axis=1) - emitted
  score_at = start + content

  def row(content, content_id, start, end_mask, score_at, total):
    ids = jnp.full((width,), table.pad_id, jnp.int32)
    # Position `width` is outside the row: mode="drop" ignores such writes.
    ids = ids.at[jnp.where(content, start, width)].set(content_id, mode="drop")
    score_at = jnp.where(end_mask, score_at, width)
    ids = ids.at[score_at].set(table.score_id, mode="drop")
    return ids, jnp.arange(width) < total

  ids, mask = jax.vmap(row)(
    content, content_id, start, steps.end_mask, score_at, emitted.sum(1)
  )
  position = jnp.take_along_axis(score_at, steps.end_position, axis=1)
  return ids, mask, position


def read_step_rewards(logits: Array, inputs: PRMInputs) -> Array:
  """Reads r = p(good) - p(bad) at each score token.

  Class 1 is good, class 0 bad; r = tanh((logit_good - logit_bad) / 2). A step
  that did not fit into the inputs gets -1, the worst reward: a policy must not
  earn anything with a step that the PRM could not read.

  Args:
    logits: [B, T, 2] float32, two classes at every position.
    inputs: PRMInputs the logits were computed from.

  Returns:
    [B, S] in the dtype of logits, -1..1, 0 where there is no step.
    Differentiable; `advantages.pure_advantages` stops the gradient. Logits that
    no step reads may be NaN: their gradient is exactly 0.
  """
  margin = logits[..., 1] - logits[..., 0]
  at_scores = jnp.take_along_axis(margin, inputs.score_position, axis=-1)
  rewards = jnp.tanh(masked.zero_masked(at_scores, inputs.score_mask) / 2)
  if inputs.unread_mask is None:
    return rewards
  return jnp.where(inputs.unread_mask, -jnp.ones_like(rewards), rewards)
