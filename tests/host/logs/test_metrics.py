"""Metrics and samples survive kills and resumes."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from checkout import ROOT
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from pure_jax.host.logs.generations import GenerationsWriter
from pure_jax.host.logs.metrics import (
  SAMPLES_FILE,
  MetricsError,
  MetricsWriter,
  RecordsWriter,
  read_log,
  read_metrics,
)

TEXT_WRITERS = {
  "samples.jsonl": lambda folder: RecordsWriter(folder, SAMPLES_FILE),
  "generations.jsonl": GenerationsWriter,
}


def strict_rows(path):
  """Parses rows as strict JSON, without NaN and Infinity."""

  def fail(name):
    raise ValueError(f"not strict JSON: {name}")

  lines = path.read_text().splitlines()
  return [json.loads(line, parse_constant=fail) for line in lines]


def events(folder):
  """Reads TensorBoard events in the order written."""
  parsed = []
  for path in sorted(folder.glob("events*")):  # As TensorBoard orders them.
    data, at = path.read_bytes(), 0
    while at < len(data):
      length = int.from_bytes(data[at : at + 8], "little")
      body = data[at + 12 : at + 12 + length]
      crc = int.from_bytes(data[at + 12 + length : at + 16 + length], "little")
      assert masked_crc32c(body) == crc
      parsed.append(event_pb2.Event.FromString(body))
      at += 16 + length
  return parsed


def scalars(folder):
  return [
    (event.step, value.tag, value.simple_value)
    for event in events(folder)
    for value in event.summary.value
  ]


def train(workdir, steps, resume_at=None):
  """Writes two stages, the second one with its evaluations."""
  with MetricsWriter(workdir) as writer:
    if resume_at is None:
      writer.write("sft", 9, {"loss": 1.0})
    else:
      for stage in ("rl", "rl_eval"):
        writer.rewind(stage, resume_at)
    for step in steps:
      writer.write("rl", step, {"loss": 1 / (step + 1)})
      if step % 2 == 0:
        writer.write("rl_eval", step, {"accuracy": step / 10})


def test_rows_are_strict_json_whatever_the_number(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    writer.write(
      "rl",
      np.int64(3),
      {
        "a": jnp.float32(0.5),
        "b": np.float64("nan"),
        "c": math.inf,
        "d": 7,
        "e": True,
        "f": np.bool_(False),
        "g": jnp.int32(2**30),
        "h": None,  # A mean over nothing.
      },
    )
  expected = {
    "stage": "rl", "step": 3, "a": 0.5, "b": None, "c": None, "d": 7, "e": 1,
    "f": 0, "g": 2**30, "h": None,
  }  # fmt: skip
  assert strict_rows(tmp_path / "metrics.jsonl") == [expected]
  assert read_metrics(tmp_path) == [expected]
  assert read_metrics(tmp_path / "metrics.jsonl") == [expected]
  tags = [tag for _, tag, _ in scalars(tmp_path / "tensorboard" / "rl")]
  assert tags == [*"abcdefg"]  # TensorBoard shows no point without a value.


def test_a_metric_that_is_not_one_number_is_an_error(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for bad in (np.ones((2, 2)), 1j, "text", ["text"]):
      with pytest.raises(ValueError):
        writer.write("rl", 0, {"x": bad})
    with pytest.raises(ValueError, match="must not be called 'step'"):
      writer.write("rl", 0, {"step": 1})
  assert read_metrics(tmp_path) == []


def test_a_list_is_written_to_the_row_but_not_to_tensorboard(tmp_path):
  values = jnp.array([0.5, jnp.nan, -1])
  with MetricsWriter(tmp_path) as writer:
    writer.write("rl", 1, {"a": 1.5, "a_per_update": values, "b": [2]})
  row = {"stage": "rl", "step": 1, "a": 1.5, "a_per_update": [0.5, None, -1]}
  assert strict_rows(tmp_path / "metrics.jsonl") == [row | {"b": [2]}]
  assert scalars(tmp_path / "tensorboard" / "rl") == [(1, "a", 1.5)]


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    writer.write("rl", 0, {"loss": 1.0})
    assert len(read_metrics(tmp_path)) == 1


@pytest.mark.parametrize("cut", [0, 1, 9])
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path, cut):
  """Without the rewind, steps 4 and 5 would be there twice."""
  train(tmp_path / "whole", range(10))
  train(tmp_path / "cut", range(6))
  path = tmp_path / "cut" / "metrics.jsonl"
  if cut:  # Killed in the middle of a line.
    with path.open("a") as file:
      file.write('{"stage": "rl", "step": 6, "loss"'[:cut])
  train(tmp_path / "cut", range(4, 10), resume_at=4)
  whole = (tmp_path / "whole" / "metrics.jsonl").read_text()
  assert path.read_text() == whole
  assert whole.count("\n") == 1 + 10 + 5


def test_rewinding_leaves_other_stages_alone(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for stage in ("sft", "rl"):
      for step in range(5):
        writer.write(stage, step, {"loss": 0.0})
    writer.rewind("rl", 2)
    writer.rewind("prm", 0)
  remaining = [(row["stage"], row["step"]) for row in read_metrics(tmp_path)]
  assert remaining == [("sft", s) for s in range(5)] + [("rl", 0), ("rl", 1)]


def test_tensorboard_gets_the_same_numbers(tmp_path):
  train(tmp_path, range(3))
  folder = tmp_path / "tensorboard"
  assert scalars(folder / "sft") == [(9, "loss", 1.0)]
  assert scalars(folder / "rl_eval") == [
    (0, "accuracy", 0.0),
    (2, "accuracy", pytest.approx(0.2)),
  ]


def test_tensorboard_hides_the_abandoned_steps(tmp_path):
  """A START event at the resumed step hides events from it on."""
  train(tmp_path, range(6))
  train(tmp_path, range(4, 8), resume_at=4)
  starts = [
    event.step
    for event in events(tmp_path / "tensorboard" / "rl")
    if event.session_log.status == event_pb2.SessionLog.START
  ]
  assert starts == [4]
  steps = [step for step, _, _ in scalars(tmp_path / "tensorboard" / "rl")]
  assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]


def test_reading_skips_an_incomplete_last_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"stage": "rl", "step": 0}\n{"stage": "r')
  assert read_metrics(path) == [{"stage": "rl", "step": 0}]


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    (b'{"st', "is not JSON"),
    (b'{"stage": "rl\xff", "step": 1}', "is not JSON"),
    (b'{"stage": "rl"}', "is not a row with a stage and a step"),
    (b'{"stage": "rl", "step": "2"}', "is not a row with a stage and a step"),
    (b"7", "is not a row with a stage and a step"),
    (b'{"stage": ["rl"], "step": 1}', "is not a row with a stage and a step"),
    (b'{"stage": "", "step": 1}', "is not a row with a stage and a step"),
    (b'{"stage": "\\ud800", "step": 1}', "is not a row with a stage and"),
    (b'{"stage": "rl", "step": true}', "is not a row .*: step is true"),
    (b'{"stage": "rl", "step": -1}', "is not a row .*: step is -1"),
    (b'{"stage": "rl", "step": 9223372036854775808}', "is not a row .*: step"),
    (b'{"stage": "rl", "step": 1, "loss": NaN}', "is not JSON: NaN"),
    (b'{"stage": "rl", "step": 1, "loss": 1e999}', "is not JSON: 1e999"),
    (b"[" * 200_000, "is not JSON: .* nested"),
    (b"", "is not JSON"),
    (b"\0\0", "is not JSON"),
    (b"1" * 5000, "is not JSON"),
  ],
)
@pytest.mark.parametrize("name", ["metrics.jsonl", *TEXT_WRITERS])
def test_a_damaged_line_is_an_error_and_nothing_is_lost(
  tmp_path, name, line, reason
):
  """It is found when the file is opened, before any time is spent."""
  path = tmp_path / name
  whole = b'{"stage": "rl", "step": 0}\n'
  # The incomplete last line stays as well.
  content = whole + line + b"\n" + whole + b'{"st'
  path.write_bytes(content)
  reason = rf"{path}:2 {reason}"
  with pytest.raises(MetricsError, match=reason):
    read_log(path)
  with pytest.raises(MetricsError, match=reason):
    TEXT_WRITERS.get(name, MetricsWriter)(tmp_path)
  assert path.read_bytes() == content


@pytest.mark.parametrize(
  "value", ['"text"', "true", '{"a": 1}', "[[1]]", '[1, "a"]', "1" + "0" * 400]
)
def test_a_metric_is_a_number(tmp_path, value):
  """What the writer cannot have written would break a curve or the summary."""
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"stage": "rl", "step": 1, "loss": {value}}}\n')
  with pytest.raises(MetricsError, match=rf"{path}:1 is not .*: loss is"):
    read_metrics(tmp_path)
  with pytest.raises(MetricsError, match=rf"{path}:1 is not .*: loss is"):
    MetricsWriter(tmp_path)
  path.rename(tmp_path / "samples.jsonl")
  with RecordsWriter(tmp_path, SAMPLES_FILE):
    assert len(read_log(tmp_path / "samples.jsonl")) == 1


@pytest.mark.parametrize("accuracy", ["", ', "accuracy": [1, 0.5]'])
def test_a_row_without_a_required_metric_is_named(tmp_path, accuracy):
  path = tmp_path / "metrics.jsonl"
  path.write_text(
    '{"stage": "rl", "step": 1}\n'
    '{"stage": "rl_eval", "step": 0, "accuracy": null}\n'
    f'{{"stage": "rl_eval", "step": 1{accuracy}}}\n'
  )
  assert len(read_metrics(tmp_path, "rl_eval")) == 2
  with pytest.raises(MetricsError, match=rf"{path}:3 .*a number accuracy\."):
    read_metrics(tmp_path, "rl_eval", ("accuracy",))
  assert read_metrics(tmp_path, "rl", ("step",))


@pytest.mark.parametrize("name", ["metrics.jsonl", *TEXT_WRITERS])
def test_a_folder_in_place_of_a_file_is_named(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(MetricsError, match=str(tmp_path / name)):
    TEXT_WRITERS.get(name, MetricsWriter)(tmp_path)


def test_the_logs_of_the_committed_runs_are_read():
  paths = sorted((ROOT / "experiments" / "results").glob("*/metrics.jsonl"))
  assert paths
  for path in paths:
    assert len(read_metrics(path)) == path.read_text().count("\n")


def test_samples_are_rewound_and_are_strict_json(tmp_path):
  def write(steps, resume_at=None):
    with RecordsWriter(tmp_path, SAMPLES_FILE) as writer:
      if resume_at is not None:
        writer.rewind("rl", resume_at)
      for step in steps:
        writer.write("rl", step, samples)

  samples = [
    {
      "problem": "1 + 2 “=” ?",
      "scores": np.asarray([0.5, np.nan], np.float32),
      "correct": np.bool_(True),
      "steps": [{"text": "a\n\nb", "reward": jnp.float32(-1)}],
      "answer": None,
    },
    {"problem": "b"},
  ]
  write([0, 1, 2])
  write([1, 2, 3], resume_at=1)
  rows = strict_rows(tmp_path / "samples.jsonl")
  assert [row["step"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
  assert rows[0] == {
    "stage": "rl",
    "step": 0,
    "problem": "1 + 2 “=” ?",
    "scores": [0.5, None],
    "correct": True,
    "steps": [{"text": "a\n\nb", "reward": -1.0}],
    "answer": None,
  }
