"""What a plan says: whether it fits, how long it takes and what it costs."""

import dataclasses
import json

import jax
import pytest
from planned_runs import plan_of

from pure_jax.parallel import sharding
from pure_jax.runs.planning import compiler, report, search
from pure_jax.runs.planning.devices import Target
from pure_jax.runs.planning.estimates import Estimates
from pure_jax.runs.planning.hlo.collectives import Collective
from pure_jax.runs.planning.hlo.costs import Costs
from pure_jax.runs.planning.hlo.loops import Loop, LoopEnd
from pure_jax.runs.planning.plan import Plan, StagePlan
from pure_jax.runs.planning.programs import Resident
from pure_jax.runs.planning.roofline import CHIPS, GIB

KIND = "TPU v5 lite"


def stage(name, temporaries, costs=None, **changes):
  memory = compiler.Memory(8 * GIB, 4 * GIB, 3 * GIB, temporaries)
  compiled = compiler.CompiledStage(name, 1.0, memory, costs=costs)
  return dataclasses.replace(compiled, **changes)


def make_plan(*stages, waiting=4 * GIB):
  """A plan for 16 chips of 15.75 GiB."""
  target = Target("v5e:4x4", KIND, 16, 1, CHIPS[KIND], {"jax": "1"})
  known = Estimates(model_flops=10**15, waiting_bytes=int(waiting))
  return Plan(
    target=target,
    execution_plan=plan_of(sharding.make_layout(fsdp=len(jax.devices()))),
    rows=512,
    iterations=500,
    flags=("--config.mesh.fsdp=16", '--config.rl.rollout_mesh={"data": 16}'),
    notes=(),
    resident=Resident(1 * GIB, 2 * GIB, 1 * GIB, 3 * GIB, 0),
    stages=tuple(
      StagePlan(stage, known, target.bound(stage.costs)) for stage in stages
    ),
  )


@pytest.mark.parametrize(
  ("waiting", "temporaries", "fits"),
  [
    # 8 + 4 - 3 = 9 GiB while the stage runs, and what waits.
    (6, 0.7, True),
    (6, 0.8, False),
    (2, 4.7, True),
    (2, 4.8, False),
  ],
)
def test_weights_that_wait_must_fit_too(waiting, temporaries, fits):
  """A stage that fits alone does not fit with the weights of others."""
  plan = make_plan(stage("update", temporaries * GIB), waiting=waiting * GIB)
  assert plan.fits is fits
  assert ("DOES NOT FIT" in report.as_text(plan, None)) is not fits


def test_a_program_that_the_compiler_refuses_does_not_fit():
  refused = stage(
    "update", 0, memory=None, needed_bytes=30 * GIB, refusal="too much"
  )
  plan = make_plan(refused)
  assert plan.fits is False and plan.chip_hours is None
  assert "update needs 34" in report.as_text(plan, None)


def test_time_and_cost_of_a_run():
  """A rollout of 2 s and an update of 3: 5 s, 16 chips, 500 iterations."""
  loops = (Loop("while", 1, LoopEnd.UNKNOWN),)
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
  values = json.loads(json.dumps(report.as_json(plan, 2.0)))
  assert values["cost"] == pytest.approx(2 * plan.chip_hours)
  assert values["bound_by"] == "network"
  (other,) = values["stages"][0]["compiled"]["costs"]["loops"]["others"]
  assert other["ends"] == "unknown"


def test_the_fastest_plan_that_fits_is_chosen():
  fast = Costs(197e12, 0.0, {}, ())
  slow = Costs(3 * 197e12, 0.0, {}, ())
  plans = [
    make_plan(stage("score", 0, slow)),
    make_plan(stage("score", 0, fast)),
    make_plan(stage("score", 9 * GIB, Costs(1.0, 0.0, {}, ()))),
  ]
  assert search._choose(plans) is plans[1]
  assert search._choose(plans[2:]) is plans[2]
  with pytest.raises(ValueError, match="No rule set can be tried"):
    search._choose([])
