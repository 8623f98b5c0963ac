"""How many responses of an evaluation are written together."""

import pytest
from configs import evaluate as config_file
from overrides import with_changes

from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import EvaluationSettings


def settings(**changes):
  fields = with_changes(config_file.get_config("smoke"), **changes)
  return conversion.settings_from_config(fields, EvaluationSettings)


@pytest.mark.parametrize(
  ("units", "rows"),
  [(30, 32), (500, 256), (300, 160), (256, 256), (257, 160), (12136, 256)],
)
def test_places_that_only_fill_up_a_batch_are_few(units, rows):
  """Each is written like others: 226 beside the 30 problems of AIME."""
  config = settings(batch_rows=256, engine__rows=32)
  assert config.rows_of_batches(units) == rows
  assert settings(batch_rows=256).rows_of_batches(units) == 256


def test_a_prompt_is_read_once_where_its_samples_fill_places():
  config = settings(batch_rows=48, engine__rows=24)  # Of 4 samples.
  assert config.group_size(2, greedy=False) == 4
  assert config.group_size(4, greedy=False) == 1
  assert config.group_size(2, greedy=True) == 1
  assert settings().group_size(1, greedy=False) == 1
  # Greedy responses alone: nothing to divide places by.
  none = settings(batch_rows=48, engine__rows=24, samples=0, k=())
  assert none.group_size(1, greedy=False) == 1


def test_responses_take_turns_unless_one_loop_is_asked_for():
  for variant, rows in (("full", 32), ("one_loop", None), ("smoke", None)):
    assert config_file.get_config(variant).engine.rows == rows
