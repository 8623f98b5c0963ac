"""Baselines of the benchmark: real ones, in the environment of the tests."""

import dataclasses
import importlib.util
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest

from pure_jax.advantages import pure_advantages
from pure_jax.host import huggingface
from pure_jax.training.score import Scores

pytest.importorskip("torch", reason="torch comes with [test]")

import torch
from benchmarks import measuring, results, table
from benchmarks.baselines import (
  BASELINES,
  check_environments,
  preparation,
  read_names,
  run_baselines,
)
from benchmarks.baselines.process import SCRIPTS, Process, make_environment
from benchmarks.cases import MODELS, BenchmarkError, Case, Options
from benchmarks.measuring import Settings
from benchmarks.models import init_policy, init_prm
from benchmarks.suites import SUITES, rollout
from benchmarks.suites.iteration import IterationReference
from benchmarks.suites.training import step_spec

EARLY = Case("rollout", "tiny", 4, 2, 8, 6, "early")


TRANSFORMERS = BASELINES[0]


@pytest.fixture(scope="module")
def transformers():
  """The process of a sampler, in the environment of the tests."""
  script = TRANSFORMERS.script
  with Process("transformers", sys.executable, script) as process:
    yield process


@pytest.fixture(scope="module")
def arms():
  """Our samplers of the case `EARLY`; the engine is the one loop."""

  loops, compile_one_loop = [], rollout.compile_one_loop

  def remember(*arguments):
    loops.append(compile_one_loop(*arguments))
    return loops[-1]

  def make_engine(case, sampler, slots):
    generate, _ = loops[-1]
    return generate

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rollout, "compile_one_loop", remember)
    patch.setattr(rollout, "make_engine", make_engine)
    return rollout.rollout_arms(EARLY)


