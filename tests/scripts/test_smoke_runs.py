"""Smoke variants of the paper's runs use the features of the real runs."""

import dataclasses
import importlib
import json
import math
import pathlib

import cli
import evaluate
import jax
import metric_table
import numpy as np
import policy_evaluations
import pytest
import safetensors.numpy
import train_prm
import train_pure
from configs import paper

from pure_jax.host.logs import curves
from pure_jax.runs.rl import weights as rl_weights
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.tasks import tiny_files

SCORE_METRICS = {
  *("process_outcome", "min_step_score", "step_score_mean", "return_mean"),
  *("nonfinite_step_rewards", "process_outcome_agreement"),
}


def settings_of(name, variant):
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  return conversion.settings_from_config(config)


def with_benchmarks(settings, benchmarks):
  """Adds tiny benchmarks; "by one loop" compiles fewer programs."""
  rl, files = settings.rl, settings.files
  rl = dataclasses.replace(
    rl,
    benchmark_new_tokens=16,
    benchmark_samples=2 * (rl.reward_mode == "prm+vr"),
    generations=6,  # Every problem of the benchmarks.
  )
  if benchmarks == "by one loop":
    engine = dataclasses.replace(rl.engine, slots=None)
    rl = dataclasses.replace(rl, engine=engine)
  random_files = (*files.random_files, "benchmarks")
  files = dataclasses.replace(files, random_files=random_files)
  return dataclasses.replace(settings, rl=rl, files=files)


def run_once(settings, workdir, monkeypatch):
  """One iteration; the frozen weights and the metric rows."""
  rl = dataclasses.replace(settings.rl, iterations=1, samples_every=1)
  settings = dataclasses.replace(settings, rl=rl, progress=False)
  made, make = [], rl_weights.FrozenWeights

  def recording(*weights):
    made.append(make(*weights))
    return made[-1]

  monkeypatch.setattr(rl_weights, "FrozenWeights", recording)
  monkeypatch.setattr(curves, "plot_curves", lambda *unused: None)  # Seconds.
  with open_run(settings, str(workdir)) as run:
    train_pure.train_rl(run)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  (weights,) = made
  return weights, [json.loads(line) for line in lines]


def compare_benchmarks(workdir, settings, rows):
  """Holds the validation of a run to evaluate.py: texts, scores, numbers."""
  evaluate.evaluate(
    policy_evaluations.smoke(
      random_model=False,
      policy=str(workdir / "tiny" / "policy"),
      prm=str(workdir / "tiny" / "prm"),
      benchmarks={
        name: dataclasses.asdict(benchmark)
        for name, benchmark in tiny_files.benchmarks(
          tiny_files.write_problems(workdir / "tiny" / "problems")
        ).items()
      },
      prompt_format=settings.files.prompt_format,
      prompt_tokens=settings.files.prompt_tokens,
      prm_prompt_format=settings.files.prm_prompt_format,
      prm_prompt_tokens=settings.files.prm_prompt_tokens,
      samples=0,
      sampler__max_new_tokens=16,
      score__max_steps=settings.prm.score.max_steps,
      score__separator=settings.prm.score.separator,
      grader__extractors=settings.files.grader.extractors,
    ),
    str(workdir / "evaluation"),
  )
  expected = policy_evaluations.responses(workdir / "evaluation")
  lines = (workdir / "generations.jsonl").read_text().splitlines()
  shown = [json.loads(line) for line in lines]
  of_benchmarks = [
    row for row in shown if row["step"] == 0 and row["benchmark"] != "held_out"
  ]
  assert len(of_benchmarks) == len(expected) == 12
  for row, response in zip(of_benchmarks, expected, strict=True):
    assert row["greedy"] and row["id"] == response["problem"]
    # A last step that ends with a separator is shown without it.
    text = "\n\n".join(row["steps"])
    assert response["text"] in (text, f"{text}\n\n")
    for name in ("benchmark", "tokens", "truncated", "answer", "correct"):
      assert row[name] == response[name], name
    assert row["step_rewards"] == pytest.approx(
      response["step_rewards"], abs=1e-4
    )
  first = rows[0]
  for name in ("tiny_math500", "tiny_math8k"):
    own = [r for r in expected if r["benchmark"] == name]
    for metric, field in (
      *(("accuracy", "correct"), ("response_tokens", "tokens")),
      ("truncated", "truncated"),
    ):
      mean = sum(r[field] for r in own) / len(own)
      assert first[f"{name}/{metric}"] == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize(
  ("name", "variant", "mode", "benchmarks"),
  [
    ("qwen2p5_7b", "smoke_prm", "prm", None),
    ("qwen2p5_math_7b", "smoke_reference_verl_vr", "vr", None),
    ("qwen2p5_math_7b", "smoke_reference_verl_prm_vr", "prm+vr", None),
    (
      *("qwen2p5_math_7b", "smoke_reference_main_prm_vr", "prm+vr"),
      "by one loop",
    ),
    *(
      pytest.param(
        "qwen2p5_math_1p5b",
        f"smoke_{preset}_{mode}",
        mode.replace("_", "+"),
        None if mode == "vr" else "by slots",
        marks=pytest.mark.slow,
      )
      for preset in paper.PRESETS
      for mode in paper.MODES
    ),
  ],
)
def test_a_run_with_a_given_prm_trains_none(
  name, variant, mode, benchmarks, tmp_path, monkeypatch
):
  settings = as_stated = settings_of(name, variant)
  assert settings.rl.reward_mode == mode
  if benchmarks is not None:
    settings = with_benchmarks(settings, benchmarks)
  frozen, rows = run_once(settings, tmp_path, monkeypatch)
  kinds = ["files", *(["PRM"] if mode != "vr" else [])]
  if benchmarks is not None:
    kinds += ["benchmarks"]
    kinds += ["`rl.benchmark_samples`"] if mode == "prm+vr" else []
    compare_benchmarks(tmp_path, settings, rows)
  metric_table.check(rows, *kinds)
  stages = [(row["stage"], row["step"]) for row in rows]
  assert stages == [("rl_eval", 0), ("rl", 1), ("rl_eval", 1)]
  assert not (tmp_path / "prm").exists()
  update = rows[1]
  assert math.isfinite(update["policy_loss"])
  assert math.isfinite(update["grad_norm"])
  assert update["skipped_updates"] == 0
  # As in the real run, responses share rows and slots.
  for other in ("prm_vr", variant):
    real = importlib.import_module(f"configs.{name}").get_config(other).rl
    assert real.packed_tokens and real.length_buckets > 1
    # The real run uses continuous batching.
    assert real.engine.slots < real.prompts * real.samples_per_prompt
  rl = as_stated.rl
  assert rl.engine.slots < rl.prompts * rl.samples_per_prompt
  assert 2 * rl.engine.sync_interval < rl.sampler.max_new_tokens
  assert 0.5 < update["row_fill"] <= 1
  sample, *_ = (tmp_path / "samples.jsonl").read_text().splitlines()
  folder = tmp_path / "tiny" / "prm"
  if mode == "vr":
    assert frozen.prm is None and not folder.exists()
    for row in rows:
      assert not SCORE_METRICS & row.keys()
    assert "step_rewards" not in json.loads(sample)
    return
  # Policy and PRM have the same shapes and differ in values alone.
  saved = safetensors.numpy.load_file(folder / "model.safetensors")
  np.testing.assert_array_equal(
    frozen.prm["embedding"], saved["model.embed_tokens.weight"]
  )
  assert (
    np.abs(frozen.prm["embedding"] - frozen.reference["embedding"]).max() > 0
  )
  heads = [np.asarray(leaf) for leaf in jax.tree.leaves(frozen.prm["score"])]
  assert any(np.array_equal(head, saved["score.weight"].T) for head in heads)
  assert update["process_outcome"] != 0 and update["grad_norm"] > 0
  assert json.loads(sample)["step_rewards"]


