"""The file of responses: killed, damaged, read again."""

import dataclasses
import io
import json
import os

import pytest

from pure_jax.host.evaluation.responses import (
  Response,
  ResponsesError,
  ResponsesFile,
)

ONE = Response(
  benchmark="aime24",
  problem="aime24/1",
  sample=None,
  text="It is \u2028 5.\n\n\\boxed{5}",
  tokens=9,
  truncated=False,
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
  with ResponsesFile(path) as file:
    file.append(responses)


def test_what_is_written_is_read(tmp_path):
  path = tmp_path / "responses.jsonl"
  write(path, ONE)
  write(path, TWO)
  with ResponsesFile(path) as file:
    assert list(file.responses.values()) == [ONE, TWO]
    assert file.responses[("aime24", "aime24/1", None)] == ONE
  assert len(path.read_bytes().splitlines()) == 2
  assert json.loads(path.read_text().split("\n")[1])["sample"] == 0


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_cut_last_line_is_written_anew(tmp_path, cut):
  path = tmp_path / "responses.jsonl"
  write(path, ONE, TWO)
  whole = path.read_bytes()
  path.write_bytes(whole[:-cut])
  with ResponsesFile(path) as file:
    assert list(file.responses.values()) == [ONE]
    file.append([TWO])
  assert path.read_bytes() == whole


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda row: "{", "is not a response"),
    (lambda row: "[]", "it has other fields"),
    (lambda row: "[" * 100_000, "is not a response"),
    (lambda row: json.dumps(row | {"more": 1}), "it has other fields"),
    (lambda row: json.dumps(row | {"correct": 1}), "correct is 1"),
    (lambda row: json.dumps(row | {"tokens": True}), "tokens is True"),
    (lambda row: json.dumps(row | {"level": "5"}), "level is '5'"),
    (lambda row: json.dumps(row | {"step_rewards": 1}), "not numbers in -1..1"),
    (lambda row: json.dumps(row | {"step_rewards": [3]}), "not numbers in"),
    (lambda row: json.dumps(row).replace("0.25", "NaN"), "not numbers in"),
    (lambda row: "\udcff", "is not a response"),
    (lambda row: json.dumps(row | {"sample": 0}), "a second time"),
  ],
)
def test_a_damaged_line_is_named_and_kept(tmp_path, damage, message):
  path = tmp_path / "responses.jsonl"
  write(path, TWO, ONE)
  first, second = path.read_text().splitlines()
  line = damage(json.loads(second))
  content = f"{first}\n{line}\n{{cut".encode(errors="surrogateescape")
  path.write_bytes(content)
  with pytest.raises(ResponsesError, match=message) as caught:
    ResponsesFile(path)
  assert f"{path}:2" in str(caught.value)
  assert path.read_bytes() == content


def test_a_response_is_written_once(tmp_path):
  with ResponsesFile(tmp_path / "responses.jsonl") as file:
    file.append([ONE])
    with pytest.raises(ResponsesError, match="already holds"):
      file.append([ONE])


def test_a_path_that_is_no_file_is_named(tmp_path):
  with pytest.raises(ResponsesError, match="cannot be opened"):
    ResponsesFile(tmp_path / "missing" / "responses.jsonl")
  with pytest.raises(ResponsesError, match="cannot be opened"):
    ResponsesFile(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_ends_in_a_sentence(tmp_path):
  """Raised where it happens, and not once more when the file is closed."""
  with (
    pytest.raises(ResponsesError, match=r"responses\.jsonl cannot be written"),
    ResponsesFile(tmp_path / "responses.jsonl") as file,
  ):
    file._file.close()
    file._file = io.BufferedWriter(io.FileIO("/dev/full", "a"))
    file.append([ONE])
