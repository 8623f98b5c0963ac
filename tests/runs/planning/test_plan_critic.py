"""Plans of runs with a critic, which has its own memory and programs."""

import jax
import pytest
from planned_runs import plan_of, smoke_settings

from pure_jax.models import critic
from pure_jax.models.params import count_params
from pure_jax.parallel import sharding
from pure_jax.runs.planning import report
from pure_jax.runs.planning.execution_plan import with_plan
from pure_jax.runs.planning.planned_spec import read_spec
from pure_jax.runs.planning.planner import Planner
from pure_jax.runs.planning.programs import Programs

# One layer compiles fastest.
SMALL = {
  "model.num_layers": 1,
  "prm.extra_layers": 0,
  "rl.credit.baseline": "gae",
  "rl.credit.fold_verifiable": True,
}


@pytest.fixture(scope="module")
def plan():
  planner = Planner(smoke_settings(**SMALL), jax.devices()[:4])
  return planner.plan_config(("values", "critic"))


def test_a_step_with_a_critic_has_two_more_stages_and_its_memory():
  spec = read_spec(smoke_settings(**SMALL), jax.devices())
  spec = with_plan(spec, plan_of(sharding.make_layout()))
  programs = Programs(spec)
  held, stages = programs.resident, programs.stages()
  names = ["rollout", "score", "values", "critic", "update"]
  assert [stage.name for stage in stages] == names
  size = 4 * count_params(critic.declare_critic(spec.model))
  assert held.critic == size
  assert 2 * size < held.critic_optimizer < 2 * size + 64
  frozen, of_critic = held.reference + held.prm, size + held.critic_optimizer
  of_policy = held.parameters + held.optimizer
  assert held.total == of_policy + frozen + of_critic
  # Each stage waits for what it does not read.
  assert [stage.estimates.waiting_bytes for stage in stages] == [
    held.optimizer + frozen + of_critic,
    held.optimizer + of_critic,
    of_policy + frozen + held.critic_optimizer,
    of_policy + frozen,
    frozen + of_critic,
  ]


def test_a_run_without_a_critic_has_none():
  settings = smoke_settings(**(SMALL | {"rl.credit.baseline": "paper_b"}))
  spec = read_spec(settings, jax.devices())
  programs = Programs(with_plan(spec, plan_of(sharding.make_layout())))
  assert programs.resident.critic == programs.resident.critic_optimizer == 0
  names = [stage.name for stage in programs.stages()]
  assert names == ["rollout", "score", "update"]


def test_the_critics_programs_compile_and_are_reported(plan):
  values, update = plan.stages
  assert (values.compiled.name, update.compiled.name) == ("values", "critic")
  for stage in plan.stages:
    compiled = 4 * stage.compiled.costs.flops
    assert 0.75 < stage.estimates.model_flops / compiled <= 1.0, stage
  held = plan.resident
  memory = update.compiled.memory
  assert memory.aliased >= held.critic + held.critic_optimizer
  text = report.as_text(plan, None)
  assert ", critic " in text and " and its optimizer " in text
  assert report.as_json(plan, None)["resident"]["critic"] == held.critic
