"""The suites of the benchmark: their arms, their bounds and their variants."""

import dataclasses

import numpy as np
import pytest
from benchmarks import batches, document, measuring, programs, results, table
from benchmarks.cases import Case
from benchmarks.measuring import Settings
from benchmarks.models import Options
from benchmarks.suites import SUITES

CASE = Case("rollout", "tiny", 4, 2, 8, 6)


def compile_arms(suite, options, **changes):
  case = dataclasses.replace(CASE, suite=suite, **changes)
  return SUITES[suite].compile_arms(case, options)


@pytest.mark.parametrize(
  ("suite", "name", "share"),
  [
    # A response has one or two of the 16 steps that the PRM has columns for.
    ("score", "score", 0.6),
    ("update", "update", 0.8),
    pytest.param("prm", "prm", 0.4, marks=pytest.mark.slow),
  ],
)
def test_the_needed_work_is_a_little_below_the_compiled_work(
  suite, name, share
):
  """Without the backward pass, a third would be left."""
  case = dataclasses.replace(CASE, suite=suite)
  result = measuring.measure(case, Settings(Options(), 1, probe_side=16))
  assert [line.name for line in result.lines] == [name]
  assert f"never {name} " in table.as_text(result)
  saved = document.case_as_json(result)
  arm = saved["arms"][name]
  assert arm["bound_seconds"] > 0 and arm["bound_by"] in ("compute", "memory")
  compiled = arm["compiled_flops"]
  assert share * compiled < arm["needed_flops"] <= compiled
  assert 0 < arm["needed_bytes"] < arm["compiled_bytes"]
  assert arm["tokens"] == 4 * (8 + 6)
  assert arm["memory_bytes"]["total"] >= arm["memory_bytes"]["temporaries"] > 0
  flops_per_second = arm["needed_flops"] / arm["median_seconds"]
  assert arm["of_product_rate"] == pytest.approx(
    flops_per_second / saved["rates"]["flops_per_second"]
  )


def test_an_iteration_runs_the_programs_of_the_other_suites(monkeypatch):
  """Its bound is the sum of theirs, and it compiles none of them again."""
  monkeypatch.setattr(programs, "_COMPILED", {})
  compiled = []
  compile_call = programs.compile_call

  def count(function, *arguments):
    compiled.append(function)
    return compile_call(function, *arguments)

  monkeypatch.setattr(programs, "compile_call", count)
  arms = {}
  for suite in ("rollout", "score", "update", "iteration"):
    arms |= compile_arms(suite, Options())
  # The fourth is the prefill of the rollout.
  assert len(compiled) == 4
  expected = [
    *arms["generate"].phases,
    *arms["score"].phases,
    *arms["update"].phases,
  ]
  # The sampled responses have one step each, those of the suite "score" more.
  iteration = arms["iteration"]
  assert [p.flops for p in iteration.phases] == pytest.approx(
    [p.flops for p in expected], rel=0.1
  )
  assert iteration.arm.work == arms["generate"].arm.work == 4 * 6
  assert iteration.arm.seconds() > 0
  # Without it a baseline would be compared with no update.
  assert iteration.reference.grad_norm > 0


def test_packed_texts_differ_in_length():
  """They fit, and a packed row holds more than one on average."""
  case = dataclasses.replace(CASE, rows=16, new_tokens=100, prompt_tokens=40)
  texts = batches.draw_unequal_rollout(case, 128)
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
  sizes = dict(rows=4, samples=2, prompt_tokens=8, new_tokens=16)
  arms = compile_arms("packing", Options(rows_at_a_time=2), **sizes)
  assert list(arms) == ["own rows", "shorter rows", "packed rows"]
  case = Case("packing", "tiny", **sizes)
  texts = batches.draw_unequal_rollout(case, 128)
  tokens = np.asarray(texts.prompt_mask).sum(axis=1)
  tokens += np.asarray(texts.completion_mask).sum(axis=1)
  assert len(set(tokens.tolist())) > 1 and tokens.max() < 24
  first = arms["own rows"]
  assert first.reference[1] > 0
  for name, program in arms.items():
    assert program.arm.work == tokens.sum()
    assert program.phases == first.phases
    assert program.variant_of == (None if program is first else "own rows")
    np.testing.assert_allclose(
      program.reference, first.reference, rtol=1e-4, err_msg=name
    )
  assert first.arm.seconds() > 0


def test_a_variant_is_compared_with_the_first_arm():
  rates = measuring.Rates(1.0, 1.0)

  def line(name, seconds, compared_with=None):
    times = results.Times((seconds,), 1.0)
    return results.Line(name, times, (), rates, compared_with=compared_with)

  lines = [line("a", 2.0), line("b", 3.0, "a")]
  lines.append(dataclasses.replace(line("other", 6.0, "a"), baseline={}))
  case = dataclasses.replace(CASE, suite="packing")
  assert results.compare(results.Result(case, rates, {}, lines)) == {
    "other / ours": 3.0,
    "b / a": 1.5,
    "other / b": 2.0,
  }
