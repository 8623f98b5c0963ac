"""The labelled solutions of PRM800K lines, by hand and on real lines."""

import collections
import copy

import pytest
import real_data

from pure_jax.host.data.formats import prm800k
from pure_jax.host.data.formats.named import find_format
from pure_jax.host.data.sources import read_rows


def completion(text, rating, flagged=False):
  return {"text": text, "rating": rating, "flagged": flagged}


def step(*completions, chosen=None, human=None):
  """A step of a label; a human completion is given by its text."""
  if human is not None:
    human = {"text": human, "rating": None, "source": "human", "flagged": False}
  return {
    "completions": list(completions),
    "chosen_completion": chosen,
    "human_completion": human,
  }


def line(*steps, finish="solution", quality_control=False, screening=False):
  return {
    "labeler": "x",
    "generation": None,
    "is_quality_control_question": quality_control,
    "is_initial_screening_question": screening,
    "question": {"problem": "1+1?", "ground_truth_answer": "2"},
    "label": {"steps": list(steps), "total_time": 1, "finish_reason": finish},
  }


def solutions(steps, **options):
  """The solutions of a line: (text, label) of each of their steps."""
  rows = prm800k.make_format(**options).parse(line(*steps), 0)
  return [list(zip(row.steps, row.labels, strict=True)) for row in rows]


GOOD, NEUTRAL, BAD = (
  completion("good", 1),
  completion("neutral", 0),
  completion("bad", -1),
)


@pytest.mark.parametrize(
  "steps, expected",
  [
    # The solution continues with the chosen one, and is the last row. Neutral
    # is good.
    (
      [step(GOOD, chosen=0), step(BAD, NEUTRAL, GOOD, chosen=1)],
      [
        [("good", 1), ("bad", 0)],
        [("good", 1), ("good", 1)],
        [("good", 1), ("neutral", 1)],
      ],
    ),
    # None is chosen: the solution continues with the human one, which is good.
    (
      [step(BAD, BAD, human="own"), step(NEUTRAL, chosen=0)],
      [[("bad", 0)], [("bad", 0)], [("own", 1), ("neutral", 1)]],
    ),
    # If one is chosen, the human one was not used.
    ([step(GOOD, chosen=0, human="own")], [[("good", 1)]]),
    # Neither: the solution ends, and its alternatives contain it.
    (
      [step(NEUTRAL, chosen=0), step(BAD, GOOD)],
      [[("neutral", 1), ("bad", 0)], [("neutral", 1), ("good", 1)]],
    ),
    # Given up before any rating: the solution is a row of its own.
    (
      [
        step(GOOD, chosen=0),
        step(completion("a", None), completion("b", None)),
      ],
      [[("good", 1)]],
    ),
    # A bad step was chosen: the solution ends, its alternatives are rows.
    (
      [step(BAD, GOOD, chosen=0), step(GOOD, chosen=0)],
      [[("good", 1)], [("bad", 0)]],
    ),
    # Unsure or unrated: no row, or a step without a label if it was chosen.
    (
      [
        step(completion("unsure", -1, flagged=True), GOOD, chosen=0),
        step(completion("unrated", None), completion("unsure", 1, True)),
      ],
      [[("good", 1)]],
    ),
    (
      [
        step(completion("unsure", -1, flagged=True), chosen=0),
        step(completion("unrated", None, flagged=None), chosen=0),
        step(GOOD, chosen=0),
      ],
      [[("unsure", None), ("unrated", None), ("good", 1)]],
    ),
    # Blank lines would cut a step in two.
    (
      [step(completion("29.\n\n# Answer\n\n29", 1), chosen=0)],
      [[("29.\n# Answer\n29", 1)]],
    ),
    # Steps may have no completions.
    ([step(GOOD, chosen=0), step() | {"completions": None}], [[("good", 1)]]),
    ([step() | {"completions": None}], []),
    ([], []),
  ],
)
def test_rows_of_a_line_by_hand(steps, expected):
  assert solutions(steps) == expected


def test_a_flagged_human_step_has_no_label():
  unsure = step(human="own")
  unsure["human_completion"]["flagged"] = True
  rows = solutions([unsure, step(BAD, chosen=0)])
  assert rows == [[("own", None), ("bad", 0)]]


