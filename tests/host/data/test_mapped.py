"""Formats by a mapping of field names, and formats by name."""

import pytest

from pure_jax.host.data.formats import Format, mapped, named
from pure_jax.host.data.records import LabelledSolution, Problem


def test_a_mapping_reads_any_field_of_a_problem():
  mapping = {
    "id": "n",
    "problem": "q",
    "answer": "a",
    "level": "l",
    "tolerance": "t",
    "several_answers": "s",
    "subject": "topic",
  }
  kind = mapped.make_format(Problem, mapping, source="own")
  row = {"n": 7, "q": " q ", "a": 0.5, "l": 3, "t": 1, "s": True, "topic": ""}
  (problem,) = kind.parse(row, 0)
  expected = Problem("7", "own", "q", "0.5", None, True, 1.0, level=3)
  assert problem == expected
  row |= dict.fromkeys(["a", "l", "t", "topic"])
  (problem,) = kind.parse(row, 0)
  assert problem == Problem("7", "own", "q", several_answers=True)


def test_a_mapping_reads_steps_with_and_without_labels():
  mapping = {"problem": "q", "steps": "s", "labels": "l", "final_correct": "f"}
  kind = mapped.make_format(LabelledSolution, mapping, source="own")
  row = {"q": "q", "s": ["a", "b", "c", "d", "e"], "f": None}
  (solution,) = kind.parse(row | {"l": [True, False, None, 1, 0]}, 3)
  assert solution.labels == (1, 0, None, 1, 0)
  assert (solution.id, solution.source) == ("own/3", "own")
  assert solution.final_correct is None
  del mapping["labels"]
  kind = mapped.make_format(LabelledSolution, mapping, source="own")
  (solution,) = kind.parse(row, 0)
  assert solution.labels == (None,) * 5


@pytest.mark.parametrize(
  "row, reason",
  [
    ({"q": "q", "s": ["a"], "l": [-1]}, "label -1 is not true, false, 1, 0"),
    ({"q": "q", "s": ["a"], "l": [1.0]}, r"label 1\.0 is not true"),
    ({"q": "q", "s": ["a"], "l": [[1]]}, r"label \[1\] is not true"),
    ({"q": "q", "s": ["a"], "l": [1, 1]}, "1 steps, 2 labels"),
    ({"q": "q", "s": ["a"]}, "field 'l' is missing"),
    ({"q": None, "s": ["a"], "l": [1]}, "field 'q' is null"),
    ({"q": 7, "s": ["a"], "l": [1]}, "field 'q' is a number, not text"),
  ],
)
def test_rows_that_do_not_fit_the_mapping_raise(row, reason):
  mapping = {"problem": "q", "steps": "s", "labels": "l"}
  kind = mapped.make_format(LabelledSolution, mapping, source="own")
  with pytest.raises(ValueError, match=reason):
    kind.parse(row, 0)


@pytest.mark.parametrize(
  "record, mapping, words",
  [
    (Problem, {"problem": "q", "anwser": "a"}, r"Unknown: \['anwser'\]"),
    (Problem, {"answer": "a"}, r"missing: \['problem'\]"),
    (LabelledSolution, {"problem": "q"}, r"missing: \['steps'\]"),
    (
      LabelledSolution,
      {"problem": "q", "steps": "s", "level": "l"},
      r"\['level'\]",
    ),
    (Problem, {"problem": "q", "source": "s"}, r"Unknown: \['source'\]"),
  ],
)
def test_mappings_that_do_not_fit_the_record_raise(record, mapping, words):
  with pytest.raises(ValueError, match=words):
    mapped.make_format(record, mapping, source="own")


def test_names_that_no_folder_can_have_raise():
  with pytest.raises(ValueError, match=r"letters, digits and _, not 'a/b'"):
    mapped.make_format(Problem, {"problem": "q"}, source="a/b")
  with pytest.raises(ValueError, match="letters, digits and _, not ''"):
    Format("", 1, Problem, lambda row, number: [])


def test_formats_by_name_and_only_mapped_ones_take_a_mapping():
  mapping = {"problem": "q", "steps": "s"}
  steps = named.find_format("mapped_steps", mapping)
  assert steps.record is LabelledSolution and steps.name == "mapped_steps"
  other = named.find_format("mapped_steps", mapping | {"labels": "l"})
  assert steps.options != other.options  # Or they would share prepared data.
  for record in (Problem, LabelledSolution):
    for name in named.format_names(record):
      if name not in named.MAPPED:
        assert named.find_format(name).record is record
  for name, fields, words in (
    (
      "mapped_steps",
      None,
      "needs a mapping from the fields of LabelledSolution",
    ),
    ("mapped_steps", {"steps": "s"}, r"missing: \['problem'\]"),
    ("gsm8k", mapping, "'gsm8k' knows its fields: leave the mapping out"),
    ("gsm9k", None, "there is no format 'gsm9k', only gsm8k, "),
  ):
    with pytest.raises(ValueError, match=words):
      named.find_format(name, fields)
