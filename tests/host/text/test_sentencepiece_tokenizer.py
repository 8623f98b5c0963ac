r"""The embedded world's tokenizer: texts, the table of separators, its file.

The vocabulary has a merged separator: ".\n\n" is one id.
"""

import jax
import numpy as np
import pytest

from pure_jax import steps as device_steps
from pure_jax.host.data.world import arithmetic
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.data.world.dataset import world_tokenizer
from pure_jax.host.text import sentencepiece_tokenizer as tokenizers
from pure_jax.host.text.sentencepiece_tokenizer import SentencePieceTokenizer
from pure_jax.host.text.tokenization import (
  TokenizerError,
  separator_table,
  split_texts,
)

WORLD = WorldConfig()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "world.model"
  world_tokenizer(WORLD, path)
  return path


@pytest.fixture(scope="module")
def tokenizer(path):
  return SentencePieceTokenizer(path)


def test_texts_come_back_as_they_were(tokenizer):
  for index in range(1_000):
    problem, response = arithmetic.make_example(WORLD, "train", index)
    for text in (f"{problem.text}\n", response, f"{response}\n\n"):
      ids = tokenizer.encode(text)
      assert tokenizer.decode(ids) == text
      assert not set(ids) & {tokenizer.eos_id, *tokenizer.banned_ids}