@pytest.mark.parametrize(
  ("neutral_labels", "expected"),
  [
    (
      "good",
      [
        [("good", 1)],
        [("neutral", 1), ("neutral", 1)],
        [("neutral", 1), ("good", 1)],
      ],
    ),
    # A neutral step is the first bad one, so the solution ends with it.
    ("bad", [[("good", 1)], [("neutral", 0)]]),
    # Like a step that the labeler was unsure of.
    (
      "unlabelled",
      [
        [("good", 1)],
        [("neutral", None), ("good", 1)],
      ],
    ),
  ],
)
def test_neutral_steps_are_good_bad_or_unlabelled(neutral_labels, expected):
  steps = [step(NEUTRAL, GOOD, chosen=0), step(NEUTRAL, GOOD, chosen=1)]
  assert solutions(steps, neutral_labels=neutral_labels) == expected
  unsure = step(completion("neutral", 0, flagged=True), chosen=0)
  rows = solutions([unsure, step(GOOD, chosen=0)], neutral_labels="bad")
  assert rows == [[("neutral", None), ("good", 1)]]


def test_a_line_of_neutral_steps_without_labels_has_no_solution():
  steps = [step(NEUTRAL, chosen=0), step(NEUTRAL, NEUTRAL, chosen=1)]
  assert solutions(steps, neutral_labels="unlabelled") == []


def test_only_prm800k_has_neutral_labels():
  """A name that changes nothing would be taken for one that does."""
  default, bad = (find_format("prm800k", None, n) for n in ("good", "bad"))
  assert default.options != bad.options  # Other prepared data.
  row = line(step(NEUTRAL, chosen=0))
  assert [f.parse(row, 0)[0].labels for f in (default, bad)] == [(1,), (0,)]
  with pytest.raises(ValueError, match=r"one of .*'unlabelled'.*, not 'goood'"):
    find_format("prm800k", None, "goood")
  for name in ("stepwise", "mapped_steps"):
    with pytest.raises(ValueError, match=f"needs .*'prm800k', not {name!r}"):
      find_format(name, None, "bad")


@pytest.mark.parametrize(
  "row, options",
  [
    (line(step(GOOD, chosen=0), quality_control=True), "quality_control"),
    (line(step(GOOD, chosen=0), screening=True), "screening"),
    (line(step(GOOD, chosen=0), finish="bad_problem"), "bad_problems"),
  ],
)
def test_lines_are_left_out_unless_an_option_includes_them(row, options):
  assert prm800k.make_format().parse(row, 0) == []
  (solution,) = prm800k.make_format(**{options: True}).parse(row, 0)
  assert (solution.steps, solution.labels) == (("good",), (1,))
  assert solution.answer == "2"
  names = {"quality_control", "screening", "bad_problems"}
  others = dict.fromkeys(names - {options}, True)
  assert prm800k.make_format(**others).parse(row, 0) == []


def test_options_make_another_data_set():
  assert (
    prm800k.make_format().options
    != prm800k.make_format(screening=True).options
    != prm800k.make_format(quality_control=True).options
    != prm800k.make_format(neutral_labels="bad").options
    != prm800k.make_format(neutral_labels="unlabelled").options
  )


@pytest.mark.parametrize(
  "change, reason",
  [
    (lambda r: r.pop("label"), "field 'label' is missing"),
    (lambda r: r.update(question=None), "'question' is null, not an object"),
    (lambda r: r["label"].update(steps=3), "'steps' is a number, not a list"),
    (lambda r: r["label"]["steps"].append(3), "step 2: it is not an object"),
    (
      lambda r: r["label"]["steps"][0].update(chosen_completion=2),
      "step 1: chosen_completion is 2, with 2 completions",
    ),
    (
      lambda r: r["label"]["steps"][0].update(chosen_completion=-1),
      "step 1: chosen_completion is -1",
    ),
    (
      lambda r: r["label"]["steps"][0]["completions"][1].update(rating=2),
      "step 1: completion 2: the rating is 2, not 1, 0, -1 or null",
    ),
    (
      lambda r: r["label"]["steps"][0]["completions"][1].update(rating=[1]),
      "step 1: completion 2: field 'rating' is a list",
    ),
    (
      lambda r: r["label"]["steps"][0]["completions"][0].update(text="\n"),
      "step 1: completion 1: field 'text' is empty",
    ),
    (
      lambda r: r["label"]["steps"][0]["completions"].append("text"),
      "step 1: completion 3: a completion is not an object",
    ),
  ],
)
def test_malformed_lines_raise_with_step_and_completion(change, reason):
  row = copy.deepcopy(line(step(GOOD, BAD, chosen=0)))
  change(row)
  with pytest.raises(ValueError, match=reason):
    prm800k.make_format().parse(row, 0)


@pytest.fixture(scope="module")
def real():
  """The solutions of each of the four real lines."""
  path = real_data.require("prm800k/rows.jsonl")
  parse = prm800k.make_format().parse
  return [parse(raw.row, i) for i, raw in enumerate(read_rows(path))]


