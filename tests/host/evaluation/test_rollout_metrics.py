"""Metrics of a batch of responses, against loops over each response."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import steps_from_ends

from pure_jax.host.evaluation.response_facts import (
  ResponseFacts,
  response_facts,
)
from pure_jax.host.evaluation.rollout_metrics import (
  SCORE_METRICS,
  pass_at_n,
  rollout_metrics,
)
from pure_jax.types import Rollout

# One response per row: tokens, step ends, step scores, step texts, correct,
# cut by the length limit, empty steps, steps merged into the last one.
RIGHT = ([5, 6, 7, 8], [1, 3], [0.9, 0.4], ["3+5=8", "box"], 1, False, [], 0)
HACKED = ([4] * 6, [1, 3, 5], [0.9, 0.6, 0.8], ["um"] * 3, 0, True, [1], 2)
WRONG = ([5, 6, 9], [0, 2], [0.7, -0.5], ["3+5=9", "box"], 0, False, [], 0)
EMPTY = ([], [], [], [], 0, False, [], 0)
LONG_RIGHT = ([9] * 8, [7], [-0.2], ["box"], 1, True, [], 0)
# It ends with its last token: as long as the limit, but not truncated.
TEXTS = ["haha", "Wait, retry again"]
FULL = ([5, 7] * 4, [3, 7], [0.1, 0.2], TEXTS, 0, False, [], 0)
WIDTH, MAX_STEPS = 8, 4


def batch(responses):
  """Arguments of `metrics`; padding holds ids, not zeros."""
  lengths = [len(tokens) for tokens, *_ in responses]
  tokens = np.full((len(responses), WIDTH), 4, np.int32)
  rewards = np.full((len(responses), MAX_STEPS), -0.9, np.float32)
  empty = np.zeros((len(responses), MAX_STEPS), bool)
  for row, (ids, _, scores, _, _, _, blank, _) in enumerate(responses):
    tokens[row, : len(ids)] = ids
    rewards[row, : len(scores)] = scores
    empty[row, blank] = True
  steps = steps_from_ends(
    [r[1] for r in responses], lengths, WIDTH, MAX_STEPS, empty
  )
  mask = np.arange(WIDTH) < np.asarray(lengths)[:, None]
  rollout = Rollout(
    prompt_tokens=np.zeros((len(responses), 1), np.int32),
    prompt_mask=np.ones((len(responses), 1), bool),
    tokens=tokens,
    completion_mask=mask,
    sampled_logp=np.zeros(mask.shape, np.float32),
    full_logp=np.zeros(mask.shape, np.float32),
    truncated=np.asarray([r[5] for r in responses]),
  )
  overflow = jnp.asarray([r[7] for r in responses], jnp.int32)
  correct = np.asarray([r[4] for r in responses], np.float32)
  texts = [r[3] for r in responses]
  return rollout, steps.replace(overflow=overflow), rewards, correct, texts


def answers(texts):
  """The answer of each response: its step "box", if it has one."""
  return ["box" if "box" in steps else None for steps in texts]


def metrics(
  rollout, steps, rewards, correct, texts, is_vacuous, gradable=None, **options
):
  facts = response_facts(
    rollout, steps, rewards, texts, answers(texts), is_vacuous, **options
  )
  if gradable is None:
    gradable = np.ones(len(correct), bool)
  return rollout_metrics(facts, correct, gradable)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_leaves_the_other_metrics(bad):
  """A validation before the check of the first update must come to its end."""
  arguments = batch([RIGHT, WRONG])
  expected = metrics(*arguments, is_vacuous=bool)
  arguments[2][1, 1] = bad
  undefined = {name: expected[name] for name in SCORE_METRICS}
  assert None not in undefined.values()
  assert metrics(*arguments, is_vacuous=bool) == expected | dict.fromkeys(
    undefined
  )
  arguments[2][1, 1], arguments[2][1, 3] = WRONG[2][1], bad  # No step is there.
  assert metrics(*arguments, is_vacuous=bool) == expected


def repetition(tokens):
  """Shared prefixes of neighbouring sorted suffixes, normalised."""
  suffixes = sorted(tokens[i:] for i in range(len(tokens)))
  shared = 0
  for first, second in itertools.pairwise(suffixes):
    for a, b in zip(first, second, strict=False):
      if a != b:
        break
      shared += 1
  return 2 * shared / (len(tokens) * (len(tokens) + 1)) if tokens else 0.0


def softmin(scores):
  """Eq. 5's rewards of one response, summed, in Python floats."""
  weights = [math.exp(-score / 0.1) for score in scores]
  pairs = zip(weights, scores, strict=True)
  return sum(w * s for w, s in pairs) / sum(weights)


