"""Every whole number of every config, with absurd values.

Each raises an error before anything is allocated, or is harmless: no array has
its size, or it only takes time.
"""

import copy
import functools
import importlib

import jax
import pytest

from pure_jax.runs.memory import needs, of_evaluation, of_run, run_sizes
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.evaluation import (
  EvaluatePRMSettings,
  EvaluationSettings,
)
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.spec import make_layouts

CONFIGS = {
  "arithmetic": ("smoke", Settings),
  "gsm8k_prm": ("smoke", Settings),
  "qwen2p5_7b": ("smoke_prm", Settings),
  "evaluate": ("smoke", EvaluationSettings),
  "evaluate_prm": ("smoke", EvaluatePRMSettings),
}
# No field, seeds apart, may have these: they are not 32-bit numbers.
TOO_LONG = (2**31, 10**30)
BILLION = 10**9
# Fields that are None in every config above.
UNSET = {
  *("packed_tokens", "baseline_length", "benchmark_new_tokens", "slots"),
  *("problems", "labelled_rows", "labelled_held_out_rows"),
  *("logits_chunk", "attention_chunk"),
}
# Only time passes: the stage, or the wait for the next event, is longer.
TIME = {
  *("iterations", "steps", "head_steps", "full_steps", "warmup_steps"),
  *("decay_steps", "warmup_iterations", "log_every", "eval_every"),
  *("samples_every", "checkpoint_every", "check_every", "sync_interval"),
  *("max_skipped_updates", "checkpoints_kept"),
}
# A number above what exists means all, or the longest.
ALL = {
  *("slots", "generations", "length_buckets", "length_multiple", "top_k"),
  *("problems", "labelled_rows", "labelled_held_out_rows"),
  *("logits_chunk", "attention_chunk", "value_max", "labelled_one_in"),
  "response_tokens",
}
# A number that other numbers are divided by, or that seeds them.
NUMBERS = {"seed", "bootstrap_seed", "baseline_length"}
HARMLESS = TIME | ALL | NUMBERS
# Harmless because this config does not use them.
UNUSED = {
  "arithmetic": {"rl.benchmark_new_tokens", "rl.benchmark_samples"},
  # Its files say how many problems there are, and nothing is trained but RL.
  "qwen2p5_7b": {
    *("rl.benchmark_new_tokens", "rl.benchmark_samples", "rl.eval_prompts"),
    *("prm.eval_prompts", "prm.extra_layers", "prm.lora.rank"),
  },
  "gsm8k_prm": {
    *("rl.benchmark_new_tokens", "rl.benchmark_samples", "rl.eval_prompts"),
    *("prm.eval_prompts",),
  },
  # Refused when the number of problems is known.
  "evaluate": {"samples"},
  "evaluate_prm": {"prompt_tokens"},
}


@pytest.fixture(autouse=True)
def laptop(monkeypatch):
  """A machine that does not hold a terabyte, whichever runs the tests."""
  monkeypatch.setattr(needs, "machine_bytes", lambda: 16 * 2**30)


@functools.cache
def original(name):
  """The config as a dict, not to be changed."""
  variant, _ = CONFIGS[name]
  module = importlib.import_module(f"configs.{name}")
  return module.get_config(variant).to_dict()


def config_of(name):
  """The config as a dict."""
  return copy.deepcopy(original(name))


def whole_numbers(group, path=()):
  """Paths of the fields that are whole numbers, or may be."""
  for name, value in group.items():
    if isinstance(value, dict):
      yield from whole_numbers(value, (*path, name))
    elif type(value) is int or (value is None and name in UNSET):
      yield (*path, name)


FIELDS = [
  (name, path) for name in CONFIGS for path in whole_numbers(config_of(name))
]


def check(name, path, value):
  """Makes settings with another value, and checks the memory they need."""
  _, kind = CONFIGS[name]
  config = group = config_of(name)
  *groups, field = path
  for part in groups:
    group = group[part]
  group[field] = value
  settings = settings_from_config(config, kind).for_platform("cpu")
  if kind is EvaluationSettings:
    of_evaluation.check_evaluation(settings, settings.mesh.layout())
  elif kind is EvaluatePRMSettings:
    of_evaluation.check_prm_evaluation(settings, settings.mesh.layout())
  else:
    run = run_sizes.read_sizes(settings, make_layouts(settings))
    run_sizes.check_counts(run, run_sizes.STAGES)
    of_run.check_memory(run, run_sizes.STAGES)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_field_may_be_longer_than_32_bits(name):
  for path in whole_numbers(config_of(name)):
    for value in TOO_LONG:
      if path[-1] in ("seed", "bootstrap_seed") and 0 <= value < 2**32:
        continue
      with pytest.raises(ConfigError) as refused:
        check(name, path, value)
      assert ".".join(path) in str(refused.value)
      assert "2**3" in str(refused.value)


@pytest.mark.parametrize(
  "value",
  [2**63, 10**5000, -(2**31) - 1, -(10**30)],
  ids=["64 bits", "5000 digits", "negative", "negative and long"],
)
def test_the_sentence_about_a_long_number_is_short(value):
  """Python has no text for numbers of thousands of digits."""
  with pytest.raises(ConfigError) as refused:
    check("arithmetic", ("rl", "prompts"), value)
  assert len(str(refused.value)) < 300
  assert "rl.prompts must fit into 32 bits" in str(refused.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_billion_is_refused_or_harmless(name):
  """A whole number is in the lists of this file, or too large for memory."""
  for path in whole_numbers(config_of(name)):
    harmless = path[-1] in HARMLESS or ".".join(path) in UNUSED[name]
    try:
      check(name, path, BILLION)
    except ConfigError as refused:
      assert str(BILLION) in str(refused), path
      # A schedule has to fit its stage, whose steps may be the field.
      is_schedule = "updates of the stage" in str(refused)
      assert path[-1] in str(refused) or is_schedule, path
    else:
      assert harmless, path


@pytest.mark.parametrize("value", [0, -1, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_small_values_make_settings_or_a_sentence(name, value):
  for path in whole_numbers(config_of(name)):
    try:
      check(name, path, value)
    except ConfigError as refused:
      assert str(refused).endswith("."), path


@pytest.mark.parametrize("value", [-1, 2**32, 2**63, 10**30])
def test_a_seed_that_repeats_another_is_refused(value):
  """The keys of 2**32 are those of 0: jax drops all higher bits."""
  data = jax.random.key_data
  assert (data(jax.random.key(2**32)) == data(jax.random.key(0))).all()
  last = data(jax.random.key(2**32 - 1))
  assert (last != data(jax.random.key(2**31 - 1))).any()
  for name, path in FIELDS:
    if path[-1] in ("seed", "bootstrap_seed"):
      with pytest.raises(ConfigError, match=r"below 2\*\*32"):
        check(name, path, value)
