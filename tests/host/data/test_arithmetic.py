"""The problems of the embedded world, and its imperfect teachers."""

import collections
import dataclasses
import re

import numpy as np
import pytest

from pure_jax.host.data.world import arithmetic, checker
from pure_jax.host.data.world.arithmetic import WorldConfig

FAULTLESS = WorldConfig(
  slip_rate=0.0,
  wrong_operand_rate=0.0,
  skip_rate=0.0,
  misconception_rate=0.0,
  vacuous_rate=0.0,
)


def test_problems_are_in_range_and_their_answers_are_pythons():
  world = WorldConfig(min_operations=2, max_operations=6, value_max=9)
  lengths = collections.Counter()
  for index in range(1_500):
    problem, _ = arithmetic.make_example(world, "train", index)
    terms = re.findall(r"[+-]?\d+", problem.chain)
    values = [eval("".join(terms[: n + 1])) for n in range(len(terms))]
    assert problem.answer == values[-1]
    assert min(values) >= 0 and max(values) <= 9
    assert all(1 <= abs(int(term)) <= 5 for term in terms)
    assert arithmetic.parse_problem(problem.text) == problem
    lengths[len(terms) - 1] += 1
  assert sorted(lengths) == [2, 3, 4, 5, 6]
  # 300 each are expected, with a standard deviation of 15.
  assert all(abs(count - 300) < 78 for count in lengths.values())


@pytest.mark.parametrize(
  "text", ["", "=?", "3+5", "3+5=", "+3+5=?", "3++5=?", "3*5=?", "3+5=?\n"]
)
def test_texts_that_are_no_problem_raise(text):
  with pytest.raises(ValueError, match="Not a problem"):
    arithmetic.parse_problem(text)


def test_train_and_held_out_share_no_problem():
  # For two seeds and two worlds: the split depends on the text only.
  worlds = (WorldConfig(), WorldConfig(seed=9, value_max=30, max_operations=4))
  seen = collections.defaultdict(set)
  for world in worlds:
    for split in arithmetic.SPLITS:
      for index in range(1_000):
        rng = np.random.default_rng((world.seed, index))
        problem = arithmetic.sample_problem(rng, world, split)
        assert arithmetic.split_of(problem.text) == split
        seen[split].add(problem.text)
  assert len(seen["train"]) > 1_200 and len(seen["held_out"]) > 800
  assert not seen["train"] & seen["held_out"]


def test_the_split_of_a_problem_never_changes():
  # Another hash would let a resumed run train on held-out problems.
  numbers = [
    n for n in range(1, 41) if arithmetic.split_of(f"1+{n}=?") == "held_out"
  ]
  assert numbers == [14, 15, 16, 17, 28, 30]


def test_an_example_depends_only_on_seed_split_and_index():
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


def demonstrations(count=600, **rates):
  """(problem, steps) of a world that has only the given mistakes."""
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


def test_the_misconception_adds_at_the_first_subtraction():
  affected = 0
  for problem, steps in demonstrations(misconception_rate=1.0):
    value, is_affected = problem.first, False
    for step, (operator, operand) in zip(
      steps, problem.operations, strict=False
    ):
      result = eval(f"{value}{operator}{operand}")
      if operator == "-" and not is_affected:
        result, is_affected = value + operand, True
      assert step == f"{value}{operator}{operand}={result}"
      value = result
    assert steps[-1] == f"\\boxed{{{value}}}"
    if is_affected:
      affected += 1
      assert checker.classify(problem, steps) == "misconception"
  assert affected > 400


def test_every_slip_is_wrong_by_at_most_two():
  # If results were clipped afterwards, a slip from 0 to -1 would be no slip.
  for _, steps in demonstrations(slip_rate=1.0):
    before = None
    for step in steps[:-1]:
      left, operator, right, result = read(step)
      true = max(eval(f"{left}{operator}{right}"), 0)
      assert 1 <= abs(result - true) <= 2
      assert before in (None, left)
      before = result


def test_a_slip_never_corrects_the_misconception():
  # The misconception makes 8-1 a 9. A slip of -2 from there would be right.
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


def test_a_skipping_teacher_writes_only_the_box():
  for problem, steps in demonstrations(skip_rate=1.0):
    assert steps == [f"\\boxed{{{eval(problem.chain)}}}"]
  # Fillers may come before it. There is no equation that could be repeated.
  for _, steps in demonstrations(skip_rate=1.0, vacuous_rate=0.9):
    assert all(map(checker.is_vacuous, steps[:-1]))


def test_vacuous_steps_are_neutral_and_have_their_rate():
  chances = extra = fillers = 0
  for problem, steps in demonstrations(1_500, vacuous_rate=0.15):
    assert checker.label_steps(problem, steps) == [1] * len(steps)
    needed = len(problem.operations) + 1
    chances += needed
    extra += len(steps) - needed
    fillers += sum(map(checker.is_vacuous, steps))
  deviation = np.sqrt(0.15 * 0.85 / chances)
  assert abs(extra / chances - 0.15) < 5 * deviation
  # The others repeat an equation: one in three, if there is an equation.
  assert 0.2 < (extra - fillers) / extra < 0.33


def test_slips_and_wrong_operands_have_their_rates():
  steps_seen = slips = wrong = 0
  for problem, steps in demonstrations(
    count=2_000, slip_rate=0.05, wrong_operand_rate=0.03
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


def test_numbers_are_within_the_vocabulary():
  world = WorldConfig(
    max_operations=8, slip_rate=0.5, wrong_operand_rate=0.5, vacuous_rate=0.5
  )
  largest = 0
  for index in range(1_000):
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
def test_impossible_worlds_raise(changes, words):
  with pytest.raises(ValueError, match=words):
    WorldConfig(**changes)


def test_a_world_without_held_out_problems_raises():
  # It has seven problems, none of them in the held-out eighth.
  world = WorldConfig(min_operations=1, max_operations=1, operand_max=2)
  with pytest.raises(ValueError, match="There is no 'held_out' problem"):
    arithmetic.sample_problem(np.random.default_rng(0), world, "held_out")


def test_worlds_have_different_digests():
  worlds = [WorldConfig()]
  for field in dataclasses.fields(WorldConfig):
    value = getattr(worlds[0], field.name)
    change = 1 if isinstance(value, int) else 0.01
    worlds.append(
      dataclasses.replace(worlds[0], **{field.name: value + change})
    )
  assert len({world.digest() for world in worlds}) == len(worlds)
  assert WorldConfig().digest() == worlds[0].digest()
