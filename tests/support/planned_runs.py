"""Settings, execution plans and command lines that tests of plans share."""

import contextlib
import sys

import plan
from absl import flags
from absl.testing import flagsaver
from checkout import EXPERIMENTS
from configs import arithmetic
from ml_collections import config_flags

from pure_jax.runs.planning.execution_plan import ExecutionPlan
from pure_jax.runs.settings.conversion import settings_from_config
from pure_jax.runs.spec import Layouts

CONFIGS = EXPERIMENTS / "configs"


def settings_of(config, platform="cpu"):
  """Settings of a config on devices of that platform."""
  return settings_from_config(config).for_platform(platform)


def smoke_settings(**changes):
  """The smoke run of the embedded world, with fields changed by dotted name."""
  config = arithmetic.get_config("smoke")
  config.update_from_flattened_dict(changes)
  return settings_of(config)


def plan_of(layout, slots=None):
  """An execution plan in one micro-batch, the same layout for all models."""
  return ExecutionPlan(Layouts.same(layout), 1, 1, slots)


def read_flags(config, given):
  """Settings of a config after flags, as a script reads them."""
  words = ["script", *given]
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    "config", config, flag_values=values, sys_argv=words
  )
  values(words)
  return settings_from_config(values.config)


@contextlib.contextmanager
def command_line(monkeypatch, *options):
  """Parses the flags of plan.py in this process."""
  words = ["plan.py", *options]
  monkeypatch.setattr(sys, "argv", words)
  with flagsaver.flagsaver():
    flags.FLAGS(words)
    yield plan
