"""Records that cross module boundaries, and the legend of axes.

Every array of the library is documented with these letters:

* P prompts, G samples per prompt, B = P G rows; samples of one prompt are
  contiguous, so row b belongs to prompt b // G;
* L prompt tokens, C completion tokens, T = L + C tokens of a text; for the
  inputs of the PRM, T is defined in `PRMInputs`;
* S steps of a completion;
* R rows in memory at a time: packed rows, or the engine's slots; W tokens of
  a packed row;
* V vocabulary, D width, N query heads, K key and value heads, Q = N / K query
  heads of a key head, H head dimension, F width of the MLP;
* M cache length: entries of keys and values that a query attends to.

A `*_mask` is bool and True keeps. A `*_logp` is a natural-log probability in
nats. A *reward* belongs to one event, a *return* is cumulated, an *advantage*
is what remains after the baseline.

Every record is a frozen pytree: change one with `record.replace(field=...)`.
"""

from flax import struct
from jax import Array


@struct.dataclass
class Prompts:
  """A batch of tokenised prompts.

  Attributes:
    tokens: [P, L] int32, left-padded prompt ids.
    mask: [P, L] bool, True on prompt tokens, False on the padding.
  """

  tokens: Array
  mask: Array


@struct.dataclass
class Rollout:
  """Sampled completions, one row per sample.

  Attributes:
    prompt_tokens: [B, L] int32, left-padded prompt ids.
    prompt_mask: [B, L] bool, True on prompt tokens.
    tokens: [B, C] int32, completion ids, the pad id where masked.
    completion_mask: [B, C] bool, True on generated tokens; EOS is inside.
    sampled_logp: [B, C] float32, nats, log-probability under the
      distribution that was actually sampled; 0 where masked.
    full_logp: [B, C] float32, nats, log-probability under the same
      distribution before top-k, top-p and min-p; 0 where masked.
    truncated: [B] bool, True where the length limit cut the response.
  """

  prompt_tokens: Array
  prompt_mask: Array
  tokens: Array
  completion_mask: Array
  sampled_logp: Array
  full_logp: Array
  truncated: Array


@struct.dataclass
class SeparatorTable:
  r"""Token ids that end a step, as arrays that the host builds.

  Attributes:
    ends_step: [V] bool, True where the text of the id ends with the step
      separator. False for EOS and padding, which are named below.
    half: [V] bool, True where the text of the id is half a separator ("\n"),
      for a tokenizer that writes separators as two ids; else all False.
    stem: [V] int32, for an id that merges content with a separator, the id
      of the content without the separator and white space before it (".\n\n"
      and ".\n\n\n\n" -> "."). If no single id has the content, the one that
      merges it with "\n\n", or the id itself; read only where has_stem.
    has_stem: [V] bool, True where the id merges content and separator, which
      is where `stem` is valid.
    score_id: [] int32, the id of the token at which the PRM scores a step.
    eos_ids: [N] int32, the ids that end a response.
    pad_id: [] int32, the padding id, which may be one of eos_ids: masks tell
      padding from tokens.
    blank: [V] bool, True where the text of the id is white space or nothing,
      which makes no step's content; read only to find empty steps. None if no
      id is of this kind except separators, halves and EOS.
  """

  ends_step: Array
  half: Array
  stem: Array
  has_stem: Array
  score_id: Array
  eos_ids: Array
  pad_id: Array
  blank: Array | None = None


@struct.dataclass
class StepBoundaries:
  """Step boundaries of completions.

  Attributes:
    index: [B, C] int32, 0..S-1, the step a token belongs to; 0 where the
      completion mask is False.
    end_mask: [B, C] bool, True on the last token of each step.
    end_position: [B, S] int32, 0..C-1, position of that token; 0 where the
      step does not exist.
    mask: [B, S] bool, True where the step exists; always a prefix.
    empty: [B, S] bool, True where an existing step holds no content: only
      white space, separators and EOS.
    overflow: [B] int32, how many steps were merged into the last one because
      the response had more than S.
  """

  index: Array
  end_mask: Array
  end_position: Array
  mask: Array
  empty: Array
  overflow: Array


