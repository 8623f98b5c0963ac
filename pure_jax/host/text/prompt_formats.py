"""Prompt formats: how a problem becomes the text before a response."""

import dataclasses

from pure_jax.host.text.tokenization import SEPARATOR, Tokenizer

BOXED = (
  "Please reason step by step, and put your final answer within \\boxed{}."
)


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """How a problem becomes a prompt.

  Attributes:
    chat: True applies the tokenizer's chat template.
    system: system message of the chat, None for no such message.
    examples: text before the problem.
    suffix: text after the problem.
    prefix: text that every response begins with. It is part of the prompt: it
      is neither sampled nor graded nor cut into steps.
  """

  chat: bool = False
  system: str | None = None
  examples: str = ""
  suffix: str = ""
  prefix: str = ""

  def __post_init__(self):
    """Validates the system message."""
    if self.system is not None and not self.chat:
      raise ValueError("A system message needs chat=True.")

  def text(self, tokenizer: Tokenizer, problem: str) -> str:
    """Formats a problem as the text before the response.

    Args:
      tokenizer: the tokenizer, whose chat template is used if `chat` is True.
      problem: the text of the problem.

    Raises:
      TokenizerError: if `chat` is True and the tokenizer has no chat template.
    """
    text = self.examples + problem + self.suffix
    if not self.chat:
      return text + self.prefix
    messages = [{"role": "user", "content": text}]
    if self.system is not None:
      messages.insert(0, {"role": "system", "content": self.system})
    return tokenizer.apply_chat_template(messages) + self.prefix

  def ids(self, tokenizer: Tokenizer, problem: str) -> list[int]:
    """Encodes the prompt of a problem.

    The ids are those of transformers. Without chat they begin with BOS if the
    tokenizer's ids do (Llama 3), as `tokenizer(text)` gives them. A chat
    template writes BOS itself. The ids of a response, which continue the
    prompt, never begin with BOS.

    Args:
      tokenizer: the tokenizer.
      problem: the text of the problem.

    Raises:
      TokenizerError: as for `text`.
    """
    text = self.text(tokenizer, problem)
    if self.chat:
      return tokenizer.encode(text)
    return tokenizer.encode_prompt(text)


# Two problems of our own, solved as briefly as those of GSM8K.
_EXAMPLES = (
  (
    "A shop sells pens in boxes of 6. Mia buys 4 boxes and gives away 9 pens. "
    "How many pens does she keep?",
    "4 boxes hold 4 * 6 = 24 pens.",
    "Mia keeps 24 - 9 = 15 pens.",
    "\\boxed{15}",
  ),
  (
    "A train ticket costs $8 and children pay half. What do 2 adults and 3 "
    "children pay together?",
    "The adults pay 2 * 8 = 16 dollars.",
    "A child's ticket costs 8 / 2 = 4 dollars.",
    "The children pay 3 * 4 = 12 dollars.",
    "Together they pay 16 + 12 = 28 dollars.",
    "\\boxed{28}",
  ),
)
_QUESTION, _ANSWER = "Question: ", f"{SEPARATOR}Answer:{SEPARATOR}"

# The prompt formats by the names that configs use. To add one, add an entry:
# the settings accept its name, and `files.prompt_format` and
# `prm_prompt_format` choose it for the policy and the PRM.
PROMPT_FORMATS = {
  # The format of the paper's PRM: the first step follows the problem directly.
  "raw": PromptFormat(),
  # For models without a chat template. Qwen's vocabulary merges "?" and the
  # line break, so the PRM of the paper has never seen the end of such a prompt.
  "plain": PromptFormat(suffix="\n"),
  "chat": PromptFormat(chat=True),
  # The format that Qwen2.5-Math is evaluated with.
  "qwen_boxed": PromptFormat(chat=True, system=BOXED),
  # The format that PURE trains and evaluates policies with. In its RL the PRM
  # reads it too, although it was trained on "raw".
  "pure": PromptFormat(
    suffix=(
      f'\n\nPlease reason step by step with steps separated by "{SEPARATOR}", '
      "and put your final answer within \\boxed{}."
    )
  ),
  # Two worked examples make small models answer in a few short steps.
  "two_examples": PromptFormat(
    examples="".join(
      f"{_QUESTION}{problem}{_ANSWER}{SEPARATOR.join(steps)}{2 * SEPARATOR}"
      for problem, *steps in _EXAMPLES
    )
    + _QUESTION,
    suffix=_ANSWER,
  ),
}
