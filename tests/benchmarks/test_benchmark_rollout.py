"""The suite "rollout": its samplers draw the same tokens."""

import dataclasses

import numpy as np
import pytest
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import Options
from benchmarks.suites import rollout

CASE = Case("rollout", "tiny", 4, 2, 8, 4, "early")
# One prompt waits for the slots of the other.
OPTIONS = Options(engine_slots=2, engine_chunk=3)


def test_a_sampler_that_draws_other_tokens_fails(monkeypatch):
  """A variant is compared with the first sampler before it is timed."""

  def make_other(case, options, sampler, slots):
    def sample(*arguments):
      one_loop, _ = rollout.compile_one_loop(case, options, sampler, *arguments)
      drawn = one_loop(*arguments)
      return drawn.replace(tokens=drawn.tokens + 1)

    return sample

  monkeypatch.setattr(rollout, "make_engine", make_other)
  with pytest.raises(BenchmarkError, match="engine and generate draw differ"):
    rollout.rollout_arms(CASE, OPTIONS)


def test_engines_draw_the_tokens_of_the_one_loop(monkeypatch):
  """The second engine has fewer slots than responses, so prompts wait."""
  sizes = []
  engine_config = rollout.EngineConfig

  def record(slots, chunk):
    sizes.append((slots, chunk))
    return engine_config(slots, chunk)

  monkeypatch.setattr(rollout, "EngineConfig", record)
  arms = rollout.rollout_arms(CASE, OPTIONS)
  assert list(arms) == ["generate", "engine", "refilled", "prefill"]
  assert sizes == [(4, 3), (2, 3)]
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
  case = dataclasses.replace(CASE, stops="never")
  arms = rollout.rollout_arms(case, options)
  assert arms["generate"].arm.work == 4 * 4