@pytest.fixture(scope="module")
def environments():
  """All environments: gigabytes, which pytest would keep."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for environment in {each.name for each in BASELINES}:
      make_environment(folder, environment)
    yield folder


def measure(case, baselines):
  return measuring.measure(case, Settings(1, probe_side=16), baselines)


def prepare_again(baselines, case, ours, reference):
  """With another reference of ours."""
  ((baseline, process),) = baselines.items()
  ours = dataclasses.replace(ours, reference=reference)
  baseline.prepare(process, case, ours)


def test_transformers_draws_as_many_tokens_from_the_same_model(
  transformers, arms, monkeypatch
):
  """If its rows went on after ours ended, it would take longer."""
  ours = arms["generate"]
  compiled = dataclasses.replace(
    SUITES["rollout"], compile_arms=lambda case: arms
  )
  monkeypatch.setitem(SUITES, "rollout", compiled)
  result = measure(EARLY, {TRANSFORMERS: transformers})
  assert [line.name for line in result.lines] == [
    "generate", "engine", "prefill", "transformers"
  ]  # fmt: skip
  assert len(set(ours.reference.tolist())) > 1
  tokens = np.array(transformers.call("answer")["tokens"])
  np.testing.assert_array_equal((tokens != 0).sum(axis=1), ours.reference)
  saved = results.as_json(result)["arms"]
  theirs = saved["transformers"]
  assert theirs["greedy_tokens_equal"] == 1.0
  assert theirs["tokens"] == saved["generate"]["tokens"] == ours.reference.sum()
  assert theirs["bound_seconds"] == saved["generate"]["bound_seconds"]
  assert theirs["versions"].keys() == {"python", "torch", "transformers"}
  assert theirs["peak_bytes"] > 10**7
  ratio = theirs["median_seconds"] / saved["generate"]["median_seconds"]
  assert results.compare(result)["transformers / ours"] == ratio
  assert "early transformers " in table.as_text(result)


@pytest.mark.slow
@pytest.mark.parametrize("attention_bias", [True, False])
def test_tunix_draws_the_same_tokens(environments, monkeypatch, attention_bias):
  """From a Qwen2 and from a Llama, for which it has two models."""
  model = dataclasses.replace(MODELS["tiny"], attention_bias=attention_bias)
  monkeypatch.setitem(MODELS, "tiny", model)
  never = dataclasses.replace(EARLY, stops="never")
  names = ["tunix", "transformers"]
  with run_baselines("rollout", names, environments) as baselines:
    measured = [measure(case, baselines) for case in (never, EARLY)]
  for result in measured:
    ours, _, _, *theirs = result.lines
    assert [line.name for line in theirs] == names
    for line in theirs:
      assert line.arm.baseline["greedy_tokens_equal"] == 1.0
      assert line.times.work == ours.times.work
  full, early = (result.lines[0].times.work for result in measured)
  assert full == 4 * 6 > early


@pytest.mark.slow
def test_trl_takes_the_same_step(environments, monkeypatch):
  """In two micro-batches; half the loss would be half the gradient."""
  # With many ids it matters little that ours gives padding no probability.
  model = dataclasses.replace(MODELS["tiny"], vocab_size=4096)
  monkeypatch.setitem(MODELS, "tiny", model)
  options = Options(rows_at_a_time=2)
  case = Case("update", "tiny", 4, 2, 8, 6, options=options)
  with run_baselines("update", ["trl"], environments) as baselines:
    result = measure(case, baselines)
    ours = SUITES["update"].compile_arms(case)["update"]
    with pytest.raises(BenchmarkError, match="the steps are not the same"):
      prepare_again(baselines, case, ours, ours.reference / 2)
  assert [line.name for line in result.lines] == ["update", "trl"]
  assert result.lines[1].arm.baseline["versions"]["trl"]


@pytest.mark.slow
def test_trl_trains_the_same_prm(environments):
  """A label next to its score token would give another loss."""
  case = Case("prm", "tiny", 4, 2, 8, 60)
  with run_baselines("prm", ["trl_prm"], environments) as baselines:
    result = measure(case, baselines)
    ours = SUITES["prm"].compile_arms(case)["prm"]
    with pytest.raises(BenchmarkError, match="the steps are not the same"):
      prepare_again(baselines, case, ours, ours.reference * [1.0, 1.01])
  assert [line.name for line in result.lines] == ["prm", "trl_prm"]
  assert result.lines[1].arm.baseline["largest_relative_difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stops", ["never", "early"])
def test_trl_does_the_same_iteration(environments, monkeypatch, stops):
  """In two micro-batches, with responses of more than `MAX_STEPS` steps."""
  model = dataclasses.replace(MODELS["tiny"], vocab_size=4096)
  monkeypatch.setitem(MODELS, "tiny", model)
  options = Options(rows_at_a_time=2)
  case = Case("iteration", "tiny", 4, 2, 8, 400, stops, options)
  with run_baselines("iteration", ["trl"], environments) as baselines:
    result = measure(case, baselines)
    ours = SUITES["iteration"].compile_arms(case)["iteration"]
    scores = ours.reference.scores
    assert (scores.steps.overflow > 0).any()
    negated = scores.replace(step_rewards=-scores.step_rewards)
    other = dataclasses.replace(ours.reference, scores=negated)
    with pytest.raises(BenchmarkError, match="iterations are not the same"):
      prepare_again(baselines, case, ours, other)
  ours, theirs = result.lines
  assert (ours.name, theirs.name) == ("iteration", "trl")
  assert theirs.times.work == ours.times.work
  assert max(theirs.arm.baseline["largest_differences"].values()) < 1e-3


def test_iterations_are_compared_by_their_largest_difference():
  """A baseline may leave out the columns of steps that no response has."""
  logp, rewards = np.zeros((2, 3)), np.array([[0.5, 0.0, 0.0], [0.1, 0.2, 0.0]])
  scores = Scores(None, rewards, logp, logp - 1)
  ours = IterationReference(np.array([3, 3]), np.zeros(2), scores, 1.0, 2.0)
  answer = {
    "old_logp": (logp + 0.25).tolist(),
    "ref_logp": (logp - 1).tolist(),
    "step_rewards": [[0.5, 0.0], [0.1, -0.2]],
    "loss": 1.5,
    "grad_norm": 1.0,
  }
  assert preparation.largest_differences(answer, ours) == {
    "old_logp": 0.25,
    "ref_logp": 0.0,
    "step_rewards": 0.4,
    "loss": 0.5,
    "grad_norm": 0.5,
  }


def test_a_baseline_with_another_model_fails(transformers, arms, monkeypatch):
  """One layer is left out, as by a wrong conversion."""

  def without_a_layer(case):
    params = init_policy(case)
    layers = dict(params["layers"])
    layers["down"] = layers["down"].at[0].set(0.0)
    return {**params, "layers": layers}

  # What is exported.
  monkeypatch.setattr(preparation, "init_policy", without_a_layer)
  monkeypatch.setattr(transformers, "loaded", None)
  with pytest.raises(BenchmarkError, match="greedy tokens differ"):
    TRANSFORMERS.prepare(transformers, EARLY, arms["generate"])


def test_the_torch_loop_gives_the_same_advantages():
  """With the sum of rewards instead of their softmin it does not."""
  path = SCRIPTS / "torch_advantages.py"
  spec = importlib.util.spec_from_file_location("torch_advantages", path)
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  case = Case("update", "tiny", 8, 4, 8, 60)
  batch = preparation.draw_experience(case)
  assert batch.steps.mask.sum() > 16  # Responses of several steps.
  config = step_spec(case).credit
  index, mask = np.asarray(batch.steps.index), np.asarray(batch.completion_mask)
  rows, columns = mask.shape
  ends = [
    [
      token
      for token in range(columns)
      if mask[row, token]
      and (
        token + 1 == mask[row].sum()
        or index[row, token] < index[row, token + 1]
      )
    ]
    for row in range(rows)
  ]
  assert [len(row) for row in ends] == batch.steps.mask.sum(axis=1).tolist()
  theirs = script.advantages(
    torch.tensor(np.asarray(batch.step_rewards)),
    ends,
    torch.tensor(np.asarray(batch.correct)),
    case.samples,
    config.temperature,
    columns,
  ).numpy()

  def largest_difference(form):
    ours, _ = jax.jit(pure_advantages, static_argnums=1)(
      batch, dataclasses.replace(config, form=form)
    )
    return np.abs(theirs - ours).max()

  assert largest_difference("softmin") < 1e-5
  assert largest_difference("sum") > 1e-2


def test_the_error_of_a_process_that_died_is_named(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(
    f"import sys; sys.path.append({str(SCRIPTS)!r})\n"
    "import exchange; exchange.serve(object())"
  )
  with Process("script", sys.executable, script) as process:
    with pytest.raises(
      BenchmarkError, match="died in 'nothing': AttributeError"
    ):
      process.call("nothing")
    with pytest.raises(BenchmarkError, match="died in 'run'"):
      process.call("run")
  assert process._process.poll() is not None


def test_every_baseline_has_its_script_and_its_requirements():
  for baseline in BASELINES:
    assert baseline.suite in SUITES
    assert (SCRIPTS / baseline.script).exists()
    assert (SCRIPTS / f"{baseline.name}.txt").exists()


def test_all_baselines_are_named_once():
  names = ["transformers", "tunix", "trl", "trl_prm"]
  assert read_names(["all"]) == names
  assert read_names(["trl"]) == ["trl"] and read_names([]) == []


def test_a_baseline_that_cannot_run_is_named(tmp_path):
  with pytest.raises(BenchmarkError, match="must be one of transformers"):
    read_names(["tensors"])
  with pytest.raises(BenchmarkError, match="--baselines needs --environments"):
    check_environments(["transformers"], None)
  with pytest.raises(BenchmarkError, match="--make_environments=FOLDER"):
    check_environments(["transformers"], tmp_path)


def test_weights_are_read_from_a_folder_of_the_same_shape(tmp_path):
  params = jax.tree.map(lambda x: x + 1, init_policy(EARLY))
  folder = tmp_path / "weights"
  huggingface.export_policy(folder, params, MODELS["tiny"], max_positions=64)
  case = dataclasses.replace(EARLY, options=Options(weights=str(folder)))
  jax.tree.map(np.testing.assert_array_equal, init_policy(case), params)
  prm = init_prm(case)
  np.testing.assert_array_equal(prm["embedding"], params["embedding"])
  with pytest.raises(BenchmarkError, match="not of the shape 10m: it differs"):
    init_policy(dataclasses.replace(case, model="10m"))
  missing = Options(weights=str(tmp_path / "none"))
  with pytest.raises(BenchmarkError, match="no such folder"):
    init_policy(dataclasses.replace(EARLY, options=missing))
