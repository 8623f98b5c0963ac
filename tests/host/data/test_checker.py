"""The checker of the embedded world: labels, grades, kinds of responses."""

import collections
import re

import jax
import numpy as np
import pytest

from pure_jax import steps as device_steps
from pure_jax.host.data.batches import right_pad
from pure_jax.host.data.world import arithmetic, checker
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.data.world.checker import label_rollout
from pure_jax.host.data.world.dataset import world_tokenizer
from pure_jax.host.grading import verify
from pure_jax.host.text.tokenization import separator_table

WORLD = WorldConfig()
THINK = "Let me think."
PROBLEM = arithmetic.parse_problem("3+5-2=?")

# (steps, labels, whether the answer is right, kind) for 3+5-2=?, by hand.
CASES = [
  (["3+5=8", "8-2=6", r"\boxed{6}"], [1, 1, 1], True, "right"),
  (["3+5=8", "8-2=10", r"\boxed{10}"], [1, 0, None], False, "misconception"),
  (["3+5=9", "9-2=7", r"\boxed{7}"], [0, None, None], False, "wrong equation"),
  # True, but not the next equation: the problem subtracts 2.
  (["3+5=8", "8-1=7", r"\boxed{7}"], [1, 0, None], False, "wrong equation"),
  # True and of the problem, but from a value that is not the running one.
  (["3+5=8", "7-2=5", r"\boxed{5}"], [1, 0, None], False, "wrong equation"),
  # The second operation first.
  (["5-2=3", "3+3=6", r"\boxed{6}"], [0, None, None], True, None),
  # True with its sides exchanged, and true beyond the end of the chain.
  (["5+3=8", "8-2=6", r"\boxed{6}"], [0, None, None], True, None),
  (["3+5=8", "8-2=6", "6+1=7", r"\boxed{7}"], [1, 1, 0, None], False, None),
  # A right answer without its derivation is a guess.
  ([r"\boxed{6}"], [0], True, "right without derivation"),
  ([THINK, r"\boxed{6}"], [1, 0], True, "right without derivation"),
  (["3+5=8", r"\boxed{6}"], [1, 0], True, "right without derivation"),
  (["3+5=8", r"\boxed{8}"], [1, 0], False, "skipped steps"),
  ([r"\boxed{5}"], [0], False, "skipped steps"),
  (["3+5=8", "8-2=6", r"\boxed{7}"], [1, 1, 0], False, "wrong box"),
  # Nothing false, nothing done: good, every one of them.
  ([THINK, "3+5=8", "Let me check.", "8-2=6", r"\boxed{6}"], [1] * 5, True,
   "right"),
  ([THINK] * 4, [1] * 4, False, "only fillers"),
  ([THINK, "Let me"], [1, 0], False, "only fillers"),
  ([THINK, "Let us"], [1, 0], False, "no box"),
  (["3+5=8", "3+5=8", "8-2=6", "3+5=8", r"\boxed{6}"], [1] * 5, True, "right"),
  # A repetition of what was never established, or was wrong.
  (["8-2=6", "8-2=6"], [0, None], False, "no box"),
  (["3+5=9", "3+5=9"], [0, None], False, "no box"),
  (["3+5=8", "", "8-2=6", r"\boxed{6}"], [1] * 4, True, "right"),
  (["3+5=8", "8-2=6", "", ""], [1] * 4, False, "no box"),
  # Everything after the box is bad.
  (["3+5=8", "8-2=6", r"\boxed{6}", THINK], [1, 1, 1, 0], True, None),
  (["3+5=8", "8-2=6", r"\boxed{6}", r"\boxed{6}"], [1, 1, 1, 0], True, None),
  (["3+5=8", "8-2=6", r"\boxed{6}", r"\boxed{5}"], [1, 1, 1, 0], False, None),
  (["3+5=8", "8-2=6", r"\boxed{}"], [1, 1, 0], False, "empty box"),
  ([r"\boxed{}"], [0], False, "empty box"),
  (["3+5=8", "8-2=6"], [1, 1], False, "no box"),
  (["3+5=8", "8-2=6", r"\boxed{6"], [1, 1, 0], False, "no box"),
  # Unreadable.
  (["3+5=8 8-2=6", r"\boxed{6}"], [0, None], True, None),
  (["3 + 5 = 8"], [0], False, "no box"),
  (["3+5=08"], [0], False, "no box"),
  (["3+5"], [0], False, "no box"),
  (["so"], [0], False, "no box"),
  (["3+5=8\n"], [0], False, "no box"),
  # Empty.
  ([""], [1], False, "nothing said"),
  (["", ""], [1, 1], False, "nothing said"),
  ([], [], False, "nothing said"),
]  # fmt: skip


