r"""Untrusted texts never reach a terminal with characters that it obeys."""

import contextlib
import io
import json
import logging
import sys
import threading
import unicodedata
import warnings

import compare_credit
import evaluate
import grade
import pytest
from absl import flags
from absl.testing import flagsaver
from script_flags import parsed

from pure_jax.host.data import file_dataset
from pure_jax.host.data.formats import problems
from pure_jax.host.data.records import DataError
from pure_jax.host.evaluation.report import write_report
from pure_jax.host.logs import console
from pure_jax.host.logs.generations import Generation, render_generations
from pure_jax.host.logs.visible import markdown, visible
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.runs import exit_status

# A title, a cleared screen, an overwritten line, other orders and half a pair.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x00\r\x7f\x9b1m\u202eabc\u2066\u2028\ud800π"
SHOWN = (
  r"\x1b]0;owned\x07\x1b[2J\x00\x0d\u007f\u009b1m\u202eabc\u2066\u2028\ud800π"
)
FILE_NAME = "\x1b]0;owned\x07\x1b[2J\r\x7f\x9b\u202eπ"  # A name has no NUL.


def obeyed(text):
  """The characters of a text that a terminal obeys."""
  return {
    c
    for c in text
    if c not in "\n\t"
    and (
      unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
      or unicodedata.bidirectional(c)
      in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
    )
  }


def test_all_that_a_terminal_obeys_is_an_escape_and_nothing_else_changes():
  characters = [chr(code) for code in range(sys.maxunicode + 1)]
  marks = {"\u061c", "\u200e", "\u200f"}
  commands = obeyed(characters) | marks
  for c in characters:
    assert (visible(c) != c) == (c in commands), hex(ord(c))
  assert not obeyed(visible("".join(characters)))
  visible("".join(characters)).encode()
  assert visible(HOSTILE) == SHOWN


def test_json_stays_json():
  """Reports go to stdout as JSON, which has raw DEL and, perhaps, C1."""
  for is_ascii in (False, True):
    text = json.dumps({HOSTILE: [HOSTILE]}, indent=1, ensure_ascii=is_ascii)
    assert json.loads(visible(text)) == {HOSTILE: [HOSTILE]}
    assert not obeyed(visible(text))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", None])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_no_encoding_of_a_stream_stops_a_run(name, encoding, monkeypatch):
  """Half a pair cannot be written in any, and π not in ASCII."""
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, encoding) if encoding else io.StringIO()
  monkeypatch.setattr(sys, name, stream)
  {"stdout": console.show, "stderr": console.tell}[name](HOSTILE)
  text = raw.getvalue().decode(encoding) if encoding else stream.getvalue()
  is_unicode = encoding in (None, "utf-8")
  assert text == (SHOWN if is_unicode else SHOWN.replace("π", r"\u03c0")) + "\n"


def test_a_program_without_a_stream_says_nothing(monkeypatch):
  monkeypatch.setattr(sys, "stdout", None)
  monkeypatch.setattr(sys, "stderr", None)
  console.show("the result of hours")
  console.tell("done")


def tells(tmp_path):
  console.tell(f"a\n{HOSTILE}")


def shows(tmp_path):
  console.show(f"a\n{HOSTILE}")


def says(tmp_path):
  """A response, and the name of a data set next to the bar."""
  with console.Progress(HOSTILE, 2) as bar:
    bar.say(f"iteration 1: {HOSTILE}\n  score +0.90 {HOSTILE}")
    bar.advance()


def fails_in_data(tmp_path):
  """A malformed row of a file; both the row and the name are hostile."""
  path = tmp_path / f"{FILE_NAME}.jsonl"
  path.write_text(json.dumps({"question": HOSTILE}) + "\n")
  with exit_status.report_errors():
    file_dataset.read_file(problems.GSM8K, path, tmp_path / "data")


def skips_in_data(tmp_path):
  path = tmp_path / f"{FILE_NAME}.jsonl"
  good = {"question": "1+1?", "answer": "#### 2"}
  path.write_text(f"{HOSTILE[:-3]}\n{json.dumps(good)}\n")
  file_dataset.read_file(
    problems.GSM8K, path, tmp_path / "data", skip_malformed=True
  )


def has_no_tokenizer(tmp_path):
  with exit_status.report_errors():
    HuggingFaceTokenizer(tmp_path / FILE_NAME)


def raises(tmp_path):
  with exit_status.report_errors():
    raise DataError(HOSTILE)


def has_a_config_value(tmp_path):
  with (
    parsed(
      "evaluate.py",
      str(tmp_path),
      f"--config.policy={FILE_NAME}",
      f"--config.benchmarks.math500.file={FILE_NAME}.jsonl",
    ),
    exit_status.report_errors(),
  ):
    evaluate.main([])


