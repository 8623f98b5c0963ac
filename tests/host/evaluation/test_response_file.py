"""The file of responses after kills, damage and failed writes."""

import dataclasses
import io
import json
import os

import pytest

from pure_jax.host.evaluation.record_file import RecordFileError
from pure_jax.host.evaluation.response_file import Response, open_responses

ONE = Response(
  benchmark="aime24",
  problem="aime24/1",
  sample=None,
  text="It is \u2028 5.\n\n\\boxed{5}",
  tokens=9,
  truncated=False,
  repetition=0.25,
  answer="5",
  correct=True,
  timed_out=False,
  failure=None,
  step_rewards=(0.25, -1.0),
  level=None,
  subject="Algebra",
)
TWO = dataclasses.replace(
  ONE, sample=0, step_rewards=None, answer=None, failure="raised Error", level=5
)


def write(path, *responses):
  with open_responses(path) as file:
    file.append(responses)


def test_responses_are_read_as_written(tmp_path):
  path = tmp_path / "responses.jsonl"
  write(path, ONE)
  write(path, TWO)
  with open_responses(path) as file:
    assert list(file.records.values()) == [ONE, TWO]
    assert file.records[("aime24", "aime24/1", None)] == ONE
  assert len(path.read_bytes().splitlines()) == 2
  assert json.loads(path.read_text().split("\n")[1])["sample"] == 0


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_cut_last_line_is_dropped_and_can_be_written_again(tmp_path, cut):
  path = tmp_path / "responses.jsonl"
  write(path, ONE, TWO)
  whole = path.read_bytes()
  path.write_bytes(whole[:-cut])
  with open_responses(path) as file:
    assert list(file.records.values()) == [ONE]
    file.append([TWO])
  assert path.read_bytes() == whole


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda row: "{", "is not a response"),
    (lambda row: "[]", "it is not a JSON object"),
    (lambda row: "[" * 100_000, "is not a response"),
    (lambda row: json.dumps(row | {"more": 1}), "it has other fields"),
    (lambda row: json.dumps(row | {"correct": 1}), "correct is 1"),
    (lambda row: json.dumps(row | {"tokens": True}), "tokens is True"),
    (lambda row: json.dumps(row | {"level": "5"}), "level is '5'"),
    (lambda row: json.dumps(row | {"step_rewards": 1}), "not numbers in -1..1"),
    (lambda row: json.dumps(row | {"step_rewards": [3]}), "not numbers in"),
    (lambda row: json.dumps(row).replace("0.25", "NaN"), "NaN is not"),
    (lambda row: json.dumps(row).replace("0.25", "1e999"), "beyond every"),
    (lambda row: json.dumps(row | {"tokens": 2**63}), "tokens is 9223"),
    (lambda row: json.dumps(row | {"problem": [1]}), r"problem is \[1\]"),
    (lambda row: "\udcff", "is not a response"),
    (lambda row: json.dumps(row | {"sample": 0}), "a second time"),
  ],
)
def test_a_damaged_line_is_reported_and_the_file_not_changed(
  tmp_path, damage, message
):
  path = tmp_path / "responses.jsonl"
  write(path, TWO, ONE)
  first, second = path.read_text().splitlines()
  line = damage(json.loads(second))
  content = f"{first}\n{line}\n{{cut".encode(errors="surrogateescape")
  path.write_bytes(content)
  with pytest.raises(RecordFileError, match=message) as caught:
    open_responses(path)
  assert f"{path}:2" in str(caught.value)
  assert path.read_bytes() == content


def test_a_response_cannot_be_written_twice(tmp_path):
  with open_responses(tmp_path / "responses.jsonl") as file:
    file.append([ONE])
    with pytest.raises(RecordFileError, match="already holds"):
      file.append([ONE])


def test_a_path_that_cannot_be_opened_is_reported(tmp_path):
  with pytest.raises(RecordFileError, match="cannot be opened"):
    open_responses(tmp_path / "missing" / "responses.jsonl")
  with pytest.raises(RecordFileError, match="cannot be opened"):
    open_responses(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_is_reported(tmp_path):
  """The write raises, and closing the file does not raise again."""
  with (
    pytest.raises(RecordFileError, match=r"responses\.jsonl cannot be written"),
    open_responses(tmp_path / "responses.jsonl") as file,
  ):
    file._file.close()
    file._file = io.BufferedWriter(io.FileIO("/dev/full", "a"))
    file.append([ONE])