@pytest.mark.parametrize(
  "text",
  ["", " ", "  think", "think ", "\n", "\n\n\n", "\n\n\n\n", " \n", ".\n\n\n",
   "...", "Let  me", "}{"[:1], "3+5=8 8-2=6", "00123"],
)  # fmt: skip
def test_white_space_and_unusual_texts_come_back_too(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_numbers_and_symbols_are_one_id_each(tokenizer):
  ones = [str(n) for n in range(WORLD.number_max + 1)]
  ones += ["+", "-", "=", "=?", "\\boxed{", "}", "\n", "\n\n", ".\n\n", "."]
  assert all(len(tokenizer.encode(text)) == 1 for text in ones)
  assert len({tokenizer.encode(text)[0] for text in ones}) == len(ones)
  # Numbers on both sides of an operator stay apart.
  assert len(tokenizer.encode("11-5=6")) == 5


def test_control_ids_are_distinct_have_no_text_and_are_banned(tokenizer):
  assert tokenizer.pad_id != tokenizer.eos_id
  assert tokenizer.pad_id in tokenizer.banned_ids
  assert tokenizer.eos_id not in tokenizer.banned_ids
  silent = [i for i in range(tokenizer.vocab_size) if not tokenizer.decode([i])]
  assert sorted(silent) == sorted({tokenizer.eos_id, *tokenizer.banned_ids})
  ids = [*tokenizer.encode("3+5"), tokenizer.eos_id, tokenizer.pad_id]
  assert tokenizer.decode(ids) == "3+5"
  # The name of a control id is not a way to end a response.
  with pytest.raises(TokenizerError, match="cannot write"):
    tokenizer.encode("</s>")


def test_a_text_with_an_unknown_character_raises(tokenizer):
  with pytest.raises(TokenizerError, match="cannot write '3×5'"):
    tokenizer.encode("3×5")


def test_the_separator_table_has_the_bare_and_the_merged_separator(tokenizer):
  table = separator_table(tokenizer)
  (bare,) = tokenizer.encode("\n\n")
  (merged,) = tokenizer.encode(".\n\n")
  (dot,) = tokenizer.encode(".")
  assert np.flatnonzero(table.ends_step).tolist() == sorted([bare, merged])
  # Without the stem, "Let me think." would reach the PRM without its dot.
  assert np.flatnonzero(table.has_stem).tolist() == [merged]
  assert table.stem[merged] == dot
  assert [int(table.score_id)] == tokenizer.encode("\n")
  assert table.eos_ids.tolist() == [tokenizer.eos_id]
  assert table.pad_id == tokenizer.pad_id
  assert table.ends_step.shape == table.stem.shape == (tokenizer.vocab_size,)
  assert tokenizer.encode("Let me think.\n\n")[-1] == merged
  assert tokenizer.encode("3+5=8\n\n")[-1] == bare


def rows_of(tokenizer, *rows, width=12):
  """[B, width] ids and mask of texts; "|" stands for EOS."""
  tokens = np.full((len(rows), width), tokenizer.pad_id)
  mask = np.zeros((len(rows), width), bool)
  for row, parts in enumerate(rows):
    ids = [
      i
      for part in parts
      for i in ([tokenizer.eos_id] if part == "|" else tokenizer.encode(part))
    ]
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
  return tokens, mask


def test_steps_are_cut_by_ids_and_not_by_text(tokenizer):
  tokens, mask = rows_of(
    tokenizer,
    ["3+5=8", "\n\n", "\\boxed{8}", "|"],
    ["Let me think.\n\n", "3", "|"],
    ["3", "\n\n", "\n\n", "|"],  # An empty step, and EOS alone.
    ["3", "\n\n", "4"],  # Cut at the length limit.
    ["3", "\n\n"],  # Cut right after a separator: no further step.
    ["|"],
    [],
    ["3", "\n", "\n", "4", "|"],  # No id ends with the separator.
    [".\n\n", ".", "\n\n", "|"],
    ["3", "|", "4"],
  )
  assert split_texts(tokenizer, tokens, mask) == [
    ["3+5=8", "\\boxed{8}"],
    ["Let me think.", "3"],
    ["3", "", ""],
    ["3", "4"],
    ["3"],
    [""],
    [],
    ["3\n\n4"],
    [".", ".", ""],
    ["3", "4"],
  ]


def test_steps_on_the_host_are_those_on_the_device(tokenizer):
  rng = np.random.default_rng(0)
  ends = np.flatnonzero(separator_table(tokenizer).ends_step)
  allowed = sorted(set(range(tokenizer.vocab_size)) - {*tokenizer.banned_ids})
  tokens = rng.choice(allowed, (500, 16))
  tokens = np.where(rng.random((500, 16)) < 0.4, rng.choice(ends), tokens)
  lengths = rng.integers(0, 17, 500)
  for row, length in enumerate(lengths):  # Nothing follows EOS.
    at = np.flatnonzero(tokens[row] == tokenizer.eos_id)
    lengths[row] = min(length, at[0] + 1) if at.size else length
  mask = np.arange(16) < lengths[:, None]
  texts = split_texts(tokenizer, tokens, mask)
  table = separator_table(tokenizer)
  split_steps = jax.jit(device_steps.split_steps, static_argnames="max_steps")
  cut = split_steps(tokens, mask, table, max_steps=5)
  for row, steps in enumerate(texts):
    count = int(cut.mask[row].sum())
    assert count == min(len(steps), 5)
    assert int(cut.overflow[row]) == len(steps) - count
    empty = np.asarray(cut.empty[row, :count]).tolist()
    joined = [*steps[:4], "".join(steps[4:])][:count]
    assert empty == [not text.strip() for text in joined]
  assert max(map(len, texts)) > 5 and any("" in steps for steps in texts)


def test_training_is_deterministic_and_silent(path, tmp_path, capfd):
  world_tokenizer(WORLD, tmp_path / "again.model")
  assert (tmp_path / "again.model").read_bytes() == path.read_bytes()
  assert [file.name for file in tmp_path.iterdir()] == ["again.model"]
  assert capfd.readouterr() == ("", "")


def test_a_trained_file_is_not_trained_again(path, monkeypatch):
  def fail(**_):
    raise AssertionError("trained again")

  monkeypatch.setattr(
    tokenizers.sentencepiece.SentencePieceTrainer, "train", fail
  )
  before = path.read_bytes()
  world_tokenizer(WORLD, path)
  assert path.read_bytes() == before


def test_a_file_cut_off_anywhere_raises_with_its_name(path, tmp_path):
  # A file cut between two records still loads, with a smaller vocabulary or
  # with another normalisation, which changes texts.
  whole, cut = path.read_bytes(), tmp_path / "cut.model"
  end = len(whole) - 100
  for length in (*range(0, end, 29), *range(end, len(whole))):
    cut.write_bytes(whole[:length])
    with pytest.raises(TokenizerError, match=r"cut\.model.*[Rr]emove it"):
      world_tokenizer(WORLD, cut)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\0" * 4096])
def test_a_file_that_is_no_model_raises_with_its_name(content, tmp_path):
  path = tmp_path / "world.model"
  path.write_bytes(content)
  with pytest.raises(TokenizerError, match=r"world\.model.*[Rr]emove it"):
    world_tokenizer(WORLD, path)


def test_a_tokenizer_of_another_world_raises(path):
  with pytest.raises(TokenizerError, match="another world"):
    world_tokenizer(WorldConfig(max_operations=8), path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(TokenizerError, match=r"absent\.model"):
    SentencePieceTokenizer(tmp_path / "absent.model")


def test_training_that_fails_leaves_nothing_behind(tmp_path):
  def texts():
    yield "3+5=8"
    raise KeyError("no more")

  with pytest.raises((KeyError, RuntimeError)):
    tokenizers.train_tokenizer(texts(), ["3"], tmp_path / "x.model", 40)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  "world",
  [
    WorldConfig(min_operations=4, max_operations=8, operand_max=9),
    WorldConfig(vacuous_rate=0.0),
    WorldConfig(seed=5, min_operations=1, max_operations=1),
  ],
)
def test_every_world_has_a_tokenizer(world, tmp_path):
  tokenizer = world_tokenizer(world, tmp_path / "world.model")
  for index in range(200):
    problem, response = arithmetic.make_example(world, "train", index)
    for text in (f"{problem.text}\n", response, *arithmetic.FILLERS):
      assert tokenizer.decode(tokenizer.encode(text)) == text
