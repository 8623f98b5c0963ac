"""The evaluation as users run it: killed, restarted, changed, misused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import evaluate
import evaluation_by_hand
import matplotlib.image
import numpy as np
import pytest
import real_data
from checkout import ROOT
from configs import evaluate as config_file
from overrides import with_changes

from pure_jax.host.evaluation.responses import ResponsesError
from pure_jax.host.huggingface import HuggingFaceError
from pure_jax.host.text.tokenization import TokenizerError
from pure_jax.runs.evaluation import data
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.runs.workdir import WorkdirError

CONFIG = ROOT / "experiments" / "configs" / "evaluate.py"
NAMES = ("report.json", "report.md")


def settings(**changes):
  """The smoke config with other values; `a__b` is field b of group a."""
  config = config_file.get_config("smoke")
  fields = with_changes(config, progress=False, **changes)
  return conversion.settings_from_config(fields, EvaluationSettings)


@pytest.fixture(scope="module")
def command():
  """A run from the command line."""
  environment = os.environ | {"PYTHONPATH": str(ROOT)}

  def start(workdir, *options):
    return subprocess.Popen(
      [
        sys.executable,
        str(ROOT / "experiments" / "evaluate.py"),
        f"--config={CONFIG}:smoke",
        f"--workdir={workdir}",
        *options,
      ],
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
  """One whole evaluation: (its folder, stdout, stderr)."""
  workdir = tmp_path_factory.mktemp("evaluations") / "whole"
  process = command(workdir)
  stdout, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr
  return workdir, stdout, stderr


@pytest.fixture(scope="module")
def tiny(whole):
  """Paths of the random model and its problems."""
  return whole[0] / "tiny"


def read(workdir):
  lines = (workdir / "responses.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_every_number_follows_from_the_responses(whole):
  workdir, stdout, stderr = whole
  rows = read(workdir)
  # Two benchmarks of 6 problems, one greedy response and 4 samples each.
  assert len(rows) == 2 * 6 * (1 + 4)
  names = ["tiny_math500", "tiny_math8k"]
  report = json.loads((workdir / "report.json").read_text())
  expected = evaluation_by_hand.tables(rows, (2, 4), names, 0, 200)
  evaluation_by_hand.assert_same(report["tables"], expected)
  # Something to get wrong: some are right, some answer nothing, some end.
  for field in ("correct", "truncated"):
    assert len({row[field] for row in rows}) == 2, field
  assert any(row["answer"] is None for row in rows)
  assert all(row["step_rewards"] for row in rows)
  assert {row["level"] for row in rows} == {1}
  text = (workdir / "report.md").read_text()
  for name in ("pass@4", "weighted maj@4 softmin", "average", "by level"):
    assert name in text and name in stdout
  assert matplotlib.image.imread(workdir / "report.png")[..., :3].std() > 0.01
  assert "evaluate: 100%" in stderr


def test_an_evaluation_cut_in_a_line_ends_as_one_that_was_not(whole, tmp_path):
  """What a kill leaves: half a batch, the last line cut, no report."""
  workdir = tmp_path / "cut"
  shutil.copytree(whole[0], workdir)
  path = workdir / "responses.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  # Batches have 12 (greedy), 16, 16 and 16 rows: it came 5 into the last.
  path.write_bytes(b"".join(lines[:49]) + lines[49][:40])
  for name in (*NAMES, "report.png"):
    (workdir / name).unlink()
  asked = []
  start = evaluate.ResponseWriter.start
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      evaluate.ResponseWriter,
      "start",
      lambda self, units, rows: (
        asked.append(len(units)) or start(self, units, rows)
      ),
    )
    evaluate.evaluate(settings(), str(workdir))
  assert asked == [16]  # The very batch, not what is missing of it.
  assert path.read_bytes() == (whole[0] / "responses.jsonl").read_bytes()
  for name in NAMES:
    assert (workdir / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.slow
def test_a_killed_evaluation_ends_as_one_that_was_not(whole, command, tmp_path):
  workdir = tmp_path / "killed"
  process = command(workdir)
  path = workdir / "responses.jsonl"
  deadline = time.monotonic() + 300
  while not (path.exists() and path.read_bytes().count(b"\n")):
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  # However far it came: a batch is half there, and its last line is cut.
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(lines[:7]) + lines[7][:40])
  for name in (*NAMES, "report.png"):
    (workdir / name).unlink(missing_ok=True)
  process = command(workdir)
  _, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr
  assert path.read_bytes() == (whole[0] / "responses.jsonl").read_bytes()
  for name in NAMES:
    assert (workdir / name).read_bytes() == (whole[0] / name).read_bytes()


def test_a_response_is_the_same_in_any_batch(whole, tmp_path):
  """Nor does it matter which benchmarks and how many problems are asked."""
  tiny = whole[0] / "tiny"
  evaluate.evaluate(
    settings(
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
    (r["benchmark"], r["problem"], r["sample"]): r for r in read(whole[0])
  }
  rows = read(tmp_path / "run")
  assert len(rows) == 4 * 3
  for row in rows:
    same = known[row["benchmark"], row["problem"], row["sample"]]
    # Recorded to 6 decimals; sums in float32 may differ in the last bits.
    rewards = row.pop("step_rewards")
    np.testing.assert_allclose(rewards, same["step_rewards"], atol=1e-5)
    assert row == {k: v for k, v in same.items() if k != "step_rewards"}
  # Samples differ: a key that forgets the number would repeat one.
  assert len({row["text"] for row in rows}) == len(rows)


def test_a_finished_evaluation_reports_other_subsets_without_a_model(
  whole, tmp_path, capsys
):
  workdir = tmp_path / "run"
  shutil.copytree(whole[0], workdir)
  before = read(workdir)
  evaluate.evaluate(settings(k=(3,), bootstrap_resamples=20), str(workdir))
  assert "maj@3" in capsys.readouterr().out
  assert read(workdir) == before
  with pytest.raises(WorkdirError, match=r"temperature: was 1\.0, is now"):
    evaluate.evaluate(settings(sampler__temperature=0.5), str(workdir))
  with (workdir / "responses.jsonl").open("ab") as file:
    file.write(b"{}\n")
  with pytest.raises(ResponsesError, match=r"responses\.jsonl:61 is not a"):
    evaluate.evaluate(settings(), str(workdir))


def named(tiny, **changes):
  """Settings on files, without a PRM."""
  base = {
    "random_model": False,
    "policy": str(tiny / "policy"),
    "benchmarks__math500__file": str(tiny / "problems" / "held_out.jsonl"),
    "benchmarks__math500__problems": 6,
  }
  return settings(**base | changes)


def test_other_contents_under_the_same_name_are_refused(tiny, tmp_path):
  """Half the responses would be of another model, or to other problems."""
  copy = tmp_path / "policy"
  shutil.copytree(tiny / "policy", copy)
  first = data.contents(named(tiny))
  assert data.contents(named(tiny, policy=str(copy))) == first
  weights = (copy / "model.safetensors").read_bytes()
  (copy / "model.safetensors").write_bytes(weights[:-1] + b"\x01")
  second = data.contents(named(tiny, policy=str(copy)))
  assert second["policy"] != first["policy"]
  assert second["benchmarks"] == first["benchmarks"]


def test_what_cannot_be_asked_is_left_out_and_told(tiny, tmp_path, capsys):
  tokenizer = evaluate.HuggingFaceTokenizer(tiny / "policy")
  path = tiny / "problems" / "train.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()][:6]
  rows[1]["question"] += " Take your time."
  rows[4] |= {"answer": "null", "ref_answer": ""}
  path = tmp_path / "problems.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  room = len(tokenizer.encode(rows[1]["question"] + "\n")) - 1
  wanted = named(
    tiny,
    prompt_format="plain",
    prompt_tokens=room,
    benchmarks__math500__file=str(path),
    benchmarks__math500__format="math8k",
  )
  questions = data.ask(wanted, tokenizer, tmp_path)
  assert questions.left_out == {"math500": (2, 6)}
  greedy = [unit.index for unit in questions.units if unit.sample is None]
  assert greedy == [0, 2, 3, 5]  # The rows of the file, as the keys have them.
  assert len(questions.units) == 4 * 5
  assert (
    f"math500: 2 of 6 left out: 1 longer than prompt_tokens={room}, 1 without "
    "an answer."
  ) in capsys.readouterr().err
  with pytest.raises(ConfigError, match="6 of 6 left out: 6 longer than prm_"):
    data.ask(
      named(tiny, prm=str(tiny / "prm"), prm_prompt_tokens=2),
      tokenizer,
      tmp_path,
    )


def test_a_chat_needs_a_chat_template(tiny, tmp_path):
  plain = tmp_path / "policy"
  shutil.copytree(tiny / "policy", plain)
  (plain / "chat_template.jinja").unlink()
  with pytest.raises(TokenizerError, match="has no chat template"):
    evaluate.evaluate(named(tiny, policy=str(plain)), str(tmp_path / "run"))


def test_a_prm_of_another_vocabulary_is_refused(tiny, tmp_path):
  other = tmp_path / "prm"
  shutil.copytree(tiny / "prm", other)
  shutil.copy(tiny / "policy" / "tokenizer.json", other)
  shutil.copy(tiny / "policy" / "tokenizer_config.json", other)
  tokenizer = evaluate.HuggingFaceTokenizer(tiny / "policy", vocab_size=512)
  wanted = named(tiny, prm=str(other))
  data.check_prm_vocabulary(wanted, tokenizer)  # The same.
  text = (other / "tokenizer.json").read_text(encoding="utf-8")
  swapped = text.replace('"Q": ', '"Q\u0100": ', 1)
  assert swapped != text
  (other / "tokenizer.json").write_text(swapped, encoding="utf-8")
  with pytest.raises(TokenizerError, match="has another vocabulary"):
    data.check_prm_vocabulary(wanted, tokenizer)


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"policy": "/nowhere"}, HuggingFaceError, "/nowhere"),
    ({"policy": "PRM"}, ConfigError, r"config\.policy=.* holds a PRM"),
    ({"prm": "POLICY"}, ConfigError, r"config\.prm=.* holds a language model"),
    (
      {"benchmarks__math500__file": "/nowhere.jsonl"},
      ConfigError,
      r"benchmarks\.math500\.file=/nowhere\.jsonl is no file",
    ),
    ({"mesh__data": 64, "batch_rows": 64}, ConfigError, "lower mesh.data"),
  ],
)
def test_a_wrong_name_leaves_no_folder_behind(
  tiny, tmp_path, changes, error, message
):
  places = {"PRM": str(tiny / "prm"), "POLICY": str(tiny / "policy")}
  changes = {k: places.get(v, v) for k, v in changes.items()}
  with pytest.raises(error, match=message):
    evaluate.evaluate(named(tiny, **changes), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"random_model": False}, "policy must name the folder"),
    ({"random_model": False, "policy": "x"}, "no benchmark has a file"),
    ({"policy": "x"}, "random_model stands in place"),
    ({"greedy": False, "samples": 0, "k": ()}, "no response is asked for"),
    ({"k": (5,)}, "sizes of subsets of the 4 samples"),
    ({"sampler__temperature": 0.0}, "temperature must be above 0"),
    ({"sampler__top_p": 0.0}, "top_p must be in"),
    ({"sampler__max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ({"batch_rows": 3, "mesh__data": 2}, "batch_rows=3 is not divisible"),
    ({"engine__rows": 3}, "engine.rows=3 does not divide batch_rows=16"),
    ({"engine__rows": 0}, "rows=0 and chunk=64 must be at least 1"),
    ({"engine__chunk": 0}, "rows=1 and chunk=0 must be at least 1"),
    ({"grader__extractors": ("box",)}, "extractors must be one of"),
    ({"grader__extractors": ()}, "extractors needs at least one"),
    ({"prompt_format": "chatty"}, "prompt_format must be one of"),
    ({"score__separator": "drop"}, "separator must be one of"),
    ({"param_dtype": "float16"}, "param_dtype must be one of"),
    ({"grader__seconds": 0.0}, "seconds must be above 0"),
    ({"grader__seconds": 1e9}, "seconds must be .* at most 3600"),
    ({"seed": -1}, "seed must not be negative"),
    ({"benchmarks__gsm8k__format": "prm800k"}, r"gsm8k: format must be one"),
    ({"benchmarks__gsm8k__problems": 0}, "problems must be at least 1"),
    ({"benchmarks": 5}, "benchmarks must be a group"),
    (
      {
        "benchmarks__average": config_file.benchmark(
          "gsm8k", averaged=True
        ).to_dict()
      },
      "no benchmark may be called 'average'",
    ),
    ({"benchmark": {}}, "did you mean 'benchmarks'"),
  ],
)
def test_an_impossible_value_names_the_field(changes, message):
  with pytest.raises(ConfigError, match=message):
    settings(**changes)


def test_a_mistake_on_the_command_line_ends_in_a_sentence(command, tmp_path):
  process = command(tmp_path / "run", "--config.k=(9,)")
  _, stderr = process.communicate(timeout=100)
  assert process.returncode == 1
  assert "sizes of subsets of the 4 samples" in stderr
  assert "Traceback" not in stderr
  assert not (tmp_path / "run").exists()


def test_real_benchmarks_are_read_and_asked(tiny, tmp_path):
  """Every problem of the six files has an answer to compare with."""
  tokenizer = evaluate.HuggingFaceTokenizer(tiny / "policy")
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
  wanted = settings(
    random_model=False, policy=str(tiny / "policy"), samples=2, k=(),
    prompt_tokens=100_000, **files,
  )  # fmt: skip
  questions = data.ask(wanted, tokenizer, tmp_path)
  assert questions.left_out == {name: (0, size) for name, size in sizes.items()}
  assert len(questions.units) == 3 * sum(sizes.values())
  numbers = [unit.numbers() for unit in questions.units if unit.sample != 0]
  assert len({*numbers}) == 2 * sum(sizes.values())
