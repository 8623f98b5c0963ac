"""The script that counts wrong answers that the grader accepts."""

import itertools
import json

import mutate_references
import pytest
from absl import flags
from absl.testing import flagsaver

REFERENCES = [r"\frac{1}{2}", "2s", "1010_2", "(2,5]", r"15\text{ cm}", "7"]


@pytest.fixture
def data(tmp_path):
  """A folder of data with a few references."""
  (tmp_path / "benchmarks").mkdir()
  (tmp_path / "math8k").mkdir()
  row = {"problem": "?", "solution": "!", "subject": "?", "level": 1}
  rows = [
    row | {"answer": answer, "unique_id": str(at)}
    for at, answer in enumerate(REFERENCES)
  ]
  for name, lines in (
    ("math500", rows), ("minerva_math", []), ("olympiadbench", []),
  ):  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "benchmarks" / f"{name}.jsonl").write_text(text)
  (tmp_path / "math8k" / "prompts.json").write_text("[]")
  return tmp_path


def run(capsys, **values):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  status = 0
  with flagsaver.flagsaver(**values):
    try:
      mutate_references.main(["mutate_references.py"])
    except SystemExit as ended:
      status = ended.code
  return status, *capsys.readouterr()


def test_the_result_counts_mutations_of_references_that_are_no_integers(
  data, capsys
):
  output = data / "result.json"
  status, stdout, stderr = run(capsys, references=str(data), result=str(output))
  assert status == 0, stderr
  result = json.loads(stdout)
  assert result == json.loads(output.read_text())
  assert result["references"] == len(REFERENCES) - 1
  assert result["mutations"] == 4 * (len(REFERENCES) - 1)
  assert result["accepted"] == len(result["pairs"]) == 0
  assert sum(row["mutations"] for row in result["by_kind"].values()) == 20
  assert f"{result['mutations']}/{result['mutations']}" in stderr


def common_start(left: str, right: str) -> int:
  """Returns how many characters two texts begin with alike."""
  pairs = zip(left, right, strict=False)
  return sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], pairs))


def test_mutations_change_one_place_and_depend_on_the_seed_only():
  for reference in REFERENCES:
    drawn = mutate_references.sample_mutations(reference, "0", 4)
    assert drawn == mutate_references.sample_mutations(reference, "0", 4)
    assert len({text for _, text in drawn}) == len(drawn)
    for _, text in drawn:
      # All but one place is the same from the front and from the back.
      front = common_start(reference, text)
      back = common_start(reference[::-1], text[::-1])
      changed = len(reference) - front - back
      assert text != reference and changed <= len(r"\text{ cm}")
  draws = [
    mutate_references.sample_mutations("12345678", seed, 4) for seed in "01"
  ]
  assert draws[0] != draws[1]
  all_of_one = mutate_references.sample_mutations("10_2", "", 99)
  kinds = {kind for kind, _ in all_of_one}
  assert {"base", "digit", "sign", "deletion"} <= kinds


@pytest.mark.parametrize(
  "left, right, same",
  [("0.50", ".5", True), ("1e5", "1E5", True), ("0, 1", "-0,1", True),
   ("2e5", "2e6", False), ("x+1", "x-1", False), ("(1,2)", "(1,2]", False),
   ("82.50", "82.5", True), ("05:00", "5:00", True)],
)  # fmt: skip
def test_spellings_of_the_same_numbers_are_told_without_the_grader(
  left, right, same
):
  assert mutate_references.same_numbers(left, right) is same


def test_missing_data_ends_in_a_sentence(tmp_path, capsys):
  status, stdout, stderr = run(capsys, references=str(tmp_path))
  assert (status, stdout) == (1, "") and "math500.jsonl" in stderr
  status, _, stderr = run(capsys, references="")
  assert status == 1 and "--references or PURE_SHARED_DATA" in stderr


def test_a_result_that_cannot_be_written_ends_before_grading(
  data, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(mutate_references, "grade_mutations", None)
  missing = tmp_path / "missing" / "result.json"
  status, stdout, stderr = run(
    capsys, references=str(data), result=str(missing)
  )
  assert (status, stdout) == (1, "") and str(missing) in stderr
