"""Rows of the check's speed pieces: times, bounds, and reasons without them."""

import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from accelerator.pieces import Context
from accelerator.speed import programs, results, rows
from accelerator.speed.rows import Group, Program
from benchmarks import bounds
from benchmarks.bounds import Phase, Rates
from benchmarks.cases import Case, Options

from pure_jax.host import json_text

RATES = Rates(flops_per_second=1e9, bytes_per_second=1e8)
CASE = Case("update", "tiny", 4, 2, 8, 12, options=Options(rows_at_a_time=2))


@pytest.fixture
def context(tmp_path):
  return Context(tmp_path, "tiny", {"backend": "cpu"}, time.time() + 600)


class Weights:
  """Draws one array, and counts how often it does."""

  def __init__(self):
    self.drawn = 0

  def __call__(self):
    array = jnp.ones(3)
    self.drawn += not isinstance(array, jax.core.Tracer)
    return (array,)


def program(name, function):
  """A program on the weights of `Weights`, whose work is 10 tokens."""
  phases, same = [Phase(4e6, 1e6)], lambda weights: weights
  return Program(name, CASE, jax.jit(function), same, 10, "tokens", phases)


def test_a_row_has_the_time_of_a_program_and_its_bound(context):
  def draw_ones():
    return (jnp.ones(3),)

  (row,) = rows.measure(
    context, RATES, [Group(draw_ones, [program("double", lambda x: 2 * x)])]
  )
  (columns,) = results.as_result([row], "")["tables"]["Speed"]
  # 4e6 FLOPs at 1e9 a second take 4 ms, 1e6 bytes at 1e8 a second 10 ms.
  assert columns["bound s"] == 0.01
  assert columns["bound by"] == "memory"
  assert columns["tokens/s"] == pytest.approx(10 / row.seconds, abs=0.1)
  assert columns["of bound"] == f"{0.01 / row.seconds:.1%}"
  assert columns["of matrix rate"] == f"{0.004 / row.seconds:.1%}"
  (record,) = json_text.to_json(results.as_result([row], "")["rows"])
  assert len(record["seconds"]) == rows.REPEATS
  assert (record["model"], record["rows"]) == ("tiny", 4)


def test_a_program_that_does_not_fit_draws_no_weights(context):
  """The compiler knows before; the others of the group still run."""
  weights = Weights()
  large = program("large", lambda x: jnp.ones(2**42) * x[0])
  before, after = rows.measure(
    context,
    RATES,
    [Group(weights, [large]), Group(weights, [program("small", jnp.sin)])],
  )
  assert before.expected
  assert "It needs 17,592.2 GB, and the device has" in before.why
  assert after.seconds < 60
  assert weights.drawn == 1


def test_memory_that_runs_out_costs_one_row(context, monkeypatch):
  """The allocation really fails, and the weights are drawn anew."""
  monkeypatch.setattr(rows, "available_bytes", lambda: 2**60)
  weights = Weights()
  large = program("large", lambda x: jnp.ones(2**42) * x[0])
  small = program("small", jnp.sin)
  first, failed, last = rows.measure(
    context, RATES, [Group(weights, [small, large, small])]
  )
  assert first.seconds < 60 and last.seconds < 60
  assert failed.expected and "memory of the device ran out" in failed.why
  assert weights.drawn == 2
  assert results.as_result([first, failed, last], "")["checks"] == []


def test_a_program_that_fails_is_wrong_and_the_next_one_runs(context):
  def fail(x):
    raise RuntimeError("no such engine")

  failed, last = rows.measure(
    context,
    RATES,
    [Group(Weights(), [program("bad", fail), program("small", jnp.sin)])],
  )
  assert "RuntimeError: no such engine" in failed.why
  (check,) = results.as_result([failed, last], "")["checks"]
  assert check["check"] == "bad" and not check["right"]
  assert last.seconds < 60


def test_no_program_is_blamed_for_a_device_that_computes_no_more(
  context, monkeypatch
):
  def fail(x):
    raise RuntimeError("an illegal memory access")

  monkeypatch.setattr(rows, "device_answers", lambda: False)
  bad, small = program("bad", fail), program("small", jnp.sin)
  _, after, last = rows.measure(
    context, RATES, [Group(Weights(), [bad, small]), Group(Weights(), [small])]
  )
  for row in (after, last):
    assert row.why == "The device computes no more: see bad." and row.expected


def test_weights_are_freed_with_the_last_program_of_their_group(context):
  """A row keeps its program, which must not keep gigabytes."""
  drawn = []

  def draw():
    drawn.append(jnp.full(12_345, 2.0))
    return (drawn[-1],)

  measured = rows.measure(
    context, RATES, [Group(draw, [program("small", jnp.sin)])]
  )
  assert measured[0].seconds < 60
  drawn.clear()
  assert not [x for x in jax.live_arrays() if x.shape == (12_345,)]


def test_no_program_starts_after_the_deadline(context):
  late = dataclasses.replace(context, deadline=time.time())
  weights = Weights()
  (row,) = rows.measure(
    late, RATES, [Group(weights, [program("small", jnp.sin)])]
  )
  assert row.why == "The time of the piece was over." and weights.drawn == 0


def test_a_kernel_of_another_device_is_a_sentence():
  options = dataclasses.replace(CASE.options, attention="cudnn")
  row = rows.program_or_why(
    programs.update_program, "x", dataclasses.replace(CASE, options=options)
  )
  assert "runs on a GPU only" in row.why and row.expected


def test_updates_of_all_weights_and_of_adapters_train(context):
  """Each call updates the state that the last one returned; adapters need no
  gradients of matrices, a third of the products."""
  update = programs.update_program("update", CASE)
  adapters = programs.lora_program("adapters", CASE)
  measured = rows.measure(
    context,
    RATES,
    [
      Group(lambda: programs.update_weights(CASE), [update]),
      Group(lambda: programs.lora_weights(CASE), [adapters]),
    ],
  )
  whole, small = (row.line for row in measured)
  assert small.flops == pytest.approx(whole.flops * 2 / 3)
  for line in (whole, small):
    loss, norm = line.arm.reference
    assert np.isfinite(loss) and norm > 0
    assert line.times.work == 4 * (8 + 12)


def test_decoding_and_prefill_count_their_own_tokens(context):
  """A prefill reads the prompts once and draws one token each."""
  decode = programs.decode_program("decode", CASE)
  prefill = programs.prefill_program("prefill", CASE)
  assert (decode.work, prefill.work) == (4 * 12, 2 * 8)
  assert decode.phases == bounds.rollout_phases(CASE, [12] * 4)
  assert prefill.phases == decode.phases[:1]
  (row,) = rows.measure(
    context, RATES, [Group(lambda: programs.rollout_weights(CASE), [prefill])]
  )
  assert row.seconds < 60, row.why


def test_the_folder_of_the_check_stays_empty(context):
  assert list(pathlib.Path(context.out).iterdir()) == []
