"""Every number of every setting has a range, and says it when it refuses."""

import dataclasses
import functools
import importlib
import itertools
import math
import re
import types
import typing

import pytest
from absl import flags
from checkout import EXPERIMENTS
from configs import base
from ml_collections import ConfigDict
from overrides import with_changes
from script_in_process import imported_script

from pure_jax import settings
from pure_jax.host.data.world.arithmetic import WorldConfig
from pure_jax.models.config import LoraConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs.settings import conversion, evaluation, run
from pure_jax.training.optim import OptimConfig

NUMBERS = (1e300, -1e300, 5e-324, 1e-40, math.nan, math.inf, -math.inf)
# What a file may hold in place of a number.
OTHERS = ("1", "\u0661", True, 10**5000, -(10**400), (1.0,), {}, b"1", 1j)

# Configs that together have every group: (file, variant, kind).
CONFIGS = (
  ("arithmetic", "smoke", run.Settings),
  ("qwen2p5_7b", "smoke_prm", run.Settings),
  ("evaluate", "smoke", evaluation.EvaluationSettings),
  ("evaluate_prm", "smoke", evaluation.EvaluatePRMSettings),
)


def numbers_of(kind, values, path=""):
  """(path, type) of the numbers in a group that a config has."""
  hints = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    types_ = typing.get_args(hints[field.name])
    if not isinstance(hints[field.name], types.UnionType):
      types_ = (hints[field.name],)
    name = f"{path}__{field.name}" if path else field.name
    for one in types_:
      if one in (int, float):
        yield name, one
      elif dataclasses.is_dataclass(one) and values.get(field.name) is not None:
        yield from numbers_of(one, values[field.name], name)


@functools.cache
def config_of(name, variant):
  """A config as a ConfigDict, with every group that is None by itself."""
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  if name == "arithmetic":
    config.rl.adaptive_kl = ConfigDict({"target": 0.1, "horizon": 10_000})
    for mesh in ("rollout_mesh", "reference_mesh", "prm_mesh"):
      setattr(config.rl, mesh, ConfigDict(base.mesh()))
  return config


# One config for each field: groups that several have are tried once.
FIELDS = list(
  {
    (kind, path): (name, variant, kind, path, one)
    for name, variant, kind in reversed(CONFIGS)
    for path, one in numbers_of(kind, config_of(name, variant))
  }.values()
)
FLOATS = [field[:-1] for field in FIELDS if field[-1] is float]


def refusal(name, variant, kind, path, value):
  """What a config with another value is refused with, or "accepted"."""
  changed = with_changes(config_of(name, variant), **{path: value})
  try:
    conversion.settings_from_config(changed, kind)
  except conversion.ConfigError as error:
    return str(error)
  return "accepted"


def test_the_configs_have_every_group_of_numbers():
  """A group that no config here has would not be tried."""
  seen = {(kind, path) for _, _, kind, path, _ in FIELDS}
  for kind in {config[2] for config in CONFIGS}:
    everything = Everything()
    wanted = {(kind, path) for path, _ in numbers_of(kind, everything)}
    assert wanted - seen == set()


class Everything(dict):
  """A config that has every group."""

  def get(self, name):
    return self

  def __getitem__(self, name):
    return self


@pytest.mark.parametrize(
  "field", FIELDS, ids=lambda field: f"{field[0]}-{field[3]}"
)
def test_no_number_that_cannot_be_meant_is_accepted(field):
  """The sentence names the field, for numbers and for what is no number."""
  *place, _ = field
  path = place[-1]
  name = path.rpartition("__")[2]
  for value in (*NUMBERS, *OTHERS):
    message = refusal(*place, value)
    assert re.search(rf"\b{name}\b", message), f"{value!r:.20}: {message}"
    assert len(message) < 500, message
    assert message.endswith("."), message


@pytest.mark.parametrize(
  "field", FLOATS, ids=lambda field: f"{field[0]}-{field[3]}"
)
def test_a_range_is_what_its_message_says(field):
  """Its ends are accepted, and what is a little beyond them is not."""
  message = refusal(*field, 1e30)
  found = re.search(r"must be between (\S+) and ([^\s,]+),", message)
  assert found, message
  low, high = map(float, found.groups())
  assert -1 <= low < high <= 1e12
  for value in (low, high):
    assert "must be between" not in refusal(*field, value)
  beyond = (low - 1e-3 * (abs(low) or 1), high + 1e-3 * high)
  for value in beyond:
    assert found[0] in refusal(*field, value)


LIBRARY = {
  settings.CreditConfig: {},
  settings.LossConfig: {},
  settings.AdaptiveKLConfig: {},
  settings.ScoreConfig: {"max_steps": 3},
  OptimConfig: {"learning_rate": 1e-3},
  LoraConfig: {"rank": 2, "alpha": 4.0},
  SamplingConfig: {"max_new_tokens": 4, "pad_id": 0, "stop_ids": (1,)},
  WorldConfig: {},
}


@pytest.mark.parametrize("kind", LIBRARY, ids=lambda kind: kind.__name__)
def test_the_librarys_own_configs_refuse_what_float32_cannot_hold(kind):
  """Only a number that float32 rounds to 0 is a 0 where 0 is in the range."""
  fields = [name for name, one in numbers_of(kind, {}) if one is float]
  for name, value in itertools.product(fields, NUMBERS):
    if 0 < value < 1e-30 and accepts(kind, **{name: 0.0}):
      continue
    with pytest.raises(ValueError, match=rf"^{name} must be between"):
      kind(**LIBRARY[kind] | {name: value})


def accepts(kind, **changes):
  """Whether a config accepts other values."""
  try:
    kind(**LIBRARY[kind] | changes)
  except ValueError as error:
    return "must be between" not in str(error)
  return True


FLAGS = {
  "grade": ("timeout_seconds",),
  "plan": ("price",),
  "benchmark": ("seconds",),
  "check_accelerator": ("minutes", "deadline"),
}


def test_every_float_of_a_command_line_is_tried():
  found = {}
  for path in EXPERIMENTS.glob("*.py"):
    names = re.findall(r'DEFINE_float\(\s*"(\w+)"', path.read_text())
    found |= {path.stem: tuple(names)} if names else {}
  assert found == FLAGS


@pytest.mark.parametrize("script", FLAGS)
def test_no_flag_accepts_a_number_that_cannot_be_meant(script):
  with imported_script(script):
    for flag, value in itertools.product(FLAGS[script], NUMBERS):
      if 0 < value < 1e-30 and script != "grade":
        continue  # As good as 0, which both accept.
      with pytest.raises(flags.IllegalFlagValueError, match="must be between"):
        setattr(flags.FLAGS, flag, value)
