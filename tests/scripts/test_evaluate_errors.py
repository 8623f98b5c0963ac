"""What an evaluation must not do: share, mix, or count what is no number."""

import dataclasses
import shutil

import evaluate
import evaluate_prm
import jax
import jax.numpy as jnp
import pytest
from configs import evaluate as config_file
from overrides import with_changes
from prm_evaluations import smoke as prm_settings
from small_models import initial_params

from pure_jax.host import huggingface
from pure_jax.host.checkpoints.record import config_differences
from pure_jax.models import policy
from pure_jax.runs import workdir
from pure_jax.runs.evaluation import data
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.runs.workdir import WorkdirError


def settings(**changes):
  """The smoke config with other values."""
  config = config_file.get_config("smoke")
  fields = with_changes(config, progress=False, **changes)
  return conversion.settings_from_config(fields, EvaluationSettings)


def test_a_workdir_in_use_is_left_alone(tmp_path):
  """Two writers would leave every response twice."""
  with (
    workdir.locked(tmp_path),
    pytest.raises(WorkdirError, match="Another process is running"),
  ):
    evaluate.evaluate(settings(), str(tmp_path))
  assert not (tmp_path / "tiny").exists()
  assert not (tmp_path / "responses.jsonl").exists()


@pytest.mark.parametrize(
  ("greedy", "samples"), [(True, 0), (False, 1)], ids=["greedy", "sampled"]
)
def test_a_policy_of_no_numbers_is_named(tmp_path, greedy, samples):
  """It would be reported as one that solves nothing."""
  asked = data.tiny(
    settings(greedy=greedy, samples=samples, k=(), sampler__max_new_tokens=2),
    tmp_path,
  )
  model = huggingface.read_config(asked.policy).model
  params = initial_params(policy.declare_policy(model))
  params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
  broken = tmp_path / "broken"
  huggingface.export_policy(broken, params, model, max_positions=1024)
  shutil.copy(broken / "model.safetensors", asked.policy)
  asked = dataclasses.replace(asked, prm=None)
  with pytest.raises(FloatingPointError, match=r"weights in .*policy"):
    evaluate.evaluate(asked, str(tmp_path / "run"))
  assert not (tmp_path / "run" / "responses.jsonl").read_bytes()
  assert not (tmp_path / "run" / "report.json").exists()


# ===== What a resumed evaluation may change =====

# No response depends on these: contents stand for the paths.
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
def test_another_value_is_refused_where_responses_depend_on_it(name):
  before = dataclasses.asdict(settings())
  after = before | {name: "another"}
  found = config_differences(before, after, evaluate.MAY_DIFFER)
  assert bool(found) == (name not in FREE), found


@pytest.mark.parametrize("name", names(evaluate_prm.EvaluatePRMSettings))
def test_another_value_is_refused_where_scores_depend_on_it(name):
  before = dataclasses.asdict(prm_settings())
  after = before | {name: "another"}
  found = config_differences(before, after, evaluate_prm.MAY_DIFFER)
  assert bool(found) == (name not in PRM_FREE), found


@pytest.mark.parametrize("script", [evaluate, evaluate_prm])
def test_other_contents_are_refused(script):
  before, after = {"contents": {"prm": "0"}}, {"contents": {"prm": "1"}}
  assert config_differences(before, after, script.MAY_DIFFER)