@pytest.mark.parametrize("steps, labels, right, kind", CASES)
def test_labels_grades_and_kinds_by_hand(steps, labels, right, kind):
  assert checker.label_steps(PROBLEM, steps) == labels
  assert checker.grade(PROBLEM, "\n\n".join(steps)) is right
  if kind is not None:
    assert checker.classify(PROBLEM, steps) == kind


@pytest.mark.parametrize(
  "response, answer",
  [
    (r"\boxed{6}", "6"),
    (r"\boxed{5} or \boxed{6}", "6"),
    (r"\boxed{6} or \boxed{5}", "5"),
    (r"\boxed{{6}}", "{6}"),
    (r"\boxed{\frac{1}{2}} }", r"\frac{1}{2}"),
    (r"\boxed{}", ""),
    (r"\boxed{6", None),
    (r"boxed{6}", None),
    ("6", None),
    ("", None),
  ],
)
def test_the_answer_is_the_content_of_the_last_balanced_box(response, answer):
  assert verify.boxed(response) == answer
  assert checker.grade(PROBLEM, response) is (answer == "6")


@pytest.mark.parametrize("content", ["-6", "6.0", "+6", "six", "²", "٦", "{6}"])
def test_the_answer_must_be_a_plain_decimal_number(content):
  assert not checker.grade(PROBLEM, f"\\boxed{{{content}}}")


def test_more_digits_than_python_converts_are_a_wrong_answer():
  digits = "1" * 5_000
  assert not checker.grade(PROBLEM, f"\\boxed{{{digits}}}")
  assert checker.label_steps(PROBLEM, [f"\\boxed{{{digits}}}"]) == [0]
  assert checker.grade(PROBLEM, f"\\boxed{{{'0' * 5_000}6}} in \\boxed{{}}")


def test_only_fillers_and_empty_steps_are_vacuous():
  assert all(map(checker.is_vacuous, ["", THINK, "Let me check."]))
  others = ["3+5=8", r"\boxed{6}", "Let me", "Let me think", f"{THINK} 3+5=8"]
  assert not any(map(checker.is_vacuous, others))


def test_an_equation_that_the_problem_needs_twice_is_not_a_repetition():
  # If the second 3-1=2 counted as one, an operation would be missing at the
  # box, which would be bad.
  problem = arithmetic.parse_problem("3-1+1-1=?")
  steps = ["3-1=2", "2+1=3", "3-1=2", r"\boxed{2}"]
  assert checker.label_steps(problem, steps) == [1] * 4
  assert checker.classify(problem, steps) == "right"
  steps = ["3-1=2", "3-1=2", "2+1=3", "3-1=2", "3-1=2", "2+1=3", r"\boxed{2}"]
  assert checker.label_steps(problem, steps) == [1] * 7


def labels_by_evaluation(problem, steps):
  """The rules of the checker, with Python's arithmetic and without regex."""
  terms = re.split(r"(?=[+-])", problem.chain)
  prefixes = ["".join(terms[: n + 1]) for n in range(len(terms))]
  # Before operation n the value is prefix n; carried out, prefix n + 1.
  expected = [
    f"{eval(prefixes[n])}{terms[n + 1]}={eval(prefixes[n + 1])}"
    for n in range(len(terms) - 1)
  ]
  labels, done, over = [], 0, False
  for step in steps:
    if 0 in labels:
      labels.append(None)
    elif over:
      labels.append(0)
    elif done < len(expected) and step == expected[done]:
      labels.append(1)
      done += 1
    elif step in expected[:done] or step in ("", THINK, "Let me check."):
      labels.append(1)
    else:
      box = f"\\boxed{{{eval(prefixes[-1])}}}"
      over = done == len(expected) and step == box
      labels.append(int(over))
  return labels


def test_labels_agree_with_python_on_damaged_demonstrations():
  rng = np.random.default_rng(0)
  alphabet = [*"0123456789+-=}", "", "\n\n"]
  counts = collections.Counter()
  for index in range(2_000):
    problem, response = arithmetic.make_example(WorldConfig(), "train", index)
    if rng.random() < 0.7:
      at = rng.integers(len(response))
      change = alphabet[rng.integers(len(alphabet))]
      response = response[:at] + change + response[at + 1 :]
    steps = response.split("\n\n")
    labels = checker.label_steps(problem, steps)
    assert labels == labels_by_evaluation(problem, steps), (problem, steps)
    counts.update(labels)
  assert min(counts[1], counts[0], counts[None]) > 500


# ===== Labels of sampled responses =====


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "world.model"
  return world_tokenizer(WORLD, path)


def label(tokenizer, parts, max_steps, read_end=False):
  """The labels of one response to 3+5-2=?, None for no label."""
  ids = [
    i
    for part in parts
    for i in ([tokenizer.eos_id] if part == "|" else tokenizer.encode(part))
  ]
  tokens, mask = right_pad([ids], 40, tokenizer.pad_id)
  labels, label_mask = label_rollout(
    tokenizer, ["3+5-2=?"], tokens, mask, max_steps, read_end
  )
  assert labels.shape == label_mask.shape == (1, max_steps)
  assert labels.dtype == np.int32 and label_mask.dtype == bool
  assert not labels[~label_mask].any()
  pairs = zip(labels[0].tolist(), label_mask[0].tolist(), strict=True)
  return [value if known else None for value, known in pairs]


