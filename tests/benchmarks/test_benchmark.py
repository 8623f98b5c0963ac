"""The benchmark: what it counts by hand, what it times, what it writes."""

import dataclasses
import json
import mmap
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import (
  batches,
  bounds,
  cases,
  machine,
  memory,
  presets,
  programs,
  report,
  suites,
  table,
  timing,
)
from benchmarks.cases import MODELS, BenchmarkError, Case
from benchmarks.programs import Options
from benchmarks.timing import Arm, Times, in_turn
from checkout import ROOT

from pure_jax.host import huggingface
from pure_jax.models import policy
from pure_jax.models.params import count_params

RATES = bounds.Rates(flops_per_second=100.0, bytes_per_second=10.0)
# No two sizes are the same, so none can be taken for another.
ODD = dataclasses.replace(
  MODELS["tiny"], vocab_size=11, width=8, num_layers=3, num_heads=4,
  num_kv_heads=2, head_dim=6, mlp_width=10,
)  # fmt: skip


def test_the_model_of_ten_million_has_that_many_weights():
  found = count_params(policy.declare_policy(MODELS["10m"]))
  assert found == pytest.approx(10e6, rel=0.02)


def test_phases_follow_each_other():
  """One bound of the sums would be 5 seconds: what one phase waits for, the
  other cannot use."""
  phases = [bounds.Phase(300.0, 10.0), bounds.Phase(100.0, 40.0)]
  assert bounds.least_time(phases, RATES) == (3.0 + 4.0, "memory")


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_read(tied):
  """Of an embedding that is not the head only the rows of the tokens."""
  model = dataclasses.replace(ODD, tied_embeddings=tied, qk_norm=True)
  wanted = count_params(policy.declare_policy(model))
  if not tied:
    wanted += (5 - 11) * 8
  assert bounds.weight_bytes(model, rows=5, itemsize=4) == 4 * wanted
  assert bounds.weight_bytes(model, rows=99, itemsize=2) == 2 * (
    count_params(policy.declare_policy(model))
  )