WATCHED = (
  *("response_tokens", "clip_ratio", "truncated"),
  *("repetition", "high_repetition"),
)
CELLS = (
  *("accepted_right", "accepted_wrong"),
  *("rejected_right", "rejected_wrong"),
)
NAMES = (
  *("accuracy", "process_outcome", "min_step_score", "hacked_given_wrong"),
  *CELLS,
  *WATCHED,
  *(f"{name}_given_correct" for name in WATCHED),
  *(f"{name}_given_wrong" for name in WATCHED),
  *("pseudo_positive_share", "no_step_share", "one_step_share"),
  *("longest_step_tokens", "longest_step_share"),
  *("answer_without_work", "work_without_answer", "no_work_or_answer"),
  *("steps_per_response", "reflection_words", "reflection_share"),
  *("vacuous_step_share", "empty_step_share", "step_overflow"),
)


def reflections(text):
  """Matches of the list, by sliding over the text."""
  patterns = [
    *("wait,", "alternatively,", "however,", "try again"),
    *("let's check", "let's verify"),
    *(word + end for word in ("recheck", "rethink", "retry") for end in ", \n"),
  ]
  text = text.lower()
  return sum(
    text.startswith(pattern, start)
    for pattern in patterns
    for start in range(len(text))
  )


def signs(response):
  """The signs of hacking in one response."""
  tokens, ends, _, texts, _, _, blank, _ = response
  content = len(ends) - len(blank)
  starts = [0, *(end + 1 for end in ends)]
  pairs = zip(starts, ends, strict=False)
  longest = max((end + 1 - start for start, end in pairs), default=0)
  works = sum(letter.isdigit() for text in texts for letter in text) > 1
  answered = "box" in texts
  share = {"longest_step_share": longest / len(tokens)} if tokens else {}
  return share | {
    "no_step_share": content == 0,
    "one_step_share": content == 1,
    "longest_step_tokens": longest,
    "answer_without_work": answered and not works,
    "work_without_answer": works and not answered,
    "no_work_or_answer": not works and not answered,
  }


def described(responses, gradable=None, unit="characters"):
  """All metrics by a loop over the responses."""
  batch_metrics = {name: [] for name in NAMES}
  gradable = [True] * len(responses) if gradable is None else gradable

  def note(name, value):
    batch_metrics[name].append(float(value))

  for response, is_gradable in zip(responses, gradable, strict=True):
    tokens, ends, scores, texts, right, cut, blank, merged = response
    text = "\n\n".join(texts)
    score = repetition(text if unit == "characters" else tokens)
    high = score > 0.2
    wrong = is_gradable and not right
    of_response = dict(
      response_tokens=len(tokens),
      clip_ratio=len(tokens) == WIDTH,
      truncated=cut,
      repetition=score,
      high_repetition=high,
    )
    for name, value in of_response.items():
      note(name, value)
      if right:
        note(f"{name}_given_correct", value)
      if wrong:
        note(f"{name}_given_wrong", value)
    note("pseudo_positive_share", right and high and 2 * len(tokens) >= WIDTH)
    for name, value in signs(response).items():
      note(name, value)
    note("reflection_words", reflections(text))
    note("reflection_share", reflections(text) > 0)
    note("accuracy", right)
    note("process_outcome", softmin(scores) if scores else 0.0)
    note("steps_per_response", len(ends))
    note("step_overflow", merged > 0)
    if is_gradable:
      accepted = bool(scores) and softmin(scores) > 0
      for name, accepts, is_right in zip(
        CELLS, (1, 1, 0, 0), (1, 0, 1, 0), strict=True
      ):
        note(name, accepted == accepts and bool(right) == is_right)
    if scores:
      note("min_step_score", min(scores))
    if scores and wrong:
      note("hacked_given_wrong", min(scores) > 0)
    for step, text in enumerate(texts):
      note("vacuous_step_share", text == "um")
      note("empty_step_share", step in blank)
  return {
    name: sum(values) / len(values) if values else None
    for name, values in batch_metrics.items()
  }


GIVEN_CORRECT = {f"{name}_given_correct" for name in WATCHED}
GIVEN_WRONG = {f"{name}_given_wrong" for name in WATCHED}


