"""The suite "rollout": its samplers draw the same tokens."""

import dataclasses

import numpy as np
import pytest
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import Options
from benchmarks.suites import rollout

CASE = Case("rollout", "tiny", 4, 2, 8, 6)


def rollout_arms(options, **changes):
  return rollout.rollout_arms(dataclasses.replace(CASE, **changes), options)


def test_a_sampler_that_draws_other_tokens_fails(monkeypatch):
  """A variant is compared with the first sampler before it is timed."""
  make_engine = rollout.make_engine

  def make_other(*arguments):
    sample = make_engine(*arguments)

    def sample_others(*arguments):
      drawn = sample(*arguments)
      return drawn.replace(tokens=drawn.tokens + 1)

    return sample_others

  monkeypatch.setattr(rollout, "make_engine", make_other)
  with pytest.raises(BenchmarkError, match="engine and generate draw differ"):
    rollout_arms(Options())


def test_engines_draw_the_tokens_of_the_one_loop(monkeypatch):
  """The second engine has fewer slots than responses, so prompts wait."""
  slots = []
  engine_config = rollout.EngineConfig

  def record(number, chunk):
    slots.append(number)
    return engine_config(number, chunk)

  monkeypatch.setattr(rollout, "EngineConfig", record)
  sizes = dict(rows=8, new_tokens=12, stops="early")
  options = Options(engine_slots=4, engine_chunk=3)
  arms = rollout_arms(options, **sizes)
  assert list(arms) == ["generate", "engine", "refilled", "prefill"]
  assert slots == [8, 4]
  loop = arms["generate"]
  for engine in (arms["engine"], arms["refilled"]):
    assert engine.variant_of == "generate" and engine.compilation is None
    assert engine.reference.tolist() == loop.reference.tolist()
    assert engine.arm.work == loop.arm.work
    assert engine.phases == loop.phases
    assert engine.arm.seconds() > 0


def test_no_prompt_waits_if_one_has_as_many_samples_as_there_are_slots():
  options = Options(engine_slots=4)
  one_prompt = dataclasses.replace(CASE, rows=8, samples=8)
  assert not rollout.prompts_wait(one_prompt, options)
  assert rollout.prompts_wait(dataclasses.replace(CASE, rows=8), options)


def test_rollouts_may_round_the_cache_and_the_matrices():
  options = Options(cache_dtype="int8", int8_matrices=True)
  model = options.rollout_model("tiny")
  assert (model.cache_dtype, model.int8_matrices) == ("int8", True)
  assert options.model("tiny") == Options().model("tiny")
  params, *_ = rollout.generate_arguments(CASE, options)
  assert params["layers"]["down"].values.dtype == np.int8


@pytest.mark.slow
def test_rounded_rollouts_run_and_are_not_compared_by_token():
  options = Options(cache_dtype="int8", int8_matrices=True)
  assert rollout_arms(options)["generate"].arm.work == 4 * 6
