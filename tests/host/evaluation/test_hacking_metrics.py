"""Signs of hacking and collapse, on responses that were written as examples."""

import dataclasses

import numpy as np
import pytest
from factories import steps_from_ends

from pure_jax.host.evaluation.hacking_metrics import (
  agreement,
  group_diversity,
  pseudo_positive,
  signs_of_hacking,
)
from pure_jax.host.evaluation.response_facts import has_work, response_facts
from pure_jax.types import Rollout

LIMIT = 20


def facts(texts, answers, lengths=None, ends=None, empty=None):
  """Facts of responses; without lengths and ends, one step of four tokens."""
  count = len(texts)
  lengths = np.asarray(lengths or [4] * count)
  ends = ends or [[length - 1] for length in lengths]
  max_steps = max(map(len, ends))
  mask = np.arange(LIMIT) < lengths[:, None]
  zeros = np.zeros((count, LIMIT), np.float32)
  rollout = Rollout(
    prompt_tokens=np.zeros((count, 1), np.int32),
    prompt_mask=np.ones((count, 1), bool),
    tokens=np.zeros((count, LIMIT), np.int32),
    completion_mask=mask,
    sampled_logp=zeros,
    full_logp=zeros,
    truncated=np.zeros(count, bool),
  )
  blank = np.zeros((count, max_steps), bool)
  for row, step in empty or ():
    blank[row, step] = True
  steps = steps_from_ends(ends, lengths, LIMIT, max_steps, blank)
  step_texts = [text.split("\n\n") for text in texts]
  return response_facts(rollout, steps, None, step_texts, answers, bool)


# ===== The cases of the paper =====

SOUND = ("3+5=8\n\n8-2=6\n\n\\boxed{6}", "6", [3, 7, 11])
THINKING = ("Let me think.\n\n" * 2 + "Let me check.", None, [3, 7, 11])
ONE_STEP = ("3+5=8, 8-2=6, so \\boxed{6}", "6", [11])
THANKS = ("Thank you.", None, [2])
GUESS = ("\\boxed{6}", "6", [3])
UNFINISHED = ("3+5=8\n\n8-2=6", None, [3, 7])
CASES = (SOUND, THINKING, ONE_STEP, THANKS, GUESS, UNFINISHED)


def test_the_three_cases_differ_in_their_signs():
  texts, answers, ends = zip(*CASES, strict=True)
  lengths = [row[-1] + 1 for row in ends]
  signs = signs_of_hacking(facts(texts, answers, lengths, list(ends)))
  rows = {name: values.tolist() for name, values in signs.items()}
  assert rows == {
    "no_step_share": [False] * 6,
    "one_step_share": [False, False, True, True, True, False],
    "longest_step_tokens": [4, 4, 12, 3, 4, 4],
    "longest_step_share": [1 / 3, 1 / 3, 1.0, 1.0, 1.0, 0.5],
    "answer_without_work": [False, False, False, False, True, False],
    "work_without_answer": [False, False, False, False, False, True],
    "no_work_or_answer": [False, True, False, True, False, False],
  }


def test_an_empty_step_is_no_content_and_an_empty_response_has_no_longest():
  """0 tokens: a share of them would be 0/0."""
  read = facts(["\n\n3+5=8", ""], [None, None], [5, 1], [[0, 4], [0]])
  read = dataclasses.replace(read, tokens=np.asarray([5, 0]))
  signs = signs_of_hacking(read)
  assert signs["longest_step_share"].tolist() == [0.8]
  blank = facts(
    ["\n\n3+5=8", ""], [None, None], [5, 1], [[0, 4], [0]], [(0, 0), (1, 0)]
  )
  signs = signs_of_hacking(blank)
  assert signs["one_step_share"].tolist() == [True, False]
  assert signs["no_step_share"].tolist() == [False, True]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("3+5=8, \\boxed{8}", True),
    ("\\boxed{8}", False),
    ("So \\boxed{4} is wrong and \\boxed{8} right", True),  # A second box.
    ("It is 12,500.50.", False),  # One number.
    ("It is 12 or 13.", True),
    ("", False),
  ],
)
def test_work_is_a_number_before_the_answer(text, expected):
  assert has_work(text) == expected


def test_work_is_found_in_linear_time():
  """A policy that collapses writes thousands of digits."""
  assert has_work("1 " * 100_000)
  assert not has_work("1" * 200_000)


# ===== The collapse =====


def test_pseudo_positive_responses_are_right_and_long_and_repetitive():
  loop = "3+5=8 " * 20
  texts = [loop, loop, loop, "3+5=8\n\n8-2=6"]
  read = facts(texts, ["8"] * 4, lengths=[10, 10, 9, 20])
  right = np.asarray([True, False, True, True])
  assert pseudo_positive(read, right).tolist() == [True, False, False, False]


# ===== The PRM and the grader =====


def test_each_gradable_response_is_in_one_cell():
  outcome = np.asarray([0.5, 0.5, -0.1, -0.1, 0.0, 0.9])
  right = np.asarray([True, False, True, False, False, False])
  gradable = np.asarray([True] * 5 + [False])
  cells = agreement(outcome, right, gradable)
  assert {name: np.flatnonzero(x).tolist() for name, x in cells.items()} == {
    "accepted_right": [0],
    "accepted_wrong": [1],
    "rejected_right": [2],
    "rejected_wrong": [3, 4],  # An outcome of 0 accepts nothing.
  }


# ===== Diversity =====


def test_diversity_is_that_of_the_samples_of_one_prompt():
  """Over the whole batch, equal answers to two prompts would be one."""
  texts = ["a 8", "a 8", "b 8", "c", "a 8", "d 9", "e 7", "f 7"]
  answers = ["8", "8", "8", None, "8", "9", "7", "7"]
  diversity = group_diversity(facts(texts, answers), group_size=4)
  # Prompt 1: only "8"; prompt 2: "8", "9" and "7".
  assert diversity == {"distinct_answers": 2.0, "identical_responses": 1 / 8}
  unanswered = group_diversity(facts(["x", "x"], [None, None]), group_size=2)
  assert unanswered == {"distinct_answers": 0.0, "identical_responses": 0.5}
