"""Suites of the benchmark: what they compile, and what stands beside it."""

import pytest
from benchmarks import (
  document,
  programs,
  report,
  rollouts,
  suites,
  table,
)
from benchmarks.cases import BenchmarkError, Case
from benchmarks.programs import Options


@pytest.mark.parametrize(
  ("suite", "names", "share"),
  [
    # Of 16 steps that the PRM has columns for, a response has one or two.
    ("score", ["score"], 0.6),
    ("credit", ["credit", "loss", "credit and loss", "update"], 0.8),
    pytest.param("prm", ["prm"], 0.4, marks=pytest.mark.slow),
  ],
)
def test_a_bound_is_below_what_is_compiled(suite, names, share):
  """And not far: a forgotten backward pass would leave a third."""
  case = Case(suite, "tiny", 4, 2, 8, 6)
  result = report.measure(case, Options(), repeats=1, side=16)
  assert [line.name for line in result.lines] == names
  text = table.as_text(result)
  for name in names:
    assert f"never {name} " in text
  found = document.case_as_json(result)
  arm = found["arms"][names[-1]]
  assert arm["bound_seconds"] > 0 and arm["bound_by"] in ("compute", "memory")
  compiled = arm["compiled_flops"]
  assert share * compiled < arm["needed_flops"] <= compiled
  assert 0 < arm["needed_bytes"] < arm["compiled_bytes"]
  assert arm["tokens"] == 4 * (8 + 6)
  assert arm["memory_bytes"]["total"] >= arm["memory_bytes"]["temporaries"] > 0
  utilised = arm["needed_flops"] / arm["median_seconds"]
  assert arm["of_product_rate"] == pytest.approx(
    utilised / found["rates"]["flops_per_second"]
  )


def test_an_iteration_is_the_three_functions_and_compiles_none_twice(
  monkeypatch,
):
  """Its bound is theirs; what a suite before it compiled is not made again."""
  monkeypatch.setattr(programs, "_COMPILED", {})
  compiled = []
  compile_call = programs.compile_call

  def counting(function, *arguments):
    compiled.append(function)
    return compile_call(function, *arguments)

  monkeypatch.setattr(programs, "compile_call", counting)
  made = {}
  for suite in ("rollout", "score", "update", "iteration"):
    case = Case(suite, "tiny", 4, 2, 8, 6)
    made |= suites.SUITES[suite](case, Options())
  # The prefill of the rollout is the fourth.
  assert len(compiled) == 4
  phases = made["iteration"].phases
  wanted = [
    *made["generate"].phases,
    *made["score"].phases,
    *made["update"].phases,
  ]
  # What is sampled at random has one step each, other scores have more.
  assert [p.flops for p in phases] == pytest.approx(
    [p.flops for p in wanted], rel=0.1
  )
  assert made["iteration"].arm.work == made["generate"].arm.work == 4 * 6
  assert made["iteration"].arm.seconds() > 0
  # Losses of the same batch under the same weights.
  assert made["iteration"].answer.grad_norm > 0


def another_way(offset):
  """Sampling in another way; `offset` makes other tokens of it."""

  def make(case, options, sampler, *arguments):
    generate, _ = rollouts.one_loop(case, options, sampler, *arguments)

    def call(*arguments):
      drawn = generate(*arguments)
      return drawn.replace(tokens=drawn.tokens + offset)

    return call, None

  return make


def test_another_way_to_sample_stands_beside_the_first(monkeypatch):
  """And is refused where it samples something else."""
  case = Case("rollout", "tiny", 4, 2, 8, 6)
  ways = {"generate": rollouts.one_loop, "other": another_way(0)}
  monkeypatch.setattr(rollouts, "GENERATORS", ways)
  result = report.measure(case, Options(), repeats=1, side=16)
  names = [line.name for line in result.lines]
  assert names == ["generate", "other", "prefill"]
  first, other, _ = (line.times.median for line in result.lines)
  assert report.beside(result)["other / generate"] == other / first
  assert "never other " in table.as_text(result)
  ways["other"] = another_way(1)
  with pytest.raises(BenchmarkError, match="other draws other tokens"):
    rollouts.rollout(case, Options())


def test_engines_stand_beside_the_one_loop(monkeypatch):
  """The second has fewer rows at a time than there are, so prompts wait."""
  rows = []

  def counting(given, chunk):
    rows.append(given)
    return EngineConfig(given, chunk)

  EngineConfig = rollouts.EngineConfig
  monkeypatch.setattr(rollouts, "EngineConfig", counting)
  case = Case("rollout", "tiny", 8, 2, 8, 12, "early")
  made = rollouts.rollout(case, Options(engine_rows=4, engine_chunk=3))
  assert list(made) == ["generate", "engine", "refilled", "prefill"]
  assert rows == [8, 4]
  loop = made["generate"]
  for engine in (made["engine"], made["refilled"]):
    assert engine.instead_of == "generate" and engine.compilation is None
    assert engine.answer.tolist() == loop.answer.tolist()
    assert engine.arm.work == loop.arm.work
    assert engine.phases == loop.phases
    assert engine.arm.seconds() > 0
  # One prompt has as many samples as there are rows: none can wait.
  case = Case("rollout", "tiny", 8, 8, 8, 12, "early")
  made = rollouts.rollout(case, Options(engine_rows=4, engine_chunk=3))
  assert list(made) == ["generate", "engine", "prefill"]


def test_what_is_rounded_drifts_and_what_is_not_does_not():
  """Log-probs under other weights, or of other tokens, are nats apart."""
  case = Case("precision", "tiny", 4, 2, 8, 6)
  found = {
    name: made.drift
    for name, made in suites.SUITES["precision"](case, Options()).items()
  }
  mean, largest = found.pop("as computed")
  assert 0 <= mean <= largest < 1e-5
  assert set(found) == {"cache bfloat16", "cache int8", "matrices int8"}
  for name, (mean, largest) in found.items():
    assert 1e-5 < mean <= largest < 0.05, name
