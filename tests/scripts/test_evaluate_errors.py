"""Invalid input of an evaluation of a policy, and what a restart may change."""

import dataclasses
import json
import shutil

import evaluate
import evaluate_prm
import numpy as np
import pytest
import safetensors.numpy
from configs import files
from policy_evaluations import on_files, smoke, start_process
from prm_evaluations import smoke as prm_settings

from pure_jax.host.checkpoints.record import config_differences
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import TokenizerError
from pure_jax.runs import workdir
from pure_jax.runs.evaluation import requests
from pure_jax.runs.evaluation.requests import with_tiny_models
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.runs.workdir import WorkdirError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """The folder of the random model and its problems."""
  folder = tmp_path_factory.mktemp("tiny")
  with_tiny_models(smoke(), folder)
  return folder


def test_other_contents_under_the_same_name_change_the_fingerprint(
  tiny, tmp_path
):
  """Half the responses would be of another model, or to other problems."""
  copy = tmp_path / "policy"
  shutil.copytree(tiny / "policy", copy)
  first = requests.fingerprints(on_files(tiny))
  assert requests.fingerprints(on_files(tiny, policy=str(copy))) == first
  weights = (copy / "model.safetensors").read_bytes()
  (copy / "model.safetensors").write_bytes(weights[:-1] + b"\x01")
  second = requests.fingerprints(on_files(tiny, policy=str(copy)))
  assert second["policy"] != first["policy"]
  assert second["benchmarks"] == first["benchmarks"]


def test_problems_that_do_not_fit_are_left_out_and_reported(
  tiny, tmp_path, capsys
):
  tokenizer = HuggingFaceTokenizer(tiny / "policy")
  path = tiny / "problems" / "train.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()][:6]
  rows[1]["question"] += " Take your time."
  rows[4] |= {"answer": "null", "ref_answer": ""}
  path = tmp_path / "problems.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  limit = len(tokenizer.encode(rows[1]["question"] + "\n")) - 1
  settings = on_files(
    tiny,
    prompt_format="plain",
    prompt_tokens=limit,
    benchmarks__math500__file=str(path),
    benchmarks__math500__format="math8k",
  )
  made = requests.make_requests(settings, tokenizer, tmp_path)
  assert made.left_out == {"math500": (2, 6)}
  greedy = [r.index for r in made.requests if r.sample is None]
  assert greedy == [0, 2, 3, 5]  # Rows of the file, as the random keys use.
  assert len(made.requests) == 4 * 5
  assert (
    f"math500: 2 of 6 left out: 1 longer than prompt_tokens={limit}, 1 without "
    "an answer."
  ) in capsys.readouterr().err
  with pytest.raises(ConfigError, match="6 of 6 left out: 6 longer than prm_"):
    requests.make_requests(
      on_files(tiny, prm=str(tiny / "prm"), prm_prompt_tokens=2),
      tokenizer,
      tmp_path,
    )


def test_a_chat_format_needs_a_chat_template(tiny, tmp_path):
  plain = tmp_path / "policy"
  shutil.copytree(tiny / "policy", plain)
  (plain / "chat_template.jinja").unlink()
  with pytest.raises(TokenizerError, match="has no chat template"):
    evaluate.evaluate(on_files(tiny, policy=str(plain)), str(tmp_path / "run"))


def test_a_prm_with_another_vocabulary_raises(tiny, tmp_path):
  other = tmp_path / "prm"
  shutil.copytree(tiny / "prm", other)
  shutil.copy(tiny / "policy" / "tokenizer.json", other)
  shutil.copy(tiny / "policy" / "tokenizer_config.json", other)
  tokenizer = HuggingFaceTokenizer(tiny / "policy", vocab_size=512)
  settings = on_files(tiny, prm=str(other))
  requests.prm_tokenizer(settings, tokenizer)  # The same vocabulary.
  text = (other / "tokenizer.json").read_text(encoding="utf-8")
  swapped = text.replace('"Q": ', '"Q\u0100": ', 1)
  assert swapped != text
  (other / "tokenizer.json").write_text(swapped, encoding="utf-8")
  with pytest.raises(TokenizerError, match="has another vocabulary"):
    requests.make_requests(settings, tokenizer, tmp_path)


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"policy": "/nowhere"}, ConfigError, "policy=/nowhere is no folder, and"),
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
def test_a_path_that_cannot_be_used_leaves_no_workdir(
  tiny, tmp_path, changes, error, message
):
  folders = {"PRM": str(tiny / "prm"), "POLICY": str(tiny / "policy")}
  changes = {k: folders.get(v, v) for k, v in changes.items()}
  with pytest.raises(error, match=message):
    evaluate.evaluate(on_files(tiny, **changes), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"random_model": False}, "policy must name a Hugging Face model"),
    ({"random_model": False, "policy": "x"}, "no benchmark has a file"),
    ({"policy": "x"}, "random_model stands in place"),
    ({"greedy": False, "samples": 0}, "no response would be generated"),
    ({"samples": 0, "k": (2,)}, "subsets of the 0 samples: leave k out"),
    ({"k": (5,)}, "sizes of subsets of the 4 samples"),
    ({"sampler__temperature": 0.0}, "temperature must be between"),
    ({"sampler__top_p": 0.0}, "top_p must be between"),
    ({"sampler__max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ({"batch_rows": 3, "mesh__data": 2}, "batch_rows=3 is not divisible"),
    ({"engine__slots": 3}, "engine.slots=3 does not divide batch_rows=16"),
    ({"engine__slots": 0}, "slots=0 and sync_interval=8 must be at least 1"),
    (
      {"engine__sync_interval": 0},
      "slots=1 and sync_interval=0 must be at least 1",
    ),
    ({"grader__extractors": ("box",)}, "extractors must be one of"),
    ({"grader__extractors": ()}, "extractors needs at least one"),
    ({"prompt_format": "chatty"}, "prompt_format must be one of"),
    ({"score__separator": "drop"}, "separator must be one of"),
    ({"param_dtype": "float16"}, "param_dtype must be one of"),
    ({"grader__seconds": 0.0}, "seconds must be between"),
    ({"grader__seconds": 1e9}, "seconds must be .* and 3600"),
    ({"seed": -1}, "seed must be at least 0 and below 2"),
    ({"benchmarks__gsm8k__format": "prm800k"}, r"gsm8k: format must be one"),
    ({"benchmarks__gsm8k__problems": 0}, "problems must be at least 1"),
    ({"benchmarks": 5}, "benchmarks must be a group"),
    (
      {
        "benchmarks__average": files.benchmark("gsm8k", averaged=True).to_dict()
      },
      "no benchmark may be called 'average'",
    ),
    ({"benchmark": {}}, "did you mean 'benchmarks'"),
  ],
)
def test_an_invalid_value_is_reported_with_its_field(changes, message):
  with pytest.raises(ConfigError, match=message):
    smoke(**changes)