@pytest.mark.parametrize(
  "name", ["qwen2p5_7b", "qwen2p5_math_7b", "qwen2p5_math_1p5b"]
)
@pytest.mark.parametrize(
  "variant", ["prm_vr", "vr", "smoke_prm", "smoke", "reference_main_prm"]
)
def test_the_papers_runs_use_continuous_batching_or_one_loop(name, variant):
  """One loop has a variant, which --config.rl.rollout.batches needs."""
  get_config = importlib.import_module(f"configs.{name}").get_config
  continuous, loop = get_config(variant), get_config(f"{variant}_one_loop")
  assert continuous.rl.engine.slots is not None
  assert loop.rl.engine.slots is None
  # Nothing else differs.
  continuous.rl.engine.update(
    {"slots": None, "sync_interval": loop.rl.engine.sync_interval}
  )
  assert continuous.to_dict() == loop.to_dict()
  with pytest.raises(ValueError, match="not 'sft_one_loop'"):
    get_config("sft_one_loop")


@pytest.mark.parametrize(
  ("name", "architecture"),
  [("gsm8k_prm", "LlamaForCausalLM"), ("pure_prm_7b", "Qwen2ForCausalLM")],
)
def test_smoke_runs_of_prms_have_the_real_architecture(
  name, architecture, tmp_path
):
  files = tiny_files.make_files(settings_of(name, "smoke").files, tmp_path)
  config = json.loads((pathlib.Path(files.policy) / "config.json").read_text())
  assert config["architectures"] == [architecture]
  # SmolLM2 ties its embeddings, Qwen2.5-Math-7B does not.
  assert config["tie_word_embeddings"] == (name == "gsm8k_prm")
  assert files.prm is None and pathlib.Path(files.labelled).exists()


def test_prm_training_without_a_prm_to_train_ends_in_a_sentence(
  tmp_path, monkeypatch
):
  settings = settings_of("qwen2p5_7b", "smoke_vr")

  def from_flags(*stages):
    return open_run(settings, str(tmp_path / "run"), None, stages)

  monkeypatch.setattr(cli, "from_flags", from_flags)
  with pytest.raises(ConfigError, match="no PRM to train"):
    train_prm.main([])
