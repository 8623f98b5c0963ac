"""Metrics survive kills and resumes; repetition agrees with its oracle."""

import itertools
import json
import math
import time
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from pure_jax.host.logs.metrics import (
  MetricsError,
  MetricsWriter,
  SamplesWriter,
  read_metrics,
  repetition_score,
)


def strict_rows(path):
  """Rows by a parser that refuses NaN and Infinity."""

  def refuse(name):
    raise ValueError(f"not strict JSON: {name}")

  lines = path.read_text().splitlines()
  return [json.loads(line, parse_constant=refuse) for line in lines]


def events(folder):
  """TensorBoard events in the order written, from the record format."""
  found = []
  for path in sorted(folder.glob("events*")):  # As TensorBoard orders them.
    data, at = path.read_bytes(), 0
    while at < len(data):
      length = int.from_bytes(data[at : at + 8], "little")
      body = data[at + 12 : at + 12 + length]
      crc = int.from_bytes(data[at + 12 + length : at + 16 + length], "little")
      assert masked_crc32c(body) == crc
      found.append(event_pb2.Event.FromString(body))
      at += 16 + length
  return found


def scalars(folder):
  return [
    (event.step, value.tag, value.simple_value)
    for event in events(folder)
    for value in event.summary.value
  ]


def train(workdir, steps, resume_at=None):
  """Two stages of a run, the second with its evaluations."""
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
      },
    )
  expected = {
    "stage": "rl", "step": 3, "a": 0.5, "b": None, "c": None, "d": 7, "e": 1,
    "f": 0, "g": 2**30,
  }  # fmt: skip
  assert strict_rows(tmp_path / "metrics.jsonl") == [expected]
  assert read_metrics(tmp_path) == [expected]
  assert read_metrics(tmp_path / "metrics.jsonl") == [expected]


def test_what_is_not_one_number_is_refused(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for bad in (np.ones(2), 1j, "text"):
      with pytest.raises(ValueError):
        writer.write("rl", 0, {"x": bad})
    with pytest.raises(ValueError, match="must not be called 'step'"):
      writer.write("rl", 0, {"step": 1})
  assert read_metrics(tmp_path) == []


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


def test_rewinding_spares_other_stages(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for stage in ("sft", "rl"):
      for step in range(5):
        writer.write(stage, step, {"loss": 0.0})
    writer.rewind("rl", 2)
    writer.rewind("prm", 0)
  kept = [(row["stage"], row["step"]) for row in read_metrics(tmp_path)]
  assert kept == [("sft", s) for s in range(5)] + [("rl", 0), ("rl", 1)]


def test_tensorboard_gets_the_same_numbers(tmp_path):
  train(tmp_path, range(3))
  folder = tmp_path / "tensorboard"
  assert scalars(folder / "sft") == [(9, "loss", 1.0)]
  assert scalars(folder / "rl_eval") == [
    (0, "accuracy", 0.0),
    (2, "accuracy", pytest.approx(0.2)),
  ]


def test_tensorboard_is_told_to_forget_the_abandoned_steps(tmp_path):
  """A START event at the resumed step purges what was there from it on."""
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


def test_reading_leaves_out_a_cut_line_and_names_a_broken_one(tmp_path):
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
  ],
)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, line, reason):
  path = tmp_path / "metrics.jsonl"
  whole = b'{"stage": "rl", "step": 0}\n'
  path.write_bytes(whole + line + b"\n" + whole)
  with pytest.raises(MetricsError, match=rf"metrics\.jsonl:2 {reason}"):
    read_metrics(path)
  with (
    MetricsWriter(tmp_path) as writer,
    pytest.raises(MetricsError, match=rf"metrics\.jsonl:2 {reason}"),
  ):
    writer.rewind("rl", 0)
  assert path.read_bytes() == whole + line + b"\n" + whole


def test_samples_are_rewound_and_strict(tmp_path):
  def write(steps, resume_at=None):
    with SamplesWriter(tmp_path) as writer:
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


def naive_repetition(tokens):
  """The definition, with suffixes as lists and prefixes counted by hand."""
  n = len(tokens)
  suffixes = sorted(list(tokens[i:]) for i in range(n))
  total = 0
  for left, right in itertools.pairwise(suffixes):
    for a, b in zip(left, right, strict=False):
      if a != b:
        break
      total += 1
  return 2 * total / (n * (n + 1)) if n else 0.0


def test_repetition_by_hand():
  """ "abab": suffixes ab, abab, b, bab share 2, 0, 1; 3 x 2 / 20 = 0.3."""
  assert repetition_score([1, 2, 1, 2]) == pytest.approx(0.3, abs=1e-12)
  for n in (2, 3, 100):
    same = repetition_score([7] * n)
    assert same == pytest.approx((n - 1) / (n + 1), abs=1e-12)
    assert repetition_score(range(n)) == 0
  assert repetition_score([]) == repetition_score([3]) == 0


def test_repetition_against_the_definition():
  rng = np.random.default_rng(0)
  for _ in range(300):
    letters = rng.integers(1, 6)
    tokens = rng.integers(-3, letters, rng.integers(0, 40)).astype(np.int32)
    expected = naive_repetition(tokens.tolist())
    assert repetition_score(tokens) == pytest.approx(expected, abs=1e-12)


def test_repetition_of_a_loop_is_high_and_of_prose_is_low():
  """0.2 tells a response that loops from one that uses words again."""
  rng = np.random.default_rng(1)
  prose = rng.zipf(1.3, 300) % 80
  loop = np.concatenate([prose[:60], np.tile(prose[:10], 24)])
  assert repetition_score(prose) < 0.05
  assert repetition_score(loop) > 0.2


def test_repetition_of_a_long_response_is_cheap():
  """An n x n table for n = 8000 would take 64 MB at one byte an entry."""
  tokens = np.tile(np.arange(40), 200)
  tracemalloc.start()
  start = time.perf_counter()
  score = repetition_score(tokens)
  seconds = time.perf_counter() - start
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  # Suffix i shares 8000 - 40 - i tokens with the one a period before it.
  n, period = 8000, 40
  total = (n - period) * (n - period + 1) / 2
  assert score == pytest.approx(total * 2 / (n * (n + 1)), abs=1e-12)
  assert peak < 16e6
  assert seconds < 5


def test_repetition_of_a_batch_is_fast():
  """A batch of 256 x 100 tokens is scored every iteration."""
  rows = np.random.default_rng(0).integers(0, 8, (256, 100))
  start = time.perf_counter()
  for row in rows:
    repetition_score(row)
  assert time.perf_counter() - start < 2