def test_a_rollout_by_counting():
  """Token by token and row by row, prompts shared by their samples."""
  lengths, samples, L = [2, 4, 1, 3], 2, 5
  per_token = 3 * 2 * (2 * 8 * 4 * 6 + 2 * 8 * 2 * 6 + 3 * 8 * 10)
  weights = bounds.weight_bytes(ODD, 99, itemsize=4)
  slot_bytes = 3 * 2 * 2 * 6 * 4  # Layers, keys and values, heads, H, float32.

  def token(seen, logits=True):
    return per_token + 3 * 4 * (4 * 6) * seen + logits * 2 * 8 * 11

  wanted = [[2 * sum(token(i + 1, i == L - 1) for i in range(L)),
             weights + 2 * L * slot_bytes]]  # fmt: skip
  for step in (1, 2, 3):
    flops, read, asked = 0, weights, set()
    for row, length in enumerate(lengths):
      if length > step:  # It draws token `step` from what it has seen.
        flops += token(L + step)
        read += step * slot_bytes
        asked.add(row // samples)
    wanted.append([flops, read + len(asked) * L * slot_bytes])
  found = bounds.rollout_phases(ODD, 2, L, lengths, itemsize=4)
  assert [[phase.flops, phase.bytes] for phase in found] == wanted


def test_turns_alternate_and_the_warm_up_does_not_count():
  """The first call compiles, and who follows a slow arm pays for it."""
  order = []

  def arm(name, first):
    times = iter([first, 1.0, 5.0, 2.0])
    return Arm(lambda: order.append(name) or next(times), work=10.0)

  found = in_turn({"a": arm("a", 99.0), "b": arm("b", 50.0)}, repeats=3)
  assert "".join(order) == "baabbaab"
  assert found["a"].seconds == (1.0, 5.0, 2.0)
  assert (found["a"].median, found["a"].rate) == (2.0, 5.0)


def test_what_ran_when_it_was_made_is_not_warmed_up():
  """A round of the large cases takes minutes."""
  order = []
  arms = {
    name: Arm(lambda name=name: order.append(name) or 1.0, ran=name == "a")
    for name in "ab"
  }
  found = in_turn(arms, repeats=2)
  assert "".join(order) == "babba"
  assert len(found["a"].seconds) == len(found["b"].seconds) == 2


@pytest.mark.parametrize(
  ("seconds", "repeats"), [(1e9, 5), (0.35, 3), (0.0, 2)]
)
def test_repeats_end_with_their_time_but_not_before_the_second(
  seconds, repeats, monkeypatch
):
  """A clock that only the arm moves, which takes 0.1 s; of 0.35 s a fourth
  round would need more. The warm-up, 9 s, must not count."""
  now = [0.0]
  monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
  each = iter([9.0, *[0.1] * 5])

  def run():
    taken = next(each)
    now[0] += taken
    return taken

  found = in_turn({"a": Arm(run)}, repeats=5, seconds=seconds)
  assert found["a"].seconds == (0.1,) * repeats


def test_credit_is_a_share_of_the_update():
  """What fused credit adds is the difference of the losses."""
  times = {"credit": 2.0, "loss": 3.0, "credit and loss": 4.0, "update": 200.0}
  lines = [
    report.Line(name, Times((s,), 1.0), (), None, None, None)
    for name, s in times.items()
  ]
  case = Case("credit", "tiny", 4, 2, 8, 6)
  result = report.Result(case, RATES, {}, lines)
  assert report.beside(result) == {
    "credit alone / update": 0.01,
    "credit in the loss / update": 0.005,
  }


def test_only_possible_cases():
  sizes = cases.Sizes(("tiny",), (1, 8), (1, 2, 8), ((8, 6),), cases.STOPS)
  found = cases.combine(("rollout", "update"), sizes)
  rollouts = [case for case in found if case.suite == "rollout"]
  assert [(c.rows, c.samples) for c in rollouts if c.stops == "early"] == [
    (1, 1), (8, 1), (8, 2), (8, 8)
  ]  # fmt: skip
  (update,) = [case for case in found if case.suite == "update"]
  assert (update.rows, update.samples, update.prompts) == (8, 8, 1)


def test_blocks_add_up_and_none_is_measured_twice():
  """Suite by suite, since a suite starts its peers once."""
  some = cases.Sizes(("tiny",), (4,), (2,), ((8, 6),), cases.STOPS)
  more = dataclasses.replace(some, rows=(4, 8), stops=("early",))
  blocks = (
    cases.Block(("rollout", "score"), some),
    cases.Block(("rollout",), more),
  )
  found = cases.combine_blocks(("rollout", "score", "update"), blocks)
  assert [(c.suite, c.rows, c.stops) for c in found] == [
    *(("rollout", 4, "never"), ("rollout", 4, "early")),
    *(("rollout", 8, "early"), ("score", 4, "never")),
  ]
  with pytest.raises(BenchmarkError, match="divides any --rows"):
    cases.combine_blocks(("update",), blocks)


def test_the_hour_of_two_cores_has_all_sizes_and_none_of_many_minutes():
  """Both models, 1 to 32 rows, prompts and responses short and long; what an
  arm of the larger model draws at about 150 a second is half a minute."""
  blocks = presets.PRESETS["all_lengths"].blocks
  found = cases.combine_blocks(tuple(cases.SUITES), blocks)
  assert {case.suite for case in found} == set(cases.SUITES)
  for model in ("10m", "smollm2_135m"):
    rollouts = [c for c in found if (c.suite, c.model) == ("rollout", model)]
    assert {case.rows for case in rollouts} == {1, 8, 32}
    assert {case.samples for case in rollouts} == {1, 8}
    assert {case.prompt_tokens for case in rollouts} == {64, 512}
    assert {case.new_tokens for case in rollouts} == {128, 512}
    assert {case.stops for case in rollouts} == set(cases.STOPS)
  for case in found:
    if case.model == "smollm2_135m":
      assert case.rows * case.new_tokens <= 4096, case
      assert case.suite == "rollout" or case.read_tokens <= 1536, case


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
def test_words_that_mean_nothing_are_refused(flag, word, message):
  default = presets.PRESETS["small"].blocks[0].sizes
  sizes = cases.parse_sizes(default, rows=["8"], lengths=["6:12"], models=None)
  wanted = dataclasses.replace(default, rows=(8,), lengths=((6, 12),))
  assert sizes == wanted
  with pytest.raises(BenchmarkError, match=message):
    cases.parse_sizes(default, **{flag: [word]})


def test_parts_are_equal_and_none_is_too_large():
  assert batches.micro_batches(32, 8) == 4
  assert batches.micro_batches(12, 8) == 2
  assert batches.micro_batches(7, 6) == 7


def test_probes_read_what_they_say():
  """Bytes that are not there, or FLOPs, would be a rate of nothing."""
  for name, arm in machine.stream_probes(10**6).items():
    assert 0.99e6 < arm.work <= 1e6, name
    assert arm.seconds() > 0
  assert machine.product_probe("float32", 10).work == 2000


def test_decoding_is_what_comes_after_the_prefill():
  """A step reads 40 bytes at 10 a second; two of them in 10 of 12 seconds."""
  phases = [bounds.Phase(0.0, 10.0), *[bounds.Phase(0.0, 40.0)] * 2]
  lines = [
    report.Line("generate", Times((12.0,), 1.0), phases, 9.0, "memory", None),
    report.Line("prefill", Times((2.0,), 1.0), phases[:1], 1.0, "memory", None),
    report.Line(
      "peer", Times((24.0,), 1.0), phases, 9.0, "memory", None, {}, "generate"
    ),
  ]
  case = Case("rollout", "tiny", 4, 2, 8, 6)
  assert report.beside(report.Result(case, RATES, {}, lines)) == {
    "peer / ours": 2.0,
    "decode, of bandwidth": 0.8,
    "decode, of the bound": 0.8,
  }


def test_what_does_not_fit_a_card_is_named():
  """AdamW of 7.6 billion weights needs 122 GB; a bfloat16 copy 15."""
  preset = presets.PRESETS["accelerator"]
  chosen = cases.combine_blocks(tuple(cases.SUITES), preset.blocks)
  reasons = {
    (case.model, case.suite): memory.why_not(case, preset.options, 80 * 10**9)
    for case in chosen
  }
  left = {key for key, why in reasons.items() if why is not None}
  with_optimizer = ("update", "credit", "prm", "iteration")
  assert left == {("qwen2p5_7b", suite) for suite in with_optimizer}
  why = reasons["qwen2p5_7b", "update"]
  assert "121.8 GB, there are 80.0 GB" in why
  assert table.left_out(chosen[0], why).endswith(why)


def test_what_runs_out_of_memory_ends_no_other_case(monkeypatch):
  """A real refusal; any other fault must still end the command."""
  case = Case("score", "tiny", 4, 2, 8, 6)

  def too_large(case, options):
    return jnp.ones(2**44).block_until_ready()

  def broken(case, options):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  monkeypatch.setitem(suites.SUITES, "score", too_large)
  assert "memory of the device" in report.attempt(case, Options(), 1, 16)
  monkeypatch.setitem(suites.SUITES, "score", broken)
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    report.attempt(case, Options(), 1, 16)


def test_the_peak_is_that_of_the_first_call():
  """Not of the process: what was freed before it must not count."""
  peak = memory.Peak()
  # Not malloc's, which may keep what is freed.
  with mmap.mmap(-1, 2**27) as held:
    np.frombuffer(held, np.uint8)[:] = 1
  sizes = iter([2**26, 2**20])
  arm = peak.noting(Arm(lambda: float(np.ones(next(sizes), np.uint8).sum())))
  before = memory._peak()
  assert arm.seconds() == 2.0**26
  assert peak.bytes is not None
  assert peak.bytes < before
  first = peak.bytes
  arm.seconds()
  assert peak.bytes == first


def test_weights_of_a_folder_are_those_that_run(tmp_path):
  """And are refused where the folder is of another shape."""
  model = MODELS["tiny"]
  params = jax.tree.map(
    lambda x: x + 1, programs.init_policy("tiny", Options())
  )
  folder = tmp_path / "weights"
  huggingface.export_policy(folder, params, model, max_positions=64)
  options = Options(weights=str(folder))
  found = programs.init_policy("tiny", options)
  jax.tree.map(np.testing.assert_array_equal, found, params)
  judge = programs.init_prm("tiny", options)
  np.testing.assert_array_equal(judge["embedding"], params["embedding"])
  with pytest.raises(BenchmarkError, match="not of the shape 10m: it differs"):
    programs.init_policy("10m", options)
  with pytest.raises(BenchmarkError, match="no such folder"):
    programs.init_policy("tiny", Options(weights=str(tmp_path / "none")))


def run(*flags: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, ROOT / "experiments" / "benchmark.py", *flags],
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )


def test_one_command_prints_a_table_and_writes_json(tmp_path):
  path = tmp_path / "found.json"
  done = run("--quick", "--suite=rollout", f"--json={path}")
  assert done.returncode == 0, done.stderr
  found = json.loads(path.read_text())
  assert {"date", "commit", "processor", "packages", "command"} <= (
    found["machine"].keys()
  )
  assert "--quick --suite=rollout" in found["machine"]["command"]
  never, early = found["cases"]
  assert [never["stops"], early["stops"]] == ["never", "early"]
  assert min(never["rates"].values()) > 0
  assert never["arms"]["generate"]["tokens"] == 4 * 6
  assert 4 <= early["arms"]["generate"]["tokens"] < 4 * 6
  for case in (never, early):
    arm = case["arms"]["generate"]
    assert len(arm["seconds"]) == 2
    assert arm["median_seconds"] == pytest.approx(np.median(arm["seconds"]))
    share = arm["bound_seconds"] / arm["median_seconds"]
    assert arm["bound_reached"] == pytest.approx(share)
    assert f"{case['stops']:6}generate" in done.stdout
  assert found["options"]["repeats"] == 2
  assert {"generate", "engine", "refilled", "prefill"} == never["arms"].keys()
  assert jax.__version__ in done.stdout
  again = run("--quick", "--suite=rollout", f"--json={path}", "--resume")
  assert again.returncode == 0, again.stderr
  assert "generate" not in again.stdout


@pytest.mark.slow
def test_the_command_of_an_accelerator_runs_whole(tmp_path):
  """All suites in bfloat16, layers computed again, logits in chunks."""
  path = tmp_path / "found.json"
  done = run("--quick", "--preset=accelerator", f"--json={path}")
  assert done.returncode == 0, done.stderr
  found = json.loads(path.read_text())
  assert found["options"]["dtype"] == "bfloat16"
  assert found["options"]["remat"] == "dots"
  assert [case["suite"] for case in found["cases"]] == [
    *["rollout"] * 2, "score", "update", "credit", "prm",
    *["iteration"] * 2, "kernels", "precision"
  ]  # fmt: skip
  for case in found["cases"]:
    for name, arm in case["arms"].items():
      assert arm["median_seconds"] > 0, name
      bounded = case["suite"] not in ("credit", "precision")
      assert arm["needed_flops"] > 0 or not bounded, name


def test_flags_that_mean_nothing_end_in_a_sentence():
  done = run("--suite=update", "--models=tiny", "--samples=1")
  assert done.returncode == 1
  assert (
    "take at least 2" in done.stderr.replace("\n", " ")
    and "Traceback" not in done.stderr
  )