def test_real_lines_make_the_solutions_counted_by_hand(real):
  # Per step, candidates with a rating that do not continue it, and the
  # solution itself unless a later row contains it:
  #   1: 5 + 4 at steps 2 and 6, + 1
  #   2: 5+6+7+6+6+7+7+7+7+7+6+6+7+4 at steps 2, 6, 7, 8, 11, 15, 19, 20, 22,
  #      23, 25, 26, 27, 28; the 7 of step 30 are unrated (given up), + 1
  #   3: 7 + 6 + 4 + 6 at steps 1, 2, 5, 6, + 1
  #   4: 4 at step 7, where the error was found; they contain the solution
  assert [len(rows) for rows in real] == [10, 89, 24, 4]
  # -1 by hand: 5; 1+7+6+3+7+6+1+2+5+5+4+4; 2+4+5; 1.
  bad = [sum(0 in row.labels for row in rows) for rows in real]
  assert bad == [5, 51, 11, 1]


@pytest.mark.parametrize(
  ("neutral_labels", "num_rows", "num_bad"),
  [
    # Neutral by hand, in lines 1 to 3: 1; 5+5+5+4+1+6+5+1+3; 7+1. The last line
    # now ends at its second step.
    ("bad", [10, 89, 24, 1], [5 + 1, 51 + 35, 11 + 8, 1]),
    # Neutral candidates make no row of their own.
    ("unlabelled", [10 - 1, 89 - 35, 24 - 8, 4], [5, 51, 11, 1]),
  ],
)
def test_neutral_labels_of_real_lines_counted_by_hand(
  neutral_labels, num_rows, num_bad
):
  path = real_data.require("prm800k/rows.jsonl")
  parse = prm800k.make_format(neutral_labels=neutral_labels).parse
  lines = [parse(raw.row, i) for i, raw in enumerate(read_rows(path))]
  assert [len(rows) for rows in lines] == num_rows
  bad = [sum(0 in row.labels for row in rows) for rows in lines]
  assert bad == num_bad
  # The last line continues with a neutral step.
  labels = [row.labels[1] for row in lines[3]]
  expected = prm800k.NEUTRAL_LABELS[neutral_labels]
  assert labels == [expected] * num_rows[3]


def test_real_rows_end_with_their_first_error(real):
  for rows in real:
    for row in rows:
      assert 0 not in row.labels[:-1] and None not in row.labels
      assert "\n\n".join(row.steps).split("\n\n") == list(row.steps)


def test_real_lengths_follow_the_steps_of_the_solution(real):
  lengths = [collections.Counter(len(r.steps) for r in rows) for rows in real]
  assert lengths[0] == {2: 5, 6: 5}
  assert lengths[2] == {1: 7, 2: 6, 5: 4, 6: 7}
  assert lengths[3] == {7: 4}
  # The given-up solution stops before its 30th step.
  assert max(lengths[1]) == 29 and lengths[1][29] == 1


@pytest.mark.parametrize(
  ("flag", "option"),
  [
    ("is_quality_control_question", "quality_control"),
    ("is_initial_screening_question", "screening"),
  ],
)
def test_a_flag_set_on_a_real_line_leaves_out_all_its_rows(real, flag, option):
  """None of the four real lines has a flag set."""
  path = real_data.require("prm800k/rows.jsonl")
  lines = [raw.row for raw in read_rows(path)]
  assert [line[flag] for line in lines] == [False] * 4
  flagged = lines[2] | {flag: True}
  assert prm800k.make_format().parse(flagged, 2) == []
  # The option gives the rows of the line without the flag.
  assert prm800k.make_format(**{option: True}).parse(flagged, 2) == real[2]
  (other,) = {"quality_control", "screening"} - {option}
  assert prm800k.make_format(**{other: True}).parse(flagged, 2) == []


def test_a_human_step_continues_the_real_solution(real):
  solution = real[0][-1]
  assert solution.steps[1].startswith("We have $3p+e=1.24$")
  assert solution.labels == (1,) * 6
  assert solution.steps[-1].endswith("29 cents.\n# Answer\n29")
  assert solution.answer == "29" and 0 not in solution.labels
  # The five candidates that it replaced are bad after a good first step.
  assert [row.labels for row in real[0][:5]] == [(1, 0)] * 5


def test_the_error_found_in_a_real_solution_is_its_last_step(real):
  wrong, *alternatives = real[3]
  assert wrong.labels == (1,) * 6 + (0,)
  # Its second step was rated 0.
  assert wrong.steps[1].startswith("I wonder how many ways")
  assert [row.labels for row in alternatives] == [(1,) * 7] * 3
