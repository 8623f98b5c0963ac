"""The script that grades a file: its report, its verdicts, its complaints."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import real_data
from checkout import ROOT

ROW = {"problem": "1+1?", "answer": "2", "responses": [r"\boxed{2}"]}


def grade(*arguments: object) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, str(ROOT / "experiments" / "grade.py"),
     *map(str, arguments)],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )  # fmt: skip


def write(path: pathlib.Path, *rows: object) -> pathlib.Path:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_the_report_and_every_verdict_by_hand(tmp_path):
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
  done = grade(
    f"--input={path}", f"--output={output}", "--timeout_seconds=2",
    "--workers=1", "--extractor=boxed", "--extractor=gsm8k_hash",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert {key: report[key] for key in list(report)[:7]} == {
    "items": 5, "correct": 2, "no_answer": 1, "timed_out": 1, "crashed": 0,
    "wrong": 1, "accuracy": 0.4,
  }  # fmt: skip
  assert report["seconds"] >= 2
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
  places = [(record["line"], record["response"]) for record in records]
  assert places == [(1, 0), (1, 1), (1, 2), (3, 0), (3, 1)]
  correct = [record["correct"] for record in records]
  assert correct == [True, False, False, False, True]
  assert [r["timed_out"] for r in records] == [False, False, True, False, False]
  assert "reference_correct" not in records[3]
  assert "5/5" in done.stderr  # Progress, to its end.


def test_the_real_file(tmp_path):
  path = real_data.require("graders/math_cot_even.jsonl")
  done = grade(f"--input={path}")
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
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
    (json.dumps(ROW) + "\n\nnot json\n", "in.jsonl:3: not JSON"),
    ("[" * 100_000, "in.jsonl:1: not JSON"),
    ("[]", "in.jsonl:1: not an object"),
    ("{}", "in.jsonl:1: problem and answer and responses missing"),
    (ROW | {"problem": 3}, "in.jsonl:1: problem is not text"),
    (ROW | {"answer": None}, "answer is neither"),
    (ROW | {"answer": True}, "answer is neither"),
    (ROW | {"answer": " "}, "answer is empty"),
    (ROW | {"answer": float("nan")}, "answer is nan, not a finite number"),
    (json.dumps(ROW).replace('"2"', "1e999"), "answer is inf, not a finite"),
    (ROW | {"responses": "text"}, "responses is not a list of texts"),
    (ROW | {"responses": [None]}, "responses is not a list of texts"),
    (ROW | {"reference_correct": [1]}, "is not a list of true and false"),
    (ROW | {"reference_correct": []}, "1 responses, 0 reference_correct"),
  ],
)
def test_input_that_cannot_be_graded_is_named(
  text, complaint, tmp_path, load_grade
):
  path = tmp_path / "in.jsonl"
  path.write_text(text if isinstance(text, str) else json.dumps(text))
  with pytest.raises(load_grade.InputError) as caught:
    load_grade.read_rows(path)
  assert complaint in str(caught.value)


def test_a_byte_order_mark_is_passed_over(tmp_path, load_grade):
  path = tmp_path / "in.jsonl"
  path.write_text(json.dumps(ROW), encoding="utf-8-sig")
  assert load_grade.read_rows(path) == [ROW | {"line": 1}]


def test_input_that_is_no_text_is_named(tmp_path, load_grade):
  binary = tmp_path / "in.jsonl"
  binary.write_bytes(b"\xff\xfe\x00")
  for path in (binary, tmp_path, tmp_path / "absent.jsonl"):
    with pytest.raises(load_grade.InputError, match="cannot be read"):
      load_grade.read_rows(path)


@pytest.fixture(scope="module")
def load_grade():
  """The script as a module; importing it parses no flags."""
  sys.path.insert(0, str(ROOT / "experiments"))
  try:
    import grade as module
  finally:
    sys.path.pop(0)
  return module


@pytest.mark.parametrize(
  "arguments, complaint",
  [
    (["--input={bad}"], "in.jsonl:2: answer is empty"),
    (
      ["--input={good}", "--output={folder}/no/out.jsonl"],
      "there is no folder",
    ),
    (["--input={good}", "--output={folder}"], "is a folder"),
    (["--input={good}", "--output={good}"], "which would be lost"),
    (
      ["--input={good}", "--output={folder}/../{folder.name}/good.jsonl"],
      "which would be lost",
    ),
  ],
)
def test_complaints_are_sentences_and_nothing_is_written(
  arguments, complaint, tmp_path
):
  good = write(tmp_path / "good.jsonl", ROW)
  bad = write(tmp_path / "in.jsonl", ROW, ROW | {"answer": ""})
  places = {"good": good, "bad": bad, "folder": tmp_path}
  before = good.read_bytes()
  done = grade(*(argument.format(**places) for argument in arguments))
  assert good.read_bytes() == before
  assert done.returncode == 1
  assert done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert complaint in done.stderr and "Traceback" not in done.stderr
  assert sorted(tmp_path.iterdir()) == [good, bad]


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e9", "0", "-1"])
def test_a_time_limit_that_is_none_is_refused(seconds, tmp_path):
  path = write(tmp_path / "in.jsonl", ROW)
  done = grade(f"--input={path}", f"--timeout_seconds={seconds}")
  assert done.returncode == 1
  assert "must be above 0 and at most 3600" in done.stderr
  assert "Traceback" not in done.stderr


def start(*arguments: object) -> subprocess.Popen:
  """The script in a process group of its own, which takes SIGINT."""
  # A shell's background job ignores it, and so would what it starts.
  handler = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    return subprocess.Popen(
      [sys.executable, str(ROOT / "experiments" / "grade.py"),
       *map(str, arguments)],
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )  # fmt: skip
  finally:
    signal.signal(signal.SIGINT, handler)


def test_ctrl_c_ends_in_a_word(tmp_path):
  rows = [ROW | {"responses": [r"\boxed{9^{9^{9^9}}}"]}] * 4
  path = write(tmp_path / "in.jsonl", *rows)
  process = start(f"--input={path}", "--timeout_seconds=60")
  said = ""
  while "0/4" not in said:  # Until the workers work.
    letter = process.stderr.read(1)
    assert letter, said
    said += letter
  os.killpg(process.pid, signal.SIGINT)
  stdout, stderr = process.communicate(timeout=60)
  assert (process.returncode, stdout) == (130, "")
  assert stderr.splitlines()[-1] == "stopped" and "Traceback" not in stderr


def test_a_reader_that_leaves_is_no_error(tmp_path):
  process = start(f"--input={write(tmp_path / 'in.jsonl', ROW)}")
  process.stdout.close()
  stderr = process.stderr.read()
  assert process.wait(60) == 1
  assert "Broken" not in stderr and "Traceback" not in stderr