def test_a_mistake_on_the_command_line_ends_in_a_sentence(tmp_path):
  process = start_process("evaluate.py", tmp_path / "run", "--config.k=(9,)")
  _, stderr = process.communicate(timeout=100)
  assert process.returncode == 1
  assert "sizes of subsets of the 4 samples" in stderr
  assert "Traceback" not in stderr
  assert not (tmp_path / "run").exists()


def test_a_workdir_in_use_is_left_alone(tmp_path):
  """Two writers would leave every response twice."""
  with (
    workdir.lock_folder(tmp_path),
    pytest.raises(WorkdirError, match="Another process is running"),
  ):
    evaluate.evaluate(smoke(), str(tmp_path))
  assert not (tmp_path / "tiny").exists()
  assert not (tmp_path / "responses.jsonl").exists()


@pytest.mark.parametrize(
  ("greedy", "samples"), [(True, 0), (False, 1)], ids=["greedy", "sampled"]
)
def test_a_policy_that_computes_nan_is_reported(
  tiny, tmp_path, greedy, samples
):
  """Otherwise its report would say that it solves nothing.

  Its weights are finite, and products of them are not.
  """
  broken = tmp_path / "policy"
  shutil.copytree(tiny / "policy", broken)
  weights = safetensors.numpy.load_file(broken / "model.safetensors")
  weights = {name: np.full_like(x, 1e38) for name, x in weights.items()}
  safetensors.numpy.save_file(weights, broken / "model.safetensors")
  settings = on_files(
    tiny,
    policy=str(broken),
    greedy=greedy,
    samples=samples,
    sampler__max_new_tokens=2,
  )
  with pytest.raises(FloatingPointError, match=r"weights in .*policy"):
    evaluate.evaluate(settings, str(tmp_path / "run"))
  assert not (tmp_path / "run" / "responses.jsonl").read_bytes()
  assert not (tmp_path / "run" / "report.json").exists()


# ===== What a resumed evaluation may change =====

# No response depends on these. Of paths, the contents are compared.
FREE = {
  *("progress", "grader.workers", "policy", "prm", "k"),
  *("bootstrap_seed", "bootstrap_resamples"),
}
# No score depends on these.
PRM_FREE = {
  *("progress", "threshold", "threshold_data"),
  *("bins", "bootstrap_seed", "resamples"),
}


def names(kind):
  return [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("name", names(EvaluationSettings))
def test_a_resumed_run_may_change_fields_that_no_response_depends_on(name):
  before = dataclasses.asdict(smoke())
  after = before | {name: "another"}
  differences = config_differences(before, after, evaluate.MAY_DIFFER)
  assert bool(differences) == (name not in FREE), differences


@pytest.mark.parametrize("name", names(evaluate_prm.EvaluatePRMSettings))
def test_a_resumed_run_may_change_fields_that_no_score_depends_on(name):
  before = dataclasses.asdict(prm_settings())
  after = before | {name: "another"}
  differences = config_differences(before, after, evaluate_prm.MAY_DIFFER)
  assert bool(differences) == (name not in PRM_FREE), differences


@pytest.mark.parametrize("script", [evaluate, evaluate_prm])
def test_a_resumed_run_may_not_change_file_contents(script):
  before, after = {"contents": {"prm": "0"}}, {"contents": {"prm": "1"}}
  assert config_differences(before, after, script.MAY_DIFFER)
