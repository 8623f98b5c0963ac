"""The repetition score agrees with its definition and is fast."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from pure_jax.host.evaluation.repetition import repetition_score


def naive_repetition(tokens):
  """The definition, with suffixes as lists and prefixes counted in a loop."""
  n = len(tokens)
  suffixes = sorted(list(tokens[i:]) for i in range(n))
  total = 0
  for left, right in itertools.pairwise(suffixes):
    for a, b in zip(left, right, strict=False):
      if a != b:
        break
      total += 1
  return 2 * total / (n * (n + 1)) if n else 0.0


def test_repetition_by_hand():
  """ "abab": suffixes ab, abab, b, bab share 2, 0, 1; 3 x 2 / 20 = 0.3."""
  assert repetition_score([1, 2, 1, 2]) == pytest.approx(0.3, abs=1e-12)
  for n in (2, 3, 100):
    same = repetition_score([7] * n)
    assert same == pytest.approx((n - 1) / (n + 1), abs=1e-12)
    assert repetition_score(range(n)) == 0
  assert repetition_score([]) == repetition_score([3]) == 0


def test_repetition_against_the_definition():
  rng = np.random.default_rng(0)
  for _ in range(300):
    letters = rng.integers(1, 6)
    tokens = rng.integers(-3, letters, rng.integers(0, 40)).astype(np.int32)
    expected = naive_repetition(tokens.tolist())
    assert repetition_score(tokens) == pytest.approx(expected, abs=1e-12)


def test_characters_are_the_unit_of_a_text():
  """The paper's unit: "hahahaha" has the sum 6+5+4+3+2+1 = 21 of 36."""
  assert repetition_score("hahahaha") == pytest.approx(21 / 36, abs=1e-12)
  # As one id of a vocabulary the same text does not repeat anything.
  assert repetition_score([17]) == 0
  assert repetition_score("") == repetition_score("a") == 0
  # Letters outside the first 65,536 code points are one letter each.
  assert repetition_score("😀" * 4) == pytest.approx(3 / 5, abs=1e-12)
  for text in ("banana", "So x = 5.\n\nSo x = 5.\n\nSo x = 5.", "abcabcab"):
    expected = naive_repetition(text)
    assert repetition_score(text) == pytest.approx(expected, abs=1e-12)
    codes = np.asarray([ord(letter) for letter in text])
    assert repetition_score(codes) == repetition_score(text)


@pytest.mark.parametrize("letters", [1, 2, 3, 20])
def test_repetition_counts_different_substrings(letters):
  """A second definition: 1 - different substrings / all substrings."""
  rng = np.random.default_rng(letters)
  for n in (2, 5, 17, 60):
    text = "".join(chr(97 + c) for c in rng.integers(0, letters, n))
    different = {text[i:j] for i in range(n) for j in range(i + 1, n + 1)}
    expected = 1 - len(different) / (n * (n + 1) / 2)
    assert repetition_score(text) == pytest.approx(expected, abs=1e-12)


def test_repetition_of_a_loop_is_high_and_of_prose_is_low():
  """0.2 tells a response that loops from one that uses words again."""
  rng = np.random.default_rng(1)
  prose = rng.zipf(1.3, 300) % 80
  loop = np.concatenate([prose[:60], np.tile(prose[:10], 24)])
  assert repetition_score(prose) < 0.05
  assert repetition_score(loop) > 0.2


def test_repetition_of_a_long_response_is_cheap():
  """An n x n table for n = 8000 would take 64 MB at one byte an entry."""
  tokens = np.tile(np.arange(40), 200)
  tracemalloc.start()
  start = time.perf_counter()
  score = repetition_score(tokens)
  seconds = time.perf_counter() - start
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  # Suffix i shares 8000 - 40 - i tokens with the one a period before it.
  n, period = 8000, 40
  total = (n - period) * (n - period + 1) / 2
  assert score == pytest.approx(total * 2 / (n * (n + 1)), abs=1e-12)
  assert peak < 16e6
  assert seconds < 5


@pytest.mark.parametrize("unit", [1, 2, 997])
def test_repetition_of_a_long_text_is_cheap(unit):
  """30,000 characters: a response of 8,192 tokens."""
  n = 30_000
  period = "".join(chr(0x4E00 + i) for i in range(unit))
  text = (period * n)[:n]
  start = time.perf_counter()
  score = repetition_score(text)
  assert time.perf_counter() - start < 2
  expected = (n - unit) * (n - unit + 1) / (n * (n + 1))
  assert score == pytest.approx(expected, abs=1e-12)


def test_repetition_of_a_batch_is_fast():
  """A batch of 256 x 100 tokens is scored every iteration."""
  rows = np.random.default_rng(0).integers(0, 8, (256, 100))
  start = time.perf_counter()
  for row in rows:
    repetition_score(row)
  assert time.perf_counter() - start < 2
