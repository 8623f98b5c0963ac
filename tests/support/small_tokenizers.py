"""Small byte-level tokenizers, saved as transformers saves them."""

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

STEPS = ["Half of 48 is 24.", "So 48+24=72", "(see above)", "Answer: 72."]
TEXTS = [
  "\n\n".join(STEPS),
  "Let me think.\n\nLet me check.\n\n",
  "a\nb\n\nc)\n\n\n\nd.\n\n",
] * 20
# Splits a text as Qwen2 does: line breaks belong to the punctuation before
# them.
MERGING = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
TEMPLATE = (
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)


def save_trained(folder, splitting, chat_template=None, **special):
  """Trains a tokenizer on `TEXTS`, and saves it.

  `splitting` is a regular expression; None splits as GPT-2 does.
  """
  inner = tokenizers.Tokenizer(models.BPE())
  inner.pre_tokenizer = _pre_tokenizer(splitting)
  inner.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<end>", "<pad>", "<user>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  inner.train_from_iterator(TEXTS, trainer)
  special = {"additional_special_tokens": ["<user>"]} | special
  return _save(inner, folder, chat_template, special)


def save_vocabulary(folder, vocabulary, merges, chat_template, **special):
  """Saves a tokenizer of a given vocabulary, which splits by `MERGING`."""
  inner = tokenizers.Tokenizer(
    models.BPE({text: i for i, text in enumerate(vocabulary)}, merges)
  )
  inner.pre_tokenizer = _pre_tokenizer(MERGING)
  inner.decoder = decoders.ByteLevel()
  return _save(inner, folder, chat_template, special)


def put_around_texts(folder, template):
  """Lets a saved tokenizer put special tokens around texts, as Llama 3's does.

  `template` has a text as $A: "<user> $A" puts the token <user> before it.
  """
  path = str(folder / "tokenizer.json")
  inner = tokenizers.Tokenizer.from_file(path)
  special = [token for token in template.split() if token != "$A"]
  inner.post_processor = processors.TemplateProcessing(
    single=template,
    special_tokens=[(token, inner.token_to_id(token)) for token in special],
  )
  inner.save(path)
  return folder


def _pre_tokenizer(splitting):
  byte_level = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=splitting is None
  )
  if splitting is None:
    return byte_level
  split = pre_tokenizers.Split(tokenizers.Regex(splitting), "isolated")
  return pre_tokenizers.Sequence([split, byte_level])


def _save(inner, folder, chat_template, special):
  special = {"eos_token": "<end>", "pad_token": "<pad>"} | special
  whole = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, **special
  )
  whole.chat_template = chat_template
  whole.save_pretrained(folder)
  return folder
