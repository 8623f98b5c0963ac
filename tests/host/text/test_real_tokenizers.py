r"""Separators in real vocabularies, which are not part of the project.

Qwen2.5's vocabulary (package dashscope) has ids such as ".\n\n" and ")\n\n".
SmolLM2's (see `real_models`) writes "\n\n" inside a text as two ids, so that
without half separators no step would end.
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
import real_data
import real_models
import transformers
import trl_rows
from transformers.convert_slow_tokenizer import TikTokenConverter

from pure_jax import steps as device_steps
from pure_jax.host.data.batches import pad_prm_texts
from pure_jax.host.data.formats import gsm8k_steps, prm800k
from pure_jax.host.data.sources import read_rows
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.host.text.tokenization import (
  encode_each_step,
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
def smollm2():
  return HuggingFaceTokenizer(real_models.require(real_models.SMOLLM2))


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
  assert (len(merged), len(without_stem)) == (528, 53)
  # A stem with a line break has the id of the content with one separator.
  breaks = [i for i in merged if qwen.pieces[table.stem[i]].endswith("\n")]
  assert len(breaks) == 53
  assert all(
    qwen.pieces[table.stem[i]] == qwen.pieces[i].rstrip() + "\n\n"
    for i in breaks
  )
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


def conversion_of_trl(path):
  """(prompt, steps, labels) of PRM800K's lines, by TRL's script, written anew.

  Its steps are those of the file, with blank lines. Only rating 1 is good.
  """
  rows = []
  for line in path.read_text().splitlines():
    row = json.loads(line)
    problem, solution = row["question"]["problem"], []
    for step in row["label"]["steps"]:
      chosen, completions = step["chosen_completion"], step["completions"] or []
      for index, completion in enumerate(completions):
        candidate = completion["text"], completion["rating"] == 1
        if index != chosen:
          rows.append((problem, [*solution, candidate]))
        else:
          following = candidate
      if chosen is None and step["human_completion"] is None:
        break
      if chosen is None:
        following = step["human_completion"]["text"], True
      solution.append(following)
    rows.append((problem, solution))
  return [
    (problem, [s for s, _ in solution], [label for _, label in solution])
    for problem, solution in rows
  ]


def records(path, parse, count=None):
  """(problem, steps, labels) of the first records of a file."""
  rows = [r for i, raw in enumerate(read_rows(path)) for r in parse(raw.row, i)]
  return [(r.problem, r.steps, r.labels) for r in rows[:count]]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("data", ["conversion", "prm800k", "gsm8k"])
def test_steps_encoded_one_by_one_have_trls_ids(qwen, data, own):
  """Rows that the other modes give other ids, see `tokenization`."""
  tokenize_row = (
    trl_rows.tokenize_row if own else trl_rows.installed_tokenize_row()
  )
  if data == "gsm8k":
    path = real_data.require("gsm8k/example_model_solutions.jsonl")
    rows = records(path, gsm8k_steps.make_format().parse, 600)
    assert len(rows) == 600
  else:
    path = real_data.require("prm800k/rows.jsonl")
    rows = conversion_of_trl(path)
    assert len(rows) == 135 and sum(len(steps) for _, steps, _ in rows) > 1687
    if data == "prm800k":
      rows = records(path, prm800k.make_format().parse)
      assert len(rows) == 127
  texts = [
    encode_each_step(qwen, qwen.encode(problem), steps)
    for problem, steps, _ in rows
  ]
  columns = max(text.num_tokens for text in texts)
  inputs = pad_prm_texts(texts, columns, 64, qwen.pad_id)
  for row, (problem, steps, labels) in enumerate(rows):
    labels = [label or 0 for label in labels]
    expected = tokenize_row(qwen._inner, problem, steps, labels)
    assert trl_rows.padded_row(inputs, labels, row) == expected


def test_smollm2_writes_separators_as_two_ids(smollm2):
  table = separator_table(smollm2)
  ids = smollm2.encode("Yes.\n\nNo.")
  newline = smollm2.pieces.index("\n")
  assert ids.count(newline) == 2 and not table.ends_step[ids].any()
  assert np.flatnonzero(table.half).tolist() == [newline]
  # At the end of a text the separator is one id, which ends a step too.
  assert table.ends_step[smollm2.encode("Yes.\n\n")[-1]]
  check_round_trip(smollm2)
