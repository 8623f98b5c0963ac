"""The benchmark: its bounds, timings, cases and memory."""

import dataclasses
import json
import mmap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import (
  bounds,
  cases,
  machine,
  measuring,
  presets,
  results,
  timing,
)
from benchmarks.cases import MODELS, BenchmarkError, Case, Options
from benchmarks.measuring import Settings
from benchmarks.results import Document
from benchmarks.suites import SUITES
from benchmarks.timing import Arm, Times, time_interleaved

RATES = bounds.Rates(flops_per_second=100.0, bytes_per_second=10.0)
# All sizes differ, so that none can be mistaken for another.
ODD = dataclasses.replace(
  MODELS["tiny"], vocab_size=11, width=8, num_layers=3, num_heads=4,
  num_kv_heads=2, head_dim=6, mlp_width=10,
)  # fmt: skip

ODD_CASE = Case("rollout", "odd", 4, 2, 5, 4)


def test_the_model_10m_has_ten_million_weights():
  assert bounds.count_weights(MODELS["10m"]) == pytest.approx(10e6, rel=0.02)


def test_phases_follow_each_other():
  """Phases cannot overlap: a single bound of their sums would be 5 seconds."""
  phases = [bounds.Phase(300.0, 10.0), bounds.Phase(100.0, 40.0)]
  assert bounds.least_time(phases, RATES) == (3.0 + 4.0, "memory")


@pytest.mark.parametrize("tied", [True, False])
def test_a_pass_reads_every_weight(tied, monkeypatch):
  """Of an embedding that is not the head it reads the rows of the tokens."""
  model = dataclasses.replace(ODD, tied_embeddings=tied, qk_norm=True)
  monkeypatch.setitem(MODELS, "odd", model)
  half = dataclasses.replace(ODD_CASE, options=Options(dtype="bfloat16"))
  matrices = 2 * 8 * 4 * 6 + 2 * 8 * 2 * 6 + 3 * 8 * 10
  biases_and_norms = 4 * 6 + 2 * 2 * 6 + 2 * 6 + 2 * 8
  layers = 3 * (matrices + biases_and_norms) + 8
  few, many = (11, 11) if tied else (11 + 5, 11 + 11)
  assert bounds.weight_bytes(ODD_CASE, 5) == 4 * (layers + few * 8)
  assert bounds.weight_bytes(half, 99) == 2 * (layers + many * 8)


