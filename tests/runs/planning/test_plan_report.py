"""What a plan says: whether it fits, how long it takes, what it costs."""

import dataclasses
import json

import pytest

from pure_jax.runs.planning import compiler, programs, report, search
from pure_jax.runs.planning.hlo.collectives import Collective
from pure_jax.runs.planning.hlo.costs import Costs
from pure_jax.runs.planning.hlo.loops import Loop
from pure_jax.runs.planning.roofline import CHIPS, GIB


def stage(name, temporaries, costs=None, **changes):
  memory = compiler.Memory(8 * GIB, 4 * GIB, 3 * GIB, temporaries)
  compiled = compiler.CompiledStage(name, 1.0, memory, costs=costs)
  return dataclasses.replace(compiled, **changes)


def make_plan(*stages, chip="TPU v5 lite", devices=16, sampler=0):
  resident = programs.Resident(1 * GIB, 2 * GIB, 1 * GIB, 3 * GIB, sampler)
  peak = CHIPS.get(chip)
  return report.Plan(
    topology="v5e:4x4",
    device_kind=chip,
    devices=devices,
    devices_per_chip=1,
    layout="fsdp on fsdp=16",
    rows=512,
    micro_batches=32,
    rollout_parts=1,
    rollout_rows=None,
    flags=("--config.mesh.fsdp=16", '--config.rl.rollout_mesh={"data": 16}'),
    notes=(),
    iterations=500,
    resident=resident,
    chip=peak,
    stages=tuple(
      report.plan_stage(s, resident, peak, 1, 10**15, 0, 0) for s in stages
    ),
    versions={"jax": "1"},
  )


@pytest.mark.parametrize(
  ("name", "temporaries", "fits"),
  [
    # 8 + 4 - 3 while it runs, and what waits: optimizer, reference, PRM are 6;
    # optimizer alone 2; reference and PRM 4. A sampler's own copy is among the
    # arguments, and the parameters wait: 7.
    ("copied rollout", -0.3, True),
    ("copied rollout", -0.2, False),
    ("rollout", 0.7, True),
    ("rollout", 0.8, False),
    ("score", 4.7, True),
    ("score", 4.8, False),
    ("update", 2.7, True),
    ("update", 2.8, False),
  ],
)
def test_weights_that_wait_must_fit_too(name, temporaries, fits):
  """A stage that fits by itself, beside 15.75 GiB of others, does not."""
  copied = name.startswith("copied")
  plan = make_plan(
    stage(name.removeprefix("copied "), temporaries * GIB), sampler=copied
  )
  assert plan.fits is fits
  assert ("DOES NOT FIT" in report.as_text(plan, None)) is not fits


def test_what_the_compiler_refuses_does_not_fit():
  refused = stage(
    "update", 0, memory=None, needed_bytes=30 * GIB, refusal="too much"
  )
  plan = make_plan(refused)
  assert plan.fits is False and plan.chip_hours is None
  assert "update needs 34" in report.as_text(plan, None)


def test_time_and_cost_of_a_run():
  """A rollout of 2 s and an update of 3: 5 s, 16 chips, 500 iterations."""
  loops = (Loop("while", 1, "unknown"),)
  rollout = Costs(0.0, 2 * 819e9, {}, loops)
  update = Costs(1.0, 1.0, {"all-gather": Collective(4, 1, 3 * 200e9)}, ())
  plan = make_plan(stage("rollout", 0, rollout), stage("update", 0, update))
  assert plan.step_seconds == pytest.approx(5.0)
  assert plan.chip_hours == pytest.approx(5 * 16 * 500 / 3600)
  assert plan.bottleneck.compiled.name == "update"
  text = report.as_text(plan, 2.0)
  assert "bottleneck is update (60% of the time), bound by network" in text
  assert "11 chip hours (22 at 2)" in text
  quoted = """'--config.rl.rollout_mesh={"data": 16}'"""
  assert f"Flags: --config.mesh.fsdp=16 {quoted}\n" in text
  assert "rollout has a loop without a trip count" in text
  found = report.as_json(plan, 2.0)
  assert found["cost"] == pytest.approx(2 * plan.chip_hours)
  assert json.loads(json.dumps(found))["bound_by"] == "network"


def test_the_fastest_that_fits_is_chosen():
  fast = Costs(197e12, 0.0, {}, ())
  slow = Costs(3 * 197e12, 0.0, {}, ())
  plans = [
    ("slow", make_plan(stage("score", 0, slow))),
    ("fast", make_plan(stage("score", 0, fast))),
    ("large", make_plan(stage("score", 9 * GIB, Costs(1.0, 0.0, {}, ())))),
  ]
  assert search.choose(plans) is plans[1]
  assert search.choose(plans[2:]) is plans[2]
  with pytest.raises(ValueError, match="No rule set can be tried"):
    search.choose([])
