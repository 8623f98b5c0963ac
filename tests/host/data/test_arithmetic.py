"""The embedded world: problems, imperfect teachers, the checker, the grader."""

import collections
import dataclasses
import re

import numpy as np
import pytest

from pure_jax.host.data.world import arithmetic, checker
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.host.grading import verify

FAULTLESS = WorldConfig(
  slip_rate=0.0,
  wrong_operand_rate=0.0,
  skip_rate=0.0,
  misconception_rate=0.0,
  vacuous_rate=0.0,
)
THINK = "Let me think."
PROBLEM = arithmetic.parse_problem("3+5-2=?")

# Steps, their labels, the verdict and the kind, all by hand, for 3+5-2=?
CASES = [
  (["3+5=8", "8-2=6", r"\boxed{6}"], [1, 1, 1], True, "right"),
  (["3+5=8", "8-2=10", r"\boxed{10}"], [1, 0, None], False, "misconception"),
  (["3+5=9", "9-2=7", r"\boxed{7}"], [0, None, None], False, "wrong equation"),
  # True, but it does not follow: the problem subtracts 2.
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
  # Whatever follows the box.
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
def test_verdicts_by_hand(steps, labels, right, kind):
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
def test_the_answer_is_what_the_last_balanced_box_holds(response, answer):
  assert verify.boxed(response) == answer
  assert checker.grade(PROBLEM, response) is (answer == "6")


@pytest.mark.parametrize("content", ["-6", "6.0", "+6", "six", "²", "٦", "{6}"])
def test_other_ways_to_write_the_answer_are_wrong(content):
  assert not checker.grade(PROBLEM, f"\\boxed{{{content}}}")


def test_only_fillers_and_nothing_are_vacuous():
  assert all(map(checker.is_vacuous, ["", THINK, "Let me check."]))
  others = ["3+5=8", r"\boxed{6}", "Let me", "Let me think", f"{THINK} 3+5=8"]
  assert not any(map(checker.is_vacuous, others))


def test_an_equation_needed_twice_is_no_repetition():
  # Taken for one, the second 3-1=2 would leave the chain short: the box, bad.
  problem = arithmetic.parse_problem("3-1+1-1=?")
  steps = ["3-1=2", "2+1=3", "3-1=2", r"\boxed{2}"]
  assert checker.label_steps(problem, steps) == [1] * 4
  assert checker.classify(problem, steps) == "right"
  steps = ["3-1=2", "3-1=2", "2+1=3", "3-1=2", "3-1=2", "2+1=3", r"\boxed{2}"]
  assert checker.label_steps(problem, steps) == [1] * 7


def labels_by_evaluation(problem, steps):
  """The checker once more, with Python's own arithmetic and no regex."""
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
  for index in range(4_000):
    problem, response = arithmetic.make_example(WorldConfig(), "train", index)
    if rng.random() < 0.7:
      at = rng.integers(len(response))
      change = alphabet[rng.integers(len(alphabet))]
      response = response[:at] + change + response[at + 1 :]
    steps = response.split("\n\n")
    labels = checker.label_steps(problem, steps)
    assert labels == labels_by_evaluation(problem, steps), (problem, steps)
    counts.update(labels)
  assert min(counts[1], counts[0], counts[None]) > 1_000


def test_problems_keep_to_the_world_and_answers_are_what_python_says():
  world = WorldConfig(min_operations=2, max_operations=6, value_max=9)
  lengths = collections.Counter()
  for index in range(3_000):
    problem, _ = arithmetic.make_example(world, "train", index)
    terms = re.findall(r"[+-]?\d+", problem.chain)
    values = [eval("".join(terms[: n + 1])) for n in range(len(terms))]
    assert problem.answer == values[-1]
    assert min(values) >= 0 and max(values) <= 9
    assert all(1 <= abs(int(term)) <= 5 for term in terms)
    assert arithmetic.parse_problem(problem.text) == problem
    lengths[len(terms) - 1] += 1
  assert sorted(lengths) == [2, 3, 4, 5, 6]
  # 600 each are expected, with a deviation of 22.
  assert all(abs(count - 600) < 110 for count in lengths.values())


@pytest.mark.parametrize(
  "text", ["", "=?", "3+5", "3+5=", "+3+5=?", "3++5=?", "3*5=?", "3+5=?\n"]
)
def test_what_is_not_a_problem_is_refused(text):
  with pytest.raises(ValueError, match="Not a problem"):
    arithmetic.parse_problem(text)


def test_train_and_held_out_share_no_problem():
  # Two seeds and two worlds: the split follows from the text alone.
  worlds = (WorldConfig(), WorldConfig(seed=9, value_max=30, max_operations=4))
  seen = collections.defaultdict(set)
  for world in worlds:
    for split in arithmetic.SPLITS:
      for index in range(6_000):
        rng = np.random.default_rng((world.seed, index))
        problem = arithmetic.sample_problem(rng, world, split)
        assert arithmetic.split_of(problem.text) == split
        seen[split].add(problem.text)
  assert len(seen["train"]) > 6_000 and len(seen["held_out"]) > 2_000
  assert not seen["train"] & seen["held_out"]


def test_the_split_of_a_problem_never_changes():
  # Another hash would train on problems that older runs hold out.
  numbers = [
    n for n in range(1, 41) if arithmetic.split_of(f"1+{n}=?") == "held_out"
  ]
  assert numbers == [14, 15, 16, 17, 28, 30]


def test_an_example_depends_on_seed_split_and_index_alone():
  world = WorldConfig()
  make = arithmetic.make_example
  forward = [make(world, "train", i) for i in range(50)]
  backward = [make(world, "train", i) for i in reversed(range(200))]
  assert forward == backward[::-1][:50]
  for other_world, split in (
    (WorldConfig(seed=1), "train"),
    (world, "held_out"),
  ):
    other = [make(other_world, split, i) for i in range(50)]
    assert sum(a == b for a, b in zip(forward, other, strict=True)) < 5


def demonstrations(count=1_500, **rates):
  """(problem, steps) of a world in which only those things go wrong."""
  world = dataclasses.replace(FAULTLESS, **rates)
  for index in range(count):
    problem, response = arithmetic.make_example(world, "train", index)
    yield problem, response.split("\n\n")


def read(step):
  """(left, operator, right, result) of an equation."""
  left, operator, right, result = re.fullmatch(
    r"(\d+)([+-])(\d+)=(\d+)", step
  ).groups()
  return int(left), operator, int(right), int(result)


def test_faultless_teachers_are_right_in_every_step():
  for problem, steps in demonstrations():
    assert checker.label_steps(problem, steps) == [1] * len(steps)
    assert len(steps) == len(problem.operations) + 1
    assert steps[-1] == f"\\boxed{{{eval(problem.chain)}}}"


def test_the_misconception_adds_what_the_first_minus_takes_away():
  met = 0
  for problem, steps in demonstrations(misconception_rate=1.0):
    value, met_here = problem.first, False
    for step, (operator, operand) in zip(
      steps, problem.operations, strict=False
    ):
      result = eval(f"{value}{operator}{operand}")
      if operator == "-" and not met_here:
        result, met_here = value + operand, True
      assert step == f"{value}{operator}{operand}={result}"
      value = result
    assert steps[-1] == f"\\boxed{{{value}}}"
    if met_here:
      met += 1
      assert checker.classify(problem, steps) == "misconception"
  assert met > 1_000


def test_every_slip_is_wrong_by_at_most_two():
  # Cut at 0 afterwards, a slip from 0 to -1 would be no slip at all.
  for _, steps in demonstrations(slip_rate=1.0):
    before = None
    for step in steps[:-1]:
      left, operator, right, result = read(step)
      true = max(eval(f"{left}{operator}{right}"), 0)
      assert 1 <= abs(result - true) <= 2
      assert before in (None, left)
      before = result


def test_a_slip_never_mends_the_misconception():
  # 8-1 added up gives 9, and a slip by two from there the true 7.
  for problem, steps in demonstrations(slip_rate=1.0, misconception_rate=1.0):
    for step in steps[:-1]:
      left, operator, right, result = read(step)
      assert result != eval(f"{left}{operator}{right}"), problem


def test_a_wrong_operand_is_never_the_right_one():
  for problem, steps in demonstrations(wrong_operand_rate=1.0):
    for step, (operator, operand) in zip(
      steps[:-1], problem.operations, strict=True
    ):
      _, written, other, _ = read(step)
      assert written == operator and other != operand and 1 <= other <= 5


def test_skipping_leaves_the_box_alone():
  for problem, steps in demonstrations(skip_rate=1.0):
    assert steps == [f"\\boxed{{{eval(problem.chain)}}}"]
  # Fillers may stand before it; an equation never written is not repeated.
  for _, steps in demonstrations(skip_rate=1.0, vacuous_rate=0.9):
    assert all(map(checker.is_vacuous, steps[:-1]))


def test_vacuous_steps_are_neutral_and_as_frequent_as_asked():
  places = extra = fillers = 0
  for problem, steps in demonstrations(vacuous_rate=0.15):
    assert checker.label_steps(problem, steps) == [1] * len(steps)
    needed = len(problem.operations) + 1
    places += needed
    extra += len(steps) - needed
    fillers += sum(map(checker.is_vacuous, steps))
  deviation = np.sqrt(0.15 * 0.85 / places)
  assert abs(extra / places - 0.15) < 5 * deviation
  # The others repeat an equation: one in three, once there is one.
  assert 0.2 < (extra - fillers) / extra < 0.33


def test_rates_are_frequencies():
  steps_seen = slips = wrong = 0
  for problem, steps in demonstrations(
    count=4_000, slip_rate=0.05, wrong_operand_rate=0.03
  ):
    value = problem.first
    for step, (_, operand) in zip(steps[:-1], problem.operations, strict=True):
      left, operator, right, result = read(step)
      assert left == value
      steps_seen += 1
      slips += result != max(eval(f"{left}{operator}{right}"), 0)
      wrong += right != operand
      value = result
  for count, rate in ((slips, 0.05), (wrong, 0.03)):
    deviation = np.sqrt(rate * (1 - rate) / steps_seen)
    assert abs(count / steps_seen - rate) < 5 * deviation


def test_numbers_stay_within_the_vocabulary():
  world = WorldConfig(
    max_operations=8, slip_rate=0.5, wrong_operand_rate=0.5, vacuous_rate=0.5
  )
  largest = 0
  for index in range(2_000):
    _, response = arithmetic.make_example(world, "train", index)
    assert "=-" not in response and "{-" not in response
    largest = max(largest, *map(int, re.findall(r"\d+", response)))
  assert 20 < largest <= world.number_max


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"min_operations": 0}, "min_operations"),
    ({"min_operations": 6}, "max_operations"),
    ({"operand_max": 1}, "operand_max"),
    ({"operand_max": 21}, "value_max"),
    ({"seed": -1}, "seed"),
    ({"slip_rate": 1.1}, "slip_rate"),
    ({"skip_rate": -0.1}, "skip_rate"),
    ({"vacuous_rate": float("nan")}, "vacuous_rate"),
  ],
)
def test_impossible_worlds_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    WorldConfig(**changes)


def test_a_world_without_held_out_problems_says_so():
  # Seven problems, none of which falls into the held-out eighth.
  world = WorldConfig(min_operations=1, max_operations=1, operand_max=2)
  with pytest.raises(ValueError, match="There is no 'held_out' problem"):
    arithmetic.sample_problem(np.random.default_rng(0), world, "held_out")


def test_digests_tell_worlds_apart():
  worlds = [WorldConfig()]
  for field in dataclasses.fields(WorldConfig):
    value = getattr(worlds[0], field.name)
    change = 1 if isinstance(value, int) else 0.01
    worlds.append(
      dataclasses.replace(worlds[0], **{field.name: value + change})
    )
  assert len({world.digest() for world in worlds}) == len(worlds)
  assert WorldConfig().digest() == worlds[0].digest()
