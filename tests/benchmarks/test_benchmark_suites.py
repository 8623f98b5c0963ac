"""The suites of the benchmark: their arms, their bounds and their variants."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from benchmarks import batches, bounds, measuring, results, table, timing
from benchmarks.cases import BenchmarkError, Case, Options
from benchmarks.measuring import Settings
from benchmarks.suites import SUITES, iteration, rollout, training
from benchmarks.timing import Arm, Times

CASE = Case("rollout", "tiny", 4, 2, 8, 6)
# One prompt waits for the slots of the other.
WAITING = dataclasses.replace(
  CASE,
  new_tokens=4,
  stops="early",
  options=Options(engine_slots=2, engine_chunk=3),
)
ROUNDED = dataclasses.replace(
  CASE, options=Options(cache_dtype="int8", int8_matrices=True)
)


LOOPS, PROGRAMS = {}, {}


@pytest.fixture
def shared_programs(monkeypatch):
  """An iteration has the programs of other suites: each is compiled once.

  A loop is told by its case and sampler, a program of `CASE` by its name.
  """
  compile_one_loop, compile_call = rollout.compile_one_loop, timing.compile_call

  def shared_loop(case, sampler, *arguments):
    if (case, sampler) not in LOOPS:
      LOOPS[case, sampler] = compile_one_loop(case, sampler, *arguments)
    return LOOPS[case, sampler]

  def shared_program(function, *arguments):
    name = function.__name__
    if name not in PROGRAMS:
      PROGRAMS[name] = compile_call(function, *arguments)
    return PROGRAMS[name]

  monkeypatch.setattr(rollout, "compile_one_loop", shared_loop)
  for module in (training, iteration):
    monkeypatch.setattr(module, "compile_call", shared_program)


@functools.cache
def arms_of(suite):
  """Compiled once for all tests of a suite."""
  case = dataclasses.replace(CASE, suite=suite)
  return SUITES[suite].compile_arms(case)


def test_a_sampler_that_draws_other_tokens_fails(shared_programs, monkeypatch):
  """A variant is compared with the first sampler before it is timed."""

  def make_other(case, sampler, slots):
    def sample(*arguments):
      one_loop, _ = rollout.compile_one_loop(case, sampler, *arguments)
      drawn = one_loop(*arguments)
      return drawn.replace(tokens=drawn.tokens + 1)

    return sample

  monkeypatch.setattr(rollout, "make_engine", make_other)
  with pytest.raises(BenchmarkError, match="engine and generate draw differ"):
    rollout.rollout_arms(WAITING)


def test_engines_draw_the_tokens_of_the_one_loop(shared_programs, monkeypatch):
  """The second engine has fewer slots than responses, so prompts wait. The
  first, with a slot for each, is the one loop here: it takes long to compile.
  """
  sizes, chunks, make_engine = [], [], rollout.make_engine
  engine_config = rollout.EngineConfig

  def record(case, sampler, slots):
    sizes.append(slots)
    if slots == case.rows:
      return LOOPS[case, sampler][0]
    return make_engine(case, sampler, slots)

  def record_config(slots, chunk):
    chunks.append((slots, chunk))
    return engine_config(slots, chunk)

  monkeypatch.setattr(rollout, "make_engine", record)
  monkeypatch.setattr(rollout, "EngineConfig", record_config)
  arms = rollout.rollout_arms(WAITING)
  assert list(arms) == ["generate", "engine", "refilled", "prefill"]
  assert sizes == [4, 2]
  assert chunks == [(2, WAITING.options.engine_chunk)]
  loop = arms["generate"]
  for engine in (arms["engine"], arms["refilled"]):
    assert engine.compared_with == "generate" and engine.compilation is None
    assert engine.reference.tolist() == loop.reference.tolist()
    assert engine.work == loop.work
    assert engine.phases == loop.phases
    assert engine.run() > 0


def test_no_prompt_waits_if_one_has_as_many_samples_as_there_are_slots():
  case = dataclasses.replace(CASE, rows=8, options=Options(engine_slots=4))
  assert not rollout.prompts_wait(dataclasses.replace(case, samples=8))
  assert rollout.prompts_wait(case)


def test_rollouts_may_round_the_cache_and_the_matrices():
  model = ROUNDED.rollout_config
  assert (model.cache_dtype, model.int8_matrices) == ("int8", True)
  assert ROUNDED.model_config == CASE.model_config
  params, *_ = jax.eval_shape(lambda: rollout.generate_arguments(ROUNDED))
  assert params["layers"]["down"].values.dtype == np.int8


@pytest.mark.slow
def test_rounded_rollouts_run_and_are_not_compared_by_token():
  assert rollout.rollout_arms(ROUNDED)["generate"].work == 4 * 6


@pytest.mark.parametrize(
  ("suite", "share"),
  [
    # A response has one or two of the 16 steps that the PRM has columns for.
    ("score", 0.6),
    ("update", 0.8),
    pytest.param("prm", 0.4, marks=pytest.mark.slow),
  ],
)
def test_the_needed_work_is_a_little_below_the_compiled_work(
  suite, share, shared_programs, monkeypatch
):
  """Without the backward pass, a third would be left."""
  case, arms = dataclasses.replace(CASE, suite=suite), arms_of(suite)
  compiled = dataclasses.replace(SUITES[suite], compile_arms=lambda case: arms)
  monkeypatch.setitem(SUITES, suite, compiled)
  result = measuring.measure(case, Settings(1, probe_side=16))
  assert [line.name for line in result.lines] == [suite]
  assert f"never {suite} " in table.as_text(result)
  saved = results.as_json(result)
  arm = saved["arms"][suite]
  assert arm["bound_seconds"] > 0 and arm["bound_by"] in ("compute", "memory")
  compiled = arm["compiled_flops"]
  assert share * compiled < arm["needed_flops"] <= compiled
  assert 0 < arm["needed_bytes"] < arm["compiled_bytes"]
  assert arm["tokens"] == 4 * (8 + 6)
  assert arm["memory_bytes"]["total"] >= arm["memory_bytes"]["temporaries"] > 0
  assert arm["peak_bytes"] > 10**7
  flops_per_second = arm["needed_flops"] / arm["median_seconds"]
  assert arm["of_product_rate"] == pytest.approx(
    flops_per_second / saved["rates"]["flops_per_second"]
  )


def test_an_iteration_needs_the_work_of_the_other_suites(shared_programs):
  """Its bound is the sum of theirs."""
  arm = arms_of("iteration")["iteration"]
  expected = [
    *bounds.rollout_phases(CASE, np.full(4, 6)),
    *arms_of("score")["score"].phases,
    *arms_of("update")["update"].phases,
  ]
  # The sampled responses have one step each, those of the suite "score" more.
  assert [p.flops for p in arm.phases] == pytest.approx(
    [p.flops for p in expected], rel=0.1
  )
  assert arm.work == 4 * 6
  assert arm.run() > 0
  # Without it a baseline would be compared with no update.
  assert arm.reference.grad_norm > 0


def test_packed_texts_differ_in_length():
  """They fit, and a packed row holds more than one on average."""
  case = dataclasses.replace(CASE, rows=16, new_tokens=100, prompt_tokens=40)
  texts = batches.draw_unequal_rollout(case)
  prompts = np.asarray(texts.prompt_mask).sum(axis=1)
  responses = np.asarray(texts.completion_mask).sum(axis=1)
  assert (prompts[::2] == prompts[1::2]).all()  # Samples share a prompt.
  assert 10 <= prompts.min() < prompts.max() <= 40
  assert 8 <= responses.min() < responses.max() <= 78
  np.testing.assert_array_equal(
    np.asarray(texts.prompt_mask), np.arange(40) >= 40 - prompts[:, None]
  )
  assert (prompts + responses).mean() < 140 * 0.7


@pytest.mark.slow
def test_packed_rows_take_the_same_step():
  """One loss and one gradient, in rows of three kinds and two micro-batches;
  the work counts no padding."""
  options = Options(rows_at_a_time=2)
  case = dataclasses.replace(CASE, new_tokens=16, options=options)
  arms = SUITES["packing"].compile_arms(case)
  assert list(arms) == ["own rows", "shorter rows", "packed rows"]
  texts = batches.draw_unequal_rollout(case)
  tokens = np.asarray(texts.prompt_mask).sum(axis=1)
  tokens += np.asarray(texts.completion_mask).sum(axis=1)
  assert len(set(tokens.tolist())) > 1 and tokens.max() < 24
  first = arms["own rows"]
  assert first.reference[1] > 0
  for name, arm in arms.items():
    assert arm.work == tokens.sum()
    assert arm.phases == first.phases
    assert arm.compared_with == (None if arm is first else "own rows")
    np.testing.assert_allclose(
      arm.reference, first.reference, rtol=1e-4, err_msg=name
    )
  assert first.run() > 0


def test_a_variant_is_compared_with_the_first_arm():
  rates = measuring.Rates(1.0, 1.0)

  def line(name, seconds, compared_with=None, baseline=None):
    arm = Arm(None, compared_with=compared_with, baseline=baseline)
    return results.Line(name, arm, Times((seconds,), 1.0), rates)

  lines = [line("a", 2.0), line("b", 3.0, "a"), line("other", 6.0, "a", {})]
  case = dataclasses.replace(CASE, suite="packing")
  assert results.compare(results.Result(case, rates, {}, lines)) == {
    "other / ours": 3.0,
    "b / a": 1.5,
    "other / b": 2.0,
  }