def grades(tmp_path):
  """A name in the message; the answer is in the report."""
  flags.FLAGS.mark_as_parsed()
  path = tmp_path / FILE_NAME
  row = {"problem": HOSTILE, "answer": HOSTILE, "responses": ["\\boxed{1}"]}
  path.write_text(json.dumps(row | {"reference_correct": [True]}))
  with flagsaver.flagsaver(input=str(path)):
    grade.main(["grade.py"])
  with flagsaver.flagsaver(input=str(tmp_path / FILE_NAME / "absent")):
    grade.main(["grade.py"])


def compares(tmp_path):
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(workdir=str(tmp_path / FILE_NAME), report_only=True):
    compare_credit.main(["compare_credit.py"])


def logs(tmp_path):
  # Of half a pair the log itself makes an error.
  text = HOSTILE.replace("\ud800", "")
  logging.getLogger(__name__).warning("%s was made for %d", text, 1)


def ends_with_a_stack_trace(tmp_path):
  try:
    raise RuntimeError(HOSTILE)
  except RuntimeError as error:
    sys.excepthook(type(error), error, error.__traceback__)


def logs_a_stack_trace(tmp_path):
  try:
    raise RuntimeError(HOSTILE.replace("\ud800", ""))
  except RuntimeError:
    logging.getLogger(__name__).exception("failed")


def ends_in_a_thread(tmp_path):
  try:
    raise RuntimeError(HOSTILE)
  except RuntimeError as error:
    thread = threading.Thread(name=HOSTILE)
    threading.excepthook(
      threading.ExceptHookArgs(
        (type(error), error, error.__traceback__, thread)
      )
    )


def fails_where_nothing_can_be_raised(tmp_path):
  class Resource:
    def __del__(self):
      raise RuntimeError(HOSTILE)

  Resource()


def warns(tmp_path):
  warnings.warn(HOSTILE, stacklevel=1)


DOORS = (
  *(tells, shows, says, fails_in_data, skips_in_data, has_no_tokenizer),
  *(raises, has_a_config_value, grades, compares, logs),
  *(ends_with_a_stack_trace, logs_a_stack_trace, ends_in_a_thread),
  *(fails_where_nothing_can_be_raised, warns),
)


@pytest.fixture
def guarded_terminal(monkeypatch):
  """As a script has it; with a handler of the log that writes to stderr."""
  for module, name in (
    *((sys, "excepthook"), (sys, "unraisablehook")),
    *((threading, "excepthook"), (warnings, "showwarning")),
  ):
    monkeypatch.setattr(module, name, getattr(module, name))
  factory = logging.getLogRecordFactory()
  console.guard_terminal()
  # Its stream is what stderr is when it writes.
  handler, log = logging.lastResort, logging.getLogger(__name__)
  monkeypatch.setattr(log, "propagate", False)
  log.addHandler(handler)
  yield
  log.removeHandler(handler)
  logging.setLogRecordFactory(factory)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_no_way_to_print_lets_a_command_through(
  door, tmp_path, capsys, guarded_terminal
):
  with contextlib.suppress(SystemExit):
    door(tmp_path)
  out, err = capsys.readouterr()
  bars = err.replace("\r", "") if door in (says, grades) else err
  assert not obeyed(out + bars)
  assert r"\x1b]0;owned" in out + err


def test_a_file_for_people_can_be_shown(tmp_path):
  row = Generation(
    *(HOSTILE, HOSTILE, HOSTILE, HOSTILE, True, [HOSTILE, HOSTILE], 3),
    *(False, HOSTILE, True, [0.5]),
  )
  text = render_generations("rl_eval", 1, [row])
  assert not obeyed(text)
  # Benchmark twice, id, answer, reference, problem and two steps.
  assert text.count("owned") == 8
  accuracy = {"accuracy": {"value": 0.5, "count": 2}}
  # A subject of a file of problems; matplotlib reads $ as a formula.
  tables = {"short": {HOSTILE: accuracy, r"$\frac{$": accuracy}}
  write_report(tmp_path, HOSTILE, tables)
  assert not obeyed((tmp_path / "report.md").read_text())


def test_a_name_is_no_markup():
  """Of a model's folder, which is the title of a report."""
  text = markdown("<img src=x onerror=y> [a](b) `c` &lt; ~~d~~\n# e")
  assert text == (
    r"\<img src=x onerror=y\> \[a\](b) \`c\` \&lt; \~\~d\~\~ \# e"
  )
