"""Accelerators multiply in bfloat16, a CPU in float32, and a config decides."""

import pytest
from configs import arithmetic, qwen2p5_7b

from pure_jax.runs.settings import compute_dtype, conversion
from pure_jax.runs.settings.run import ConfigError


def settings_of(config, **changes):
  for name, value in changes.items():
    config[name].compute_dtype = value
  return conversion.settings_from_config(config)


@pytest.mark.parametrize(
  ("platform", "expected"),
  [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")],
)
def test_the_platform_decides_where_the_config_does_not(platform, expected):
  made = settings_of(arithmetic.get_config())
  resolved = compute_dtype.resolve(made, platform)
  assert resolved.model.architecture(8).compute_dtype == expected
  assert resolved.model.architecture(8).param_dtype == "float32"


def test_files_are_resolved_and_keep_float32_weights():
  config = qwen2p5_7b.get_config()
  config.files.policy = "folder"
  resolved = compute_dtype.resolve(settings_of(config), "tpu")
  assert resolved.files.compute_dtype == "bfloat16"
  assert resolved.files.param_dtype == "float32"


def test_what_a_config_names_stays():
  made = settings_of(arithmetic.get_config(), model="bfloat16")
  assert compute_dtype.resolve(made, "cpu") == made
  with pytest.raises(ConfigError, match="compute_dtype must be one of"):
    settings_of(arithmetic.get_config(), model="float16")


def test_a_dtype_that_nobody_chose_makes_no_model():
  made = settings_of(arithmetic.get_config())
  with pytest.raises(ValueError, match="compute_dtype must be one of"):
    made.model.architecture(8)
