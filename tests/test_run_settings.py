"""A config that cannot be run is refused, in a sentence, before anything."""

import ast
import dataclasses
import pathlib
import re
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import config_conversion  # noqa: E402
import run_settings  # noqa: E402
from configs import arithmetic, base  # noqa: E402

CONFIGS = sorted(
  path.stem
  for path in (EXPERIMENTS / "configs").glob("*.py")
  if path.stem != "base"
)


def changed(**changes):
  """The smoke config with dotted fields replaced, unlocked."""
  config = arithmetic.get_config("smoke").to_dict()
  for name, value in changes.items():
    *groups, field = name.split("__")
    place = config
    for group in groups:
      place = place[group]
    place[field] = value
  return config


@pytest.mark.parametrize("variant", ["full", "smoke"])
def test_every_config_makes_settings(variant):
  assert CONFIGS == ["arithmetic"]
  config = arithmetic.get_config(variant)
  settings = config_conversion.settings_from_config(config)
  # What was written is what is run: no field is lost or made up.
  assert dataclasses.asdict(settings) == config.to_dict()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rl__kl_coeff": 0.1}, r"config\.rl\.kl_coeff .*mean 'kl_coef'"),
    ({"rl__prompts": "many"}, r"config\.rl\.prompts must be int"),
    ({"rl__prompts": True}, r"config\.rl\.prompts must be int"),
    ({"rl__whiten": 1}, r"config\.rl\.whiten must be bool"),
    ({"rl": 3}, r"config\.rl must be a group of fields"),
    ({"rl__reward_mode": "both"}, "reward_mode must be one of"),
    ({"rl__credit": "max"}, "rl: credit must be one of"),
    ({"rl__credit_temperature": 0.0}, "credit_temperature must be > 0"),
    ({"rl__discount": 0.9}, "discount=0.9 needs credit='sum'"),
    ({"rl__loss_aggregate": "sum"}, "loss_aggregate must be one of"),
    ({"model__width": -1}, r"config\.model: width must be"),
    ({"rl__temperature": -1.0}, "temperature must be > 0"),
    ({"rl__samples_per_prompt": 1}, "no other sample to compare with"),
    ({"rl__micro_batches": 5}, "does not divide the 32 responses"),
    ({"rl__micro_batches": 0}, "does not divide the 32 responses"),
    ({"rl__answer_fraction": 0.0}, "answer_fraction must be in"),
    ({"rl__kl_placement": "both"}, "kl_placement must be"),
    ({"rl__empty_step_reward": 2.0}, "empty_step_reward must be in"),
    ({"rl__iterations": 0}, "iterations must be at least 1"),
    ({"mesh__data": 3}, r"sft\.batch_size=64 is not divisible by the 3"),
    ({"mesh__data": 0}, "mesh sizes must be at least 1"),
    ({"world__min_operations": 9}, "min_operations must be"),
    ({"world__slip_rate": 1.5}, r"slip_rate must be in \[0, 1\]"),
    ({"model__num_heads": 3}, "num_kv_heads|num_heads"),
    ({"prm__separator": "drop"}, "separator must be"),
    ({"rl__optim__learning_rate": 0.0}, "learning_rate must be positive"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"rl__top_p": 2.0}, "top_p must be in"),
    ({"rl__top_k": -1}, "top_k must be at least 0"),
    ({"rl__kl_coef": float("nan")}, r"rl\.kl_coef must be a finite number"),
    ({"sft__steps": -1}, "steps must be at least"),
  ],
)
def test_an_impossible_value_names_the_field(changes, message):
  with pytest.raises(run_settings.ConfigError, match=message):
    config_conversion.settings_from_config(changed(**changes))


def test_a_missing_field_is_named():
  config = changed()
  del config["rl"]["clip_low"]
  with pytest.raises(run_settings.ConfigError, match=r"rl\.clip_low is miss"):
    config_conversion.settings_from_config(config)


def test_every_field_of_the_base_config_has_a_comment_or_says_it_all():
  """A field nobody explains is a field nobody dares to change."""
  lines = (EXPERIMENTS / "configs" / "base.py").read_text().splitlines()
  obvious = {
    *("width", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    *("mlp_width", "rope_theta", "attention_bias", "tied_embeddings"),
    *("compute_dtype", "learning_rate", "weight_decay", "beta1", "beta2"),
    *("max_grad_norm", "warmup_steps", "optim", "head_optim", "full_optim"),
    *("steps", "log_every", "iterations", "samples_per_prompt", "top_p"),
    *("max_new_tokens", "temperature", "clip_low", "clip_high", "discount"),
    *("process_coef", "verifiable_coef", "kl_coef", "entropy_coef"),
    *("checkpoint_every", "loss_aggregate", "min_operations", "baseline"),
    *("max_operations", "head_steps", "full_steps"),
  }
  for number, line in enumerate(lines):
    field = re.match(r'\s+(?:"?)(\w+)(?:"?)[=:] ?[\w"(-]', line)
    if field and "def " not in line and line.startswith("      "):
      explained = "#" in line or "#" in lines[number - 1]
      assert explained or field[1] in obvious, line


def test_every_field_is_read_somewhere():
  """A config field nobody reads is a promise nobody keeps."""
  sources = [
    *EXPERIMENTS.glob("*.py"),
    *(EXPERIMENTS.parent / "pure_jax").rglob("*.py"),
  ]
  read = {
    node.attr
    for path in sources
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
  }

  def names(kind):
    for field in dataclasses.fields(kind):
      yield field.name

  for kind in (
    run_settings.Settings,
    run_settings.RLSettings,
    run_settings.PRMSettings,
    run_settings.SFTSettings,
    run_settings.MeshSettings,
  ):
    assert set(names(kind)) <= read


def test_base_config_is_complete_by_itself():
  config_conversion.settings_from_config(base.get_config())