@pytest.mark.parametrize("unit", ["characters", "tokens"])
@pytest.mark.parametrize(
  ("responses", "undefined"),
  [
    ([RIGHT, HACKED, WRONG, EMPTY, LONG_RIGHT, FULL], set()),
    ([RIGHT, LONG_RIGHT], {"hacked_given_wrong"} | GIVEN_WRONG),
    # No step to be hacked with, though the response is wrong.
    ([RIGHT, EMPTY], {"hacked_given_wrong"}),
    ([HACKED, WRONG], GIVEN_CORRECT),
    (
      [EMPTY, EMPTY],
      GIVEN_CORRECT
      | {"hacked_given_wrong", "min_step_score"}
      | {"vacuous_step_share", "empty_step_share", "longest_step_share"},
    ),
  ],
  ids=["mixed", "all right", "no steps but wrong", "all wrong", "no tokens"],
)
def test_each_metric_agrees_with_a_loop_over_the_responses(
  responses, undefined, unit
):
  """A mean over an empty set is None; 0 would read as "never hacked"."""
  batch_metrics = metrics(
    *batch(responses), lambda text: text == "um", repetition_unit=unit
  )
  expected = described(responses, unit=unit)
  assert batch_metrics.keys() == expected.keys()
  assert {n for n, v in batch_metrics.items() if v is None} == undefined
  for name, value in expected.items():
    # Step scores are float32.
    assert batch_metrics[name] == pytest.approx(value, abs=1e-6), name
    if name not in undefined:
      assert type(batch_metrics[name]) is float  # Plain: JSON takes it.


def test_the_authors_measures_by_hand():
  """FULL: 8 of 8 tokens, ended by itself; "haha" repeats; three matches."""
  values = metrics(*batch([FULL]), lambda text: False)
  assert (values["clip_ratio"], values["truncated"]) == (1, 0)
  assert values["clip_ratio_given_wrong"] == 1
  # "wait,", "retry " and "try again": the last two overlap.
  assert (values["reflection_words"], values["reflection_share"]) == (3, 1)
  # One text: characters repeat, and as ids the same text repeats more.
  in_tokens = metrics(
    *batch([FULL]), lambda text: False, repetition_unit="tokens"
  )
  assert values["repetition"] == repetition("haha\n\nWait, retry again")
  assert in_tokens["repetition"] == repetition([5, 7] * 4) > 0.5
  assert (in_tokens["high_repetition"], values["high_repetition"]) == (1, 0)


def test_a_response_that_nobody_can_grade_is_not_wrong():
  """Its problem has no known answer; its length would be that of a failure."""
  responses, gradable = [RIGHT, HACKED, WRONG], [True, False, True]
  values = metrics(
    *batch(responses), lambda t: t == "um", gradable=np.asarray(gradable)
  )
  assert values == pytest.approx(described(responses, gradable), abs=1e-6)
  assert values["response_tokens_given_wrong"] == 3  # WRONG alone.
  assert values["hacked_given_wrong"] == 0


@pytest.mark.parametrize(
  ("correct", "gradable", "expected"),
  [
    ([1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], 0.5),
    # The second problem has no known answer.
    ([1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], 1.0),
    ([0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], 0.5),
    ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], None),
  ],
)
def test_pass_at_n_counts_problems(correct, gradable, expected):
  value = pass_at_n(
    np.asarray(correct, np.float32), np.asarray(gradable, bool), group_size=3
  )
  assert value == expected


def test_without_a_prm_metrics_of_step_rewards_are_absent():
  """Zeros would read as a PRM that is undecided about every step."""
  responses = [RIGHT, HACKED, WRONG, EMPTY, LONG_RIGHT]
  rollout, steps, _, *rest = batch(responses)
  batch_metrics = metrics(rollout, steps, None, *rest, lambda t: t == "um")
  expected = described(responses)
  for name in SCORE_METRICS:
    del expected[name]
  assert batch_metrics == pytest.approx(expected, abs=1e-6)


def test_the_hacked_share_is_of_wrong_responses_with_steps():
  """Of the two wrong ones with a step, one scores above 0 throughout; over
  all five responses it would be 0.2, with the empty one counted 1/3.
  """
  responses = [RIGHT, HACKED, WRONG, EMPTY, LONG_RIGHT]
  batch_metrics = metrics(*batch(responses), lambda text: False)
  assert batch_metrics["hacked_given_wrong"] == 0.5
  # The padding holds -0.9.
  assert batch_metrics["min_step_score"] == pytest.approx(
    (0.4 + 0.6 - 0.5 - 0.2) / 4
  )


def test_facts_computed_in_shares_give_the_metrics_of_the_whole_batch():
  """A mean of the shares' means would weigh responses unequally."""
  responses = [RIGHT, HACKED, WRONG, EMPTY, LONG_RIGHT]
  *arrays, correct, texts = batch(responses)

  def facts(rows):
    part = jax.tree.map(lambda x: np.asarray(x)[rows], arrays)
    found = answers(texts[rows])
    return response_facts(*part, texts[rows], found, lambda t: t == "um")

  shares = [vars(facts(slice(0, 3))), vars(facts(slice(3, 5)))]
  joined = jax.tree.map(lambda *x: np.concatenate(x), *shares)
  whole = metrics(*arrays, correct, texts, lambda text: text == "um")
  gradable = np.ones(len(correct), bool)
  assert rollout_metrics(ResponseFacts(**joined), correct, gradable) == whole