RIGHT = ["3+5=8", "\n\n", "8-2=6", "\n\n", "\\boxed{6}"]


@pytest.mark.parametrize(
  "parts, max_steps, expected",
  [
    ([*RIGHT, "|"], 4, [1, 1, 1, None]),
    (RIGHT, 4, [1, 1, 1, None]),  # Cut at the limit, right after its end.
    ([*RIGHT[:4], "\\boxed{"], 4, [1, 1, 0, None]),
    (RIGHT[:4], 4, [1, 1, None, None]),  # Cut after a separator: two steps.
    ([*RIGHT[:4], "|"], 4, [1, 1, 1, None]),  # The third is EOS alone.
    (["Let me think.\n\n", *RIGHT, "|"], 4, [1, 1, 1, 1]),  # Merged.
    (["3+5=9\n\n", *RIGHT[2:], "|"], 4, [0, None, None, None]),
    (["3+5=8", "\n\n", "\n\n", *RIGHT[2:], "|"], 5, [1, 1, 1, 1, None]),
    (["|"], 2, [1, None]),
    ([], 2, [None, None]),
    # No id ends with the separator, so this is one step that cannot be parsed.
    (["3+5=8", "\n", "\n", *RIGHT[2:], "|"], 3, [0, None, None]),
    # More steps than max_steps: the last label stands for all the rest.
    ([*RIGHT, "|"], 2, [1, 1]),
    ([*RIGHT[:4], "\\boxed{7}", "|"], 2, [1, 0]),
    (["3+5=8\n\n8-2=10\n\n\\boxed{10}", "|"], 2, [1, 0]),
    (["3+5=9\n\n", *RIGHT[2:], "|"], 2, [0, None]),
    ([*RIGHT, "|"], 1, [1]),
    ([*RIGHT[:4], "\\boxed{7}", "|"], 1, [0]),
  ],
)
def test_labels_of_sampled_tokens_by_hand(
  tokenizer, parts, max_steps, expected
):
  assert label(tokenizer, parts, max_steps) == expected


@pytest.mark.parametrize(
  "parts, expected",
  [
    ([*RIGHT, "|"], [1, 1, 1, None]),
    ([*RIGHT[:3], "|"], [1, 0, None, None]),
    (RIGHT[:3], [1, 1, None, None]),  # Cut off, not ended.
    ([*RIGHT[:4], "|"], [1, 1, 0, None]),  # EOS after the separator.
    (["3+5=9\n\n8-2=6", "|"], [0, None, None, None]),  # Bad already.
    (["Let me think.", "|"], [0, None, None, None]),
    (["|"], [0, None, None, None]),
    ([], [None, None, None, None]),
  ],
)
def test_a_prm_that_reads_the_end_learns_when_it_comes_too_early(
  tokenizer, parts, expected
):
  assert label(tokenizer, parts, 4, read_end=True) == expected


def test_labels_are_aligned_with_the_steps_on_the_device(tokenizer):
  examples = [arithmetic.make_example(WORLD, "train", i) for i in range(120)]
  responses = [tokenizer.encode(response) for _, response in examples]
  for row, ids in enumerate(responses):
    # A third each: ended, cut somewhere, ended with a separator.
    if row % 3 == 0:
      ids.append(tokenizer.eos_id)
    elif row % 3 == 1:
      del ids[len(ids) * 2 // 3 :]
    else:
      ids += [*tokenizer.encode("\n\n"), tokenizer.eos_id]
  tokens, mask = right_pad(responses, 80, tokenizer.pad_id)
  problems = [problem.text for problem, _ in examples]
  split_steps = jax.jit(device_steps.split_steps, static_argnames="max_steps")
  cut = split_steps(tokens, mask, separator_table(tokenizer), max_steps=5)
  labels, label_mask = label_rollout(tokenizer, problems, tokens, mask, 5)
  exists = np.asarray(cut.mask)
  assert not (label_mask & ~exists).any()
  bad = label_mask & (labels == 0)
  # Every existing step has a label, up to the first bad one and no further.
  seen_bad = (np.cumsum(bad, axis=1) - bad) > 0
  np.testing.assert_array_equal(label_mask, exists & ~seen_bad)
  assert bad.any() and np.asarray(cut.overflow).any()


def test_every_row_needs_a_problem(tokenizer):
  tokens, mask = right_pad([[1], [1]], 2, tokenizer.pad_id)
  with pytest.raises(ValueError, match=r"shorter|longer"):
    label_rollout(tokenizer, ["3+5-2=?"], tokens, mask, 2)