def test_the_work_of_a_rollout_is_counted_by_hand(monkeypatch):
  """Token by token and row by row; samples share the prompt."""
  lengths, samples, L = [2, 4, 1, 3], 2, 5
  per_token = 3 * 2 * (2 * 8 * 4 * 6 + 2 * 8 * 2 * 6 + 3 * 8 * 10)
  monkeypatch.setitem(MODELS, "odd", ODD)
  weights = bounds.weight_bytes(ODD_CASE, 99)
  slot_bytes = 3 * 2 * 2 * 6 * 4  # Layers, keys and values, heads, H, float32.

  def token(seen, logits=True):
    return per_token + 3 * 4 * (4 * 6) * seen + logits * 2 * 8 * 11

  expected = [[2 * sum(token(i + 1, i == L - 1) for i in range(L)),
             weights + 2 * L * slot_bytes]]  # fmt: skip
  for step in (1, 2, 3):
    flops, read, live_prompts = 0, weights, set()
    for row, length in enumerate(lengths):
      if length > step:  # It draws token `step`.
        flops += token(L + step)
        read += step * slot_bytes
        live_prompts.add(row // samples)
    expected.append([flops, read + len(live_prompts) * L * slot_bytes])
  phases = bounds.rollout_phases(ODD_CASE, lengths)
  assert [[phase.flops, phase.bytes] for phase in phases] == expected


def test_the_forward_pass_of_texts_of_different_lengths(monkeypatch):
  """As two passes: each has its pairs, and both read the weights."""
  monkeypatch.setitem(MODELS, "odd", ODD)
  first, second, both = (
    bounds.read_phase(ODD_CASE, lengths, prompts)
    for prompts, lengths in (([5], [3]), ([2], [7]), ([5, 2], [3, 7]))
  )
  assert both.flops == first.flops + second.flops
  assert both.bytes == first.bytes == second.bytes
  assert bounds.read_phase(ODD_CASE, [3]) == first


@pytest.fixture
def no_pause(monkeypatch):
  monkeypatch.setattr(timing, "PAUSE_SECONDS", 0.0)


def test_rounds_alternate_and_the_warm_up_does_not_count(no_pause):
  """The first call compiles, and a slow arm may slow the next one."""
  order = []

  def arm(name, first):
    times = iter([first, 1.0, 5.0, 2.0])
    return Arm(lambda: order.append(name) or next(times), work=10.0)

  arms = {"a": arm("a", 99.0), "b": arm("b", 50.0)}
  times = time_interleaved(arms, repeats=3)
  assert "".join(order) == "baabbaab"
  assert times["a"].seconds == (1.0, 5.0, 2.0)
  assert (times["a"].median, times["a"].rate) == (2.0, 5.0)


def test_an_arm_that_has_run_is_not_warmed_up(no_pause):
  """A round of a large case takes minutes."""
  order = []
  arms = {
    name: Arm(lambda name=name: order.append(name) or 1.0, ran=name == "a")
    for name in "ab"
  }
  times = time_interleaved(arms, repeats=2)
  assert "".join(order) == "babba"
  assert len(times["a"].seconds) == len(times["b"].seconds) == 2


@pytest.mark.parametrize(
  ("seconds", "repeats"), [(1e9, 5), (0.35, 3), (0.0, 2)]
)
def test_repeats_end_at_the_time_limit_but_not_before_the_second(
  seconds, repeats, monkeypatch, no_pause
):
  """Only the arm moves the clock, by 0.1 s: in 0.35 s a fourth round does not
  fit. The warm-up of 9 s must not count."""
  now = [0.0]
  monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
  each = iter([9.0, *[0.1] * 5])

  def run():
    elapsed = next(each)
    now[0] += elapsed
    return elapsed

  times = time_interleaved({"a": Arm(run)}, repeats=5, seconds=seconds)
  assert times["a"].seconds == (0.1,) * repeats


def test_samples_divide_rows_and_update_takes_the_most():
  block = cases.Block(
    SUITES, ("tiny",), (1, 8), (1, 2, 8), ((8, 6),), cases.STOPS
  )
  rollouts = cases.combine_blocks([SUITES["rollout"]], [block], Options())
  assert [(c.rows, c.samples) for c in rollouts if c.stops == "early"] == [
    (1, 1), (8, 1), (8, 2), (8, 8)
  ]  # fmt: skip
  (update,) = cases.combine_blocks([SUITES["update"]], [block], Options())
  assert (update.rows, update.samples, update.prompts) == (8, 8, 1)


def test_blocks_add_up_and_no_case_is_measured_twice():
  """Suite by suite, since a suite starts its baselines once."""
  suites, sizes = ("rollout", "score"), (("tiny",), (4,), (2,), ((8, 6),))
  some = cases.Block(suites, *sizes, cases.STOPS)
  more = dataclasses.replace(
    some, suites=("rollout",), rows=(4, 8), stops=("early",)
  )
  blocks = some, more
  names = "rollout", "score", "update"
  combined = cases.combine_blocks(
    [SUITES[name] for name in names], blocks, Options()
  )
  assert [(c.suite, c.rows, c.stops) for c in combined] == [
    *(("rollout", 4, "never"), ("rollout", 4, "early")),
    *(("rollout", 8, "early"), ("score", 4, "never")),
  ]
  with pytest.raises(BenchmarkError, match=r"samples of at least 2 must divid"):
    cases.combine_blocks([SUITES["update"]], blocks, Options())


def test_the_preset_of_all_lengths_has_no_case_of_many_minutes():
  """Both models, 1 to 32 rows, short and long prompts and responses. An arm of
  the larger model draws about 150 tokens a second, in half a minute."""
  blocks = presets.PRESETS["all_lengths"].blocks
  combined = cases.combine_blocks(list(SUITES.values()), blocks, Options())
  assert {case.suite for case in combined} == SUITES.keys()
  for model in ("10m", "smollm2_135m"):
    rollouts = [c for c in combined if (c.suite, c.model) == ("rollout", model)]
    assert {case.rows for case in rollouts} == {1, 8, 32}
    assert {case.samples for case in rollouts} == {1, 8}
    assert {case.prompt_tokens for case in rollouts} == {64, 512}
    assert {case.new_tokens for case in rollouts} == {128, 512}
    assert {case.stops for case in rollouts} == set(cases.STOPS)
  for case in combined:
    if case.model == "smollm2_135m":
      assert case.rows * case.new_tokens <= 4096, case
      assert case.suite == "rollout" or case.total_tokens <= 1536, case


@pytest.mark.parametrize(
  ("flag", "word", "message"),
  [
    ("models", "135m", "'135m' must be one of tiny, 10m"),
    ("rows", "0", "--rows: '0' must be at least 1"),
    ("samples", "x", "--samples: 'x' must be at least 1"),
    *(("lengths", x, "PROMPT:NEW") for x in ("6", "6:", "a:b", "6:0", "1:2:3")),
    ("stops", "late", "must be one of never, early"),
  ],
)  # fmt: skip
def test_words_that_cannot_be_parsed_are_named(flag, word, message):
  sizes = cases.parse_sizes(rows=["8"], lengths=["6:12"], models=None)
  assert sizes == {"rows": (8,), "lengths": ((6, 12),)}
  with pytest.raises(BenchmarkError, match=message):
    cases.parse_sizes(**{flag: [word]})


def test_probes_state_their_own_work():
  """Any other number of bytes or FLOPs would give a wrong rate."""
  for name, arm in machine.stream_probes(10**6).items():
    assert 0.99e6 < arm.work <= 1e6, name
    assert arm.run() > 0
  assert machine.product_probe("float32", 10).work == 2000


def test_a_probe_multiplies_numbers_that_differ(monkeypatch):
  """A GPU multiplies equal ones faster; and an accelerator needs a queue."""
  probes = []
  monkeypatch.setattr(
    machine, "timed", lambda *told, **options: probes.append((told, options))
  )
  for backend in ("cpu", "gpu"):
    monkeypatch.setattr(jax, "default_backend", lambda name=backend: name)
    machine.product_probe("bfloat16", 10)
    machine.copy_probe(4000)
  for (_, left, right), _ in probes[::2]:
    assert np.unique(left).size > 50 and not np.array_equal(left, right)
  calls = [options["calls"] for _, options in probes]
  assert calls == [1, 1, machine.QUEUED_CALLS, machine.QUEUED_CALLS]


def test_calls_that_are_queued_are_timed_together():
  calls = []

  def wait(seconds):
    calls.append(seconds)
    time.sleep(seconds)

  assert 0.02 <= timing.timed(wait, 0.02, calls=3)() < 0.06
  assert len(calls) == 3


def test_a_compiler_may_not_know_the_memory(monkeypatch):
  compiled = jax.jit(jnp.sin).lower(1.0).compile()
  monkeypatch.setattr(type(compiled), "memory_analysis", lambda self: None)
  call, compilation = timing.compile_call(jax.jit(jnp.sin), jnp.float32(0.0))
  assert call(jnp.float32(0.0)) == 0 and compilation.memory is None


def test_decoding_excludes_the_prefill():
  """A step reads 40 bytes at 10 a second; two steps take 10 of 12 seconds."""
  phases = [bounds.Phase(0.0, 10.0), *[bounds.Phase(0.0, 40.0)] * 2]

  def line(name, seconds, phases, **fields):
    arm = Arm(None, phases=phases, **fields)
    return results.Line(name, arm, Times((seconds,), 1.0), RATES)

  generate = line("generate", 12.0, phases)
  lines = [
    generate,
    line("prefill", 2.0, phases[:1]),
    line("other", 24.0, phases, baseline={}, compared_with="generate"),
  ]
  assert generate.bound == (9.0, "memory")
  assert generate.bound_reached == 0.75
  case = Case("rollout", "tiny", 4, 2, 8, 6)
  assert results.compare(results.Result(case, RATES, {}, lines)) == {
    "other / ours": 2.0,
    "decode, of bandwidth": 0.8,
    "decode, of the bound": 0.8,
  }


def test_cases_that_do_not_fit_a_card_are_named():
  """AdamW of 7.6 billion weights needs 122 GB; a bfloat16 copy 15."""
  preset = presets.PRESETS["accelerator"]
  chosen = cases.combine_blocks(
    list(SUITES.values()), preset.blocks, preset.options
  )
  reasons = {
    (case.model, case.suite): measuring.why_not(
      case, SUITES[case.suite], 80 * 10**9
    )
    for case in chosen
  }
  skipped = {key for key, why in reasons.items() if why is not None}
  with_optimizer = ("update", "packing", "prm", "iteration")
  assert skipped == {("qwen2p5_7b", suite) for suite in with_optimizer}
  why = reasons["qwen2p5_7b", "update"]
  assert "121.8 GB, there are 80.0 GB" in why


def test_a_case_that_runs_out_of_memory_ends_no_other(monkeypatch, tmp_path):
  """The allocation really fails; any other error still ends the command."""
  case = Case("score", "tiny", 4, 2, 8, 6)
  path = tmp_path / "results.json"
  document = Document(path, {}, {})

  def allocate_too_much(case):
    return jnp.ones(2**44).block_until_ready()

  def fail(case):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  def measure(compile_arms):
    suite = dataclasses.replace(SUITES["score"], compile_arms=compile_arms)
    monkeypatch.setitem(SUITES, "score", suite)
    return measuring.measure_all([case], Settings(1), document)

  assert measure(allocate_too_much) == []
  (skipped,) = json.loads(path.read_text())["skipped"]
  assert "memory of the device" in skipped["why"]
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    measure(fail)


def test_the_peak_is_that_of_the_first_run(no_pause):
  """It leaves out memory that the process freed before, and later runs."""
  # A map of its own: malloc may keep what is freed.
  with mmap.mmap(-1, 2**28) as large:
    np.frombuffer(large, np.uint8)[:] = 1
  before = timing._peak_bytes()
  sizes = iter([2**20, 2**27])
  arm = Arm(lambda: float(np.ones(next(sizes), np.uint8).sum()))
  first = time_interleaved({"a": arm}, repeats=1)["a"]
  assert first.seconds == (2.0**27,)
  assert 0 < first.peak_bytes < before - 2**26
