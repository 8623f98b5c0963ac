"""The evaluation of a policy: its numbers, restarts, continuous batching."""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import signal
import time

import evaluate
import evaluation_by_hand
import numpy as np
import pytest
import real_data
from policy_evaluations import responses, smoke, start_process

from pure_jax.host.evaluation import report
from pure_jax.host.evaluation.record_file import RecordFileError
from pure_jax.host.logs.console import Progress
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.runs.evaluation import requests
from pure_jax.runs.evaluation.generation import ResponseGenerator
from pure_jax.runs.workdir import WorkdirError

REPORTS = ("report.json", "report.md")


@dataclasses.dataclass(frozen=True)
class Finished:
  """A finished evaluation.

  Attributes:
    workdir: its folder, not to be changed.
    stdout: what it printed.
    stderr: its progress.
    generator: the generator it made, with what that compiled.
    drawn: (tokens shown, responses that ended since) at each report.
  """

  workdir: pathlib.Path
  stdout: str
  stderr: str
  generator: ResponseGenerator
  drawn: list[tuple[int, int]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """One finished evaluation."""
  workdir = tmp_path_factory.mktemp("evaluations") / "finished"
  stdout, stderr, generators = io.StringIO(), io.StringIO(), []
  drawn = []

  class RecordingProgress(Progress):
    """Notes what is shown at each report."""

    def show(self, metrics):
      drawn.append((metrics["tokens"], 0))
      super().show(metrics)

    def advance(self, steps=1):
      drawn[-1] = (drawn[-1][0], steps)
      super().advance(steps)

  def make_generator(*arguments):
    generators.append(ResponseGenerator(*arguments))
    return generators[0]

  with (
    pytest.MonkeyPatch.context() as patch,
    contextlib.redirect_stdout(stdout),
    contextlib.redirect_stderr(stderr),
  ):
    patch.setattr(evaluate, "ResponseGenerator", make_generator)
    patch.setattr(evaluate, "Progress", RecordingProgress)
    evaluate.evaluate(smoke(progress=True), str(workdir))
  (generator,) = generators
  texts = stdout.getvalue(), stderr.getvalue()
  return Finished(workdir, *texts, generator, drawn)


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
  """Pictures take seconds; `test_report` and `test_evaluate_prm` draw them."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, "plot_tables", lambda *unused: [])
    yield


@pytest.fixture(scope="module")
def tiny(finished):
  """The folder of the random model and its problems."""
  return finished.workdir / "tiny"


def test_every_number_follows_from_the_responses(finished):
  workdir = finished.workdir
  rows = responses(workdir)
  # Two benchmarks of 6 problems, one greedy response and 4 samples each.
  assert len(rows) == 2 * 6 * (1 + 4)
  names = ["tiny_math500", "tiny_math8k"]
  tables = json.loads((workdir / "report.json").read_text())["tables"]
  expected = evaluation_by_hand.tables(rows, (2, 4), names, 0, 200)
  evaluation_by_hand.assert_same(tables, expected)
  # Responses differ in what the metrics measure.
  for field in ("correct", "truncated"):
    assert len({row[field] for row in rows}) == 2, field
  assert any(row["answer"] is None for row in rows)
  assert all(row["step_rewards"] for row in rows)
  assert {row["level"] for row in rows} == {1}
  text = (workdir / "report.md").read_text()
  for name in ("pass@4", "weighted maj@4 softmin", "average", "by level"):
    assert name in text and name in finished.stdout
  assert "evaluate: 100%" in finished.stderr
  assert "60/60" in finished.stderr and "tokens=" in finished.stderr


def test_the_bar_moves_within_a_batch(finished):
  """128 responses of a 0.5B model on two cores were eight minutes of 0 %."""
  tokens, steps = zip(*finished.drawn, strict=True)
  rows = responses(finished.workdir)
  # Four batches of up to 24 tokens, with a report after 1, 9, 17 and 24.
  assert len(tokens) == 16 and sum(steps) == len(rows) == 60
  assert list(tokens) == sorted({*tokens})
  assert tokens[0] == 12  # The first token of each greedy response.
  assert tokens[-1] == sum(row["tokens"] for row in rows)
  # Within a batch of samples some responses end earlier than others.
  assert any(steps[i] and steps[i + 1] for i in range(15) if i % 4 != 3)


def test_an_evaluation_cut_inside_a_line_ends_as_one_that_was_not(
  finished, tmp_path, monkeypatch
):
  """A kill leaves half a batch, a cut last line and no report."""
  workdir = tmp_path / "cut"
  shutil.copytree(finished.workdir, workdir)
  path = workdir / "responses.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  # Batches have 12 (greedy), 16, 16 and 16 rows: it is cut 5 into the last.
  path.write_bytes(b"".join(lines[:49]) + lines[49][:40])
  for name in REPORTS:
    (workdir / name).unlink()
  generator, batch_sizes, columns = finished.generator, [], []

  class Recorder:
    """The generator of the finished evaluation, recording batch sizes."""

    def __init__(self, settings, *unused):
      columns.append((settings.prompt_tokens, settings.prm_prompt_tokens))

    def start(self, batch, rows, on_progress):
      batch_sizes.append(len(batch))
      return generator.start(batch, rows, on_progress)

  monkeypatch.setattr(evaluate, "ResponseGenerator", Recorder)
  evaluate.evaluate(smoke(), str(workdir))
  assert batch_sizes == [16]  # The same batch, not the rest of it.
  assert columns == [(128, 32)]  # No more than the prompts need.
  for name in (*REPORTS, "responses.jsonl"):
    expected = (finished.workdir / name).read_bytes()
    assert (workdir / name).read_bytes() == expected


def test_a_batch_is_written_while_the_next_is_generated(
  finished, tmp_path, monkeypatch
):
  """A signal would else lose a batch that is long graded."""
  path = tmp_path / "evaluation" / "responses.jsonl"
  generator, written = finished.generator, []

  class Waiting:
    """Reports progress of the second batch until the first is written."""

    def __init__(self, *unused):
      pass

    def start(self, batch, rows, on_progress):
      if not written:
        written.append(0)
        return generator.start(batch, rows, on_progress)
      deadline = time.monotonic() + 60
      while not path.read_bytes() and time.monotonic() < deadline:
        on_progress(np.zeros(len(batch), int), np.zeros(len(batch), bool))
        time.sleep(0.01)
      written.append(path.read_bytes().count(b"\n"))
      raise KeyboardInterrupt

  monkeypatch.setattr(evaluate, "ResponseGenerator", Waiting)
  with pytest.raises(KeyboardInterrupt):
    evaluate.evaluate(smoke(), str(path.parent))
  assert written == [0, 12]  # All greedy responses.


@pytest.mark.slow
def test_a_killed_evaluation_ends_as_one_that_was_not(finished, tmp_path):
  workdir = tmp_path / "killed"
  process = start_process("evaluate.py", workdir)
  path = workdir / "responses.jsonl"
  deadline = time.monotonic() + 300
  while not (path.exists() and path.read_bytes().count(b"\n")):
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  # However far it came: half a batch is written, and its last line is cut.
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(lines[:7]) + lines[7][:40])
  for name in (*REPORTS, "report.png"):
    (workdir / name).unlink(missing_ok=True)
  process = start_process("evaluate.py", workdir)
  _, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr
  for name in (*REPORTS, "responses.jsonl"):
    expected = (finished.workdir / name).read_bytes()
    assert (workdir / name).read_bytes() == expected


def test_a_response_is_the_same_in_any_batch(tiny, finished, tmp_path):
  """Other benchmarks, numbers of problems and batch sizes have no effect."""
  evaluate.evaluate(
    smoke(
      random_model=False,
      policy=str(tiny / "policy"),
      prm=str(tiny / "prm"),
      batch_rows=5,
      samples=2,
      k=(2,),
      benchmarks={
        "tiny_math8k": {
          "file": str(tiny / "problems" / "train.jsonl"),
          "format": "math8k",
          "problems": 4,
          "averaged": True,
        }
      },
    ),
    str(tmp_path / "run"),
  )
  known = {
    (r["benchmark"], r["problem"], r["sample"]): r
    for r in responses(finished.workdir)
  }
  rows = responses(tmp_path / "run")
  assert len(rows) == 4 * 3
  for row in rows:
    same = known[row["benchmark"], row["problem"], row["sample"]]
    # Recorded to 6 decimals; sums in float32 may differ in the last bits.
    rewards = row.pop("step_rewards")
    np.testing.assert_allclose(rewards, same["step_rewards"], atol=1e-5)
    assert row == {k: v for k, v in same.items() if k != "step_rewards"}
  # Samples differ: a key without the sample number would repeat one.
  assert len({row["text"] for row in rows}) == len(rows)


def test_a_finished_evaluation_reports_other_subsets_without_a_model(
  finished, tmp_path, capsys, monkeypatch
):
  monkeypatch.delattr(evaluate, "ResponseGenerator")
  workdir = tmp_path / "run"
  shutil.copytree(finished.workdir, workdir)
  before = responses(workdir)
  evaluate.evaluate(smoke(k=(3,), bootstrap_resamples=20), str(workdir))
  assert "maj@3" in capsys.readouterr().out
  assert responses(workdir) == before
  with pytest.raises(WorkdirError, match=r"temperature: was 1\.0, is now"):
    evaluate.evaluate(smoke(sampler__temperature=0.5), str(workdir))
  with (workdir / "responses.jsonl").open("ab") as file:
    file.write(b"{}\n")
  with pytest.raises(RecordFileError, match=r"responses\.jsonl:61 is not a"):
    evaluate.evaluate(smoke(), str(workdir))


def test_every_problem_of_the_real_benchmarks_is_requested(tiny, tmp_path):
  """Every problem of the six files has an answer to compare with."""
  tokenizer = HuggingFaceTokenizer(tiny / "policy")
  sizes = {"math500": 500, "minerva_math": 272, "olympiadbench": 675}
  sizes |= {"aime24": 30, "amc23": 40, "gsm8k": 1319}
  files = {
    f"benchmarks__{name}__file": str(
      real_data.require(
        "gsm8k/test.jsonl" if name == "gsm8k" else f"benchmarks/{name}.jsonl"
      )
    )
    for name in sizes
  }
  settings = smoke(
    random_model=False,
    policy=str(tiny / "policy"),
    samples=2,
    prompt_tokens=100_000,
    **files,
  )
  made = requests.make_requests(settings, tokenizer, tmp_path)
  assert made.left_out == {name: (0, size) for name, size in sizes.items()}
  assert len(made.requests) == 3 * sum(sizes.values())
  key_data = [r.key_data() for r in made.requests if r.sample != 0]
  assert len({*key_data}) == 2 * sum(sizes.values())


# ===== Continuous batching =====

# Two benchmarks of 6 problems, one greedy response and 4 samples each.
CONTINUOUS = {
  "batch_rows": 40,
  "engine__slots": 8,
  "engine__sync_interval": 7,
}


def evaluated(workdir, **changes):
  """Evaluates; returns the responses by key."""
  # Long enough for responses that end at six different lengths.
  evaluate.evaluate(smoke(sampler__max_new_tokens=48, **changes), str(workdir))
  return {
    (row["benchmark"], row["problem"], row["sample"]): row
    for row in responses(workdir)
  }


@pytest.mark.slow
def test_continuous_batching_gives_the_responses_of_one_loop(
  tmp_path, monkeypatch
):
  """A response in the slot of another problem would get the wrong grade."""
  expected = evaluated(tmp_path / "loop")
  batch_sizes = []
  start = ResponseGenerator.start

  def recording_start(generator, batch, rows, on_progress):
    batch_sizes.append((len(batch), rows))
    return start(generator, batch, rows, on_progress)

  monkeypatch.setattr(ResponseGenerator, "start", recording_start)
  rows = evaluated(tmp_path / "continuous", **CONTINUOUS)
  # Greedy responses, then samples in two equal batches.
  assert batch_sizes == [(12, 16), (24, 24), (24, 24)]
  assert len(rows) == 60 and rows.keys() == expected.keys()
  # Slots become free at different times.
  assert len({row["tokens"] for row in rows.values()}) > 3
  for key, row in rows.items():
    rewards = row.pop("step_rewards")
    assert rewards == pytest.approx(expected[key].pop("step_rewards"), abs=2e-5)
    assert row == expected[key]


@pytest.mark.slow
def test_a_cut_evaluation_with_continuous_batching_ends_in_the_same_bytes(
  tmp_path,
):
  """The same batch is generated again, bit for bit."""
  workdir = tmp_path / "run"
  evaluated(workdir, **CONTINUOUS)
  path = workdir / "responses.jsonl"
  content = path.read_bytes()
  path.write_bytes(b"".join(content.splitlines(keepends=True)[:41]))
  evaluated(workdir, **CONTINUOUS)
  assert path.read_bytes() == content
