"""The script that grades a file: report, verdicts, invalid input, signals."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import grade
import pytest
import real_data
from absl import flags
from absl.testing import flagsaver
from checkout import ROOT

PROBLEM = {"problem": "1+1?", "answer": "2", "responses": [r"\boxed{2}"]}


@pytest.fixture
def run_grade(capsys):
  """Runs the script in this process: (exit status, stdout, stderr)."""

  def run(**values):
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    status = 0
    with flagsaver.flagsaver(**values):
      try:
        grade.main(["grade.py"])
      except SystemExit as ended:
        status = ended.code
    return status, *capsys.readouterr()

  return run


def write(path: pathlib.Path, *rows: object) -> pathlib.Path:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_the_report_and_every_verdict_by_hand(tmp_path, run_grade):
  rows = [
    {
      "problem": "1/2+1/2?",
      "answer": "1",
      "responses": [r"\boxed{\frac22}", "It is 1.", r"\boxed{9^{9^{9^9}}}"],
      "reference_correct": [True, True, False],
    },
    {"problem": "2+2?", "answer": 4, "responses": [r"\boxed{5}", "#### 4"]},
    {"problem": "?", "answer": "1", "responses": []},
  ]
  path = write(tmp_path / "in.jsonl", *rows)
  path.write_text(path.read_text().replace("\n", "\n\n"))  # Blank lines.
  output = tmp_path / "out.jsonl"
  status, stdout, stderr = run_grade(
    input=str(path),
    output=str(output),
    timeout_seconds=0.5,
    workers=1,
    extractor=["boxed", "gsm8k_hash"],
  )
  assert status == 0, stderr
  report = json.loads(stdout)
  assert {key: report[key] for key in list(report)[:7]} == {
    "items": 5, "correct": 2, "no_answer": 1, "timed_out": 1, "crashed": 0,
    "wrong": 1, "accuracy": 0.4,
  }  # fmt: skip
  assert report["seconds"] >= 0.5
  assert report["items_per_second"] == pytest.approx(
    5 / report["seconds"],
    abs=0.06,  # Rounded to a tenth.
  )
  assert report["agreement"] == {"agree": 2, "of": 3}
  (difference,) = report["disagreements"]
  assert difference == {
    "line": 1, "response": 1, "answer": "1", "extracted": None,
    "correct": False, "timed_out": False, "failure": None,
    "reference_correct": True,
  }  # fmt: skip
  records = [json.loads(line) for line in output.read_text().splitlines()]
  keys = [(record["line"], record["response"]) for record in records]
  assert keys == [(1, 0), (1, 1), (1, 2), (3, 0), (3, 1)]
  correct = [record["correct"] for record in records]
  assert correct == [True, False, False, False, True]
  assert [r["timed_out"] for r in records] == [False, False, True, False, False]
  assert "reference_correct" not in records[3]
  assert "5/5" in stderr  # Progress, to its end.


def test_the_real_file(run_grade):
  path = real_data.require("graders/math_cot_even.jsonl")
  status, stdout, stderr = run_grade(input=str(path))
  assert status == 0, stderr
  report = json.loads(stdout)
  assert report["agreement"]["of"] == 400
  assert report["agreement"]["agree"] >= 399
  # `test_verify.EXPLAINED` says why; lines begin at 1.
  (difference,) = report["disagreements"]
  assert (difference["line"], difference["response"]) == (37, 7)


@pytest.mark.parametrize(
  "text, complaint",
  [
    ("", "has no rows"),
    ("\n\n", "has no rows"),
    ("{", "in.jsonl:1: not JSON"),
    (json.dumps(PROBLEM) + "\n\nnot json\n", "in.jsonl:3: not JSON"),
    ("[" * 100_000, "in.jsonl:1: not JSON"),
    ("[]", "in.jsonl:1: not an object"),
    ("{}", "in.jsonl:1: problem and answer and responses missing"),
    (PROBLEM | {"problem": 3}, "in.jsonl:1: problem is not text"),
    (PROBLEM | {"answer": None}, "answer is neither"),
    (PROBLEM | {"answer": True}, "answer is neither"),
    (PROBLEM | {"answer": " "}, "answer is empty"),
    (PROBLEM | {"answer": float("nan")}, "answer is nan, not a finite number"),
    (
      json.dumps(PROBLEM).replace('"2"', "1e999"),
      "answer is inf, not a finite",
    ),
    (PROBLEM | {"responses": "text"}, "responses is not a list of texts"),
    (PROBLEM | {"responses": [None]}, "responses is not a list of texts"),
    (PROBLEM | {"reference_correct": [1]}, "is not a list of true and false"),
    (PROBLEM | {"reference_correct": []}, "1 responses, 0 reference_correct"),
  ],
)
def test_invalid_input_is_reported_with_its_line(text, complaint, tmp_path):
  path = tmp_path / "in.jsonl"
  path.write_text(text if isinstance(text, str) else json.dumps(text))
  with pytest.raises(grade.InputError) as caught:
    grade.read_rows(path)
  assert complaint in str(caught.value)


def test_a_byte_order_mark_is_skipped(tmp_path):
  path = tmp_path / "in.jsonl"
  path.write_text(json.dumps(PROBLEM), encoding="utf-8-sig")
  (row,) = grade.read_rows(path)
  assert dataclasses.asdict(row) == {
    "line": 1,
    "answer": "2",
    "responses": [r"\boxed{2}"],
    "reference_correct": None,
  }


def test_input_that_is_no_text_is_reported(tmp_path):
  binary = tmp_path / "in.jsonl"
  binary.write_bytes(b"\xff\xfe\x00")
  for path in (binary, tmp_path, tmp_path / "absent.jsonl"):
    with pytest.raises(grade.InputError, match="cannot be read"):
      grade.read_rows(path)


@pytest.mark.parametrize(
  "values, complaint",
  [
    ({"input": "{bad}"}, "in.jsonl:2: answer is empty"),
    (
      {"input": "{good}", "output": "{folder}/no/out.jsonl"},
      "there is no folder",
    ),
    ({"input": "{good}", "output": "{folder}"}, "is a folder"),
    ({"input": "{good}", "output": "{good}"}, "which would be lost"),
    (
      {"input": "{good}", "output": "{folder}/../{folder.name}/good.jsonl"},
      "which would be lost",
    ),
  ],
)
def test_invalid_arguments_end_in_a_sentence_and_write_nothing(
  values, complaint, tmp_path, run_grade
):
  good = write(tmp_path / "good.jsonl", PROBLEM)
  bad = write(tmp_path / "in.jsonl", PROBLEM, PROBLEM | {"answer": ""})
  paths = {"good": good, "bad": bad, "folder": tmp_path}
  before = good.read_bytes()
  values = {name: value.format(**paths) for name, value in values.items()}
  status, stdout, stderr = run_grade(**values)
  assert good.read_bytes() == before
  assert (status, stdout) == (1, "")
  assert stderr.startswith("error: ") and stderr.count("\n") == 1
  assert complaint in stderr
  assert sorted(tmp_path.iterdir()) == [good, bad]


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e9", "0", "-1"])
def test_an_invalid_time_limit_is_rejected(seconds):
  with (
    flagsaver.flagsaver(),
    pytest.raises(
      flags.IllegalFlagValueError, match=r"must be between 0\.01 and 3600"
    ),
  ):
    flags.FLAGS["timeout_seconds"].parse(seconds)
    flags.FLAGS.validate_all_flags()


def start(*arguments: object) -> subprocess.Popen:
  """Starts the script in a process group of its own, which takes SIGINT."""
  # A shell's background job ignores it, and so would what it starts.
  handler = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    return subprocess.Popen(
      [
        sys.executable,
        str(ROOT / "experiments" / "grade.py"),
        *map(str, arguments),
      ],
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
  finally:
    signal.signal(signal.SIGINT, handler)


def test_ctrl_c_exits_with_130_and_one_word(tmp_path):
  rows = [PROBLEM | {"responses": [r"\boxed{9^{9^{9^9}}}"]}] * 4
  path = write(tmp_path / "in.jsonl", *rows)
  process = start(f"--input={path}", "--timeout_seconds=60")
  progress = ""
  while "0/4" not in progress:  # Until the workers work.
    character = process.stderr.read(1)
    assert character, progress
    progress += character
  os.killpg(process.pid, signal.SIGINT)
  stdout, stderr = process.communicate(timeout=60)
  assert (process.returncode, stdout) == (130, "")
  assert stderr.splitlines()[-1] == "stopped" and "Traceback" not in stderr


def test_a_closed_stdout_gives_no_traceback(tmp_path):
  process = start(f"--input={write(tmp_path / 'in.jsonl', PROBLEM)}")
  process.stdout.close()
  stderr = process.stderr.read()
  assert process.wait(60) == 1
  assert "Broken" not in stderr and "Traceback" not in stderr