@struct.dataclass
class PRMInputs:
  """Inputs of the process reward model, and the positions of its scores.

  T is L + C if score tokens replace tokens, else L + C + S.

  Attributes:
    tokens: [B, T] int32, prompt (left-padded) then steps (right-padded); if
      every step was encoded by itself, all padding is on the right.
    mask: [B, T] bool, True on tokens to attend to.
    score_position: [B, S] int32, 0..T-1, where step s is scored; 0 where
      score_mask is False.
    score_mask: [B, S] bool, True where step s has a score.
    unread_mask: [B, S] bool, True where step s exists but did not fit into T
      tokens, so that it has no score; None if every step fits.
  """

  tokens: Array
  mask: Array
  score_position: Array
  score_mask: Array
  unread_mask: Array | None = None


@struct.dataclass
class Experience:
  """Everything the update needs from a batch, except new log-probs.

  Attributes:
    completion_mask: [B, C] bool, True on generated tokens; EOS is inside.
    steps: StepBoundaries, boundaries of the same completions.
    step_rewards: [B, S] float32, -1..1, process reward of each step.
    correct: [B] float32, 0 or 1, the outcome reward; any finite value where
      has_answer is False.
    has_answer: [B] bool, True where the prompt has a checkable answer.
    old_logp: [B, C] float32, nats, log-probs of the policy that sampled; None
      takes those of the update itself, where the ratio is then exactly 1.
    ref_logp: [B, C] float32, nats, log-probs of the reference policy; None if
      they are unknown, which no KL penalty allows.
    terminal_mask: [B, C] bool, True on separators that end a step and on
      EOS: the tokens the reference's main branch gives no advantage.
    sampled_logp: [B, C] float32, nats, log-probs under the distribution that
      was sampled; read if the loss has importance weights. None if unknown.
    truncated: [B] bool, True where the length limit cut the response; read by
      `CreditConfig.zero_truncated_end`. None if unknown.
    values: [B, C] float32, in units of reward, a critic's value of the state
      before each token; read by the baseline "gae". None without a critic.
  """

  completion_mask: Array
  steps: StepBoundaries
  step_rewards: Array
  correct: Array
  has_answer: Array
  old_logp: Array | None
  ref_logp: Array | None
  terminal_mask: Array
  sampled_logp: Array | None = None
  truncated: Array | None = None
  values: Array | None = None


@struct.dataclass
class PackedExperience:
  """The fields of an experience that the loss reads, in packed rows.

  Attributes:
    completion_mask: [R, W] bool, True on generated tokens.
    old_logp: [R, W] float32, nats, as in `Experience`.
    ref_logp: [R, W] float32, nats, as in `Experience`.
    response_tokens: [R, W] int32, tokens of the response that a token belongs
      to; 0 where masked.
    sampled_logp: [R, W] float32, nats, as in `Experience`; None if the loss
      has no importance weights.
  """

  completion_mask: Array
  old_logp: Array | None
  ref_logp: Array | None
  response_tokens: Array
  sampled_logp: Array | None = None


@struct.dataclass
class SharedPrompts:
  """How completions that share their prompt lie in packed rows.

  Attributes:
    branches: [R, W] int32, 0 on prompts, from 1 on the completion of its
      prompt that a token belongs to.
    before: [R, W] int32, 0..W-1, the column of the token that each token of a
      completion follows; for its first token the last column of the prompt.
  """

  branches: Array
  before: Array


@struct.dataclass
class MetricGroups:
  """Scalar metrics, grouped by how micro-batches are combined.

  Over several updates of a rollout sums are averaged instead.

  Attributes:
    sums: metrics that add up over micro-batches, because each is divided by a
      count of the whole batch.
    maxima: metrics whose maximum over micro-batches is reported.
    minima: metrics whose minimum over micro-batches is reported.
  """

  sums: dict[str, Array]
  maxima: dict[str, Array] = struct.field(default_factory=dict)
  minima: dict[str, Array] = struct.field(default_factory=dict)

  def to_dict(self) -> dict[str, Array]:
    """All metrics by name."""
    return {**self.sums, **self.maxima, **self.minima}
