"""Plans that are compiled for the devices here: every program of a step."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from checkout import EXPERIMENTS
from ml_collections import ConfigDict
from planned_runs import CONFIGS, command_line, plan_of, smoke_settings

from pure_jax.models import policy
from pure_jax.models.params import count_params
from pure_jax.parallel import sharding
from pure_jax.rollout.slots import Slots
from pure_jax.runs.planning import compiler, report
from pure_jax.runs.planning.engine_calls import call_programs
from pure_jax.runs.planning.execution_plan import ExecutionPlan, with_plan
from pure_jax.runs.planning.hlo.costs import count_costs
from pure_jax.runs.planning.planner import Planner
from pure_jax.runs.planning.programs import Programs, device_bytes
from pure_jax.runs.settings.rl import EngineSettings
from pure_jax.types import PRMInputs

# One layer compiles fastest. The slots hold a prompt on each of two row shards,
# so that 8 prompts start in four rounds.
SMALL = {
  "model.num_layers": 1,
  "prm.extra_layers": 0,
  "rl.engine.slots": 8,
  "rl.engine.sync_interval": 5,
}


@pytest.fixture(scope="module")
def hlo_folder(tmp_path_factory):
  return tmp_path_factory.mktemp("plan") / "hlo"


@pytest.fixture(scope="module")
def planner(hlo_folder):
  settings = smoke_settings(**SMALL)
  return Planner(settings, jax.devices()[:4], hlo_folder=hlo_folder)


@pytest.fixture(scope="module")
def plan(planner):
  """The plan of a step on four devices, with continuous batching."""
  return planner.plan_config()


@pytest.fixture(scope="module")
def rollout(plan):
  (stage,) = (s for s in plan.stages if s.compiled.name == "rollout")
  return stage


@pytest.fixture(scope="module")
def one_loop(planner, plan):
  """The rollout of the same step in one compiled loop."""
  execution_plan = dataclasses.replace(plan.execution_plan, slots=None)
  return planner.plan(execution_plan, ("rollout",))


def rollout_stage(spec, execution_plan):
  """The stage of rollouts before it is compiled."""
  stages = Programs(with_plan(spec, execution_plan)).stages()
  (stage,) = (stage for stage in stages if stage.name == "rollout")
  return stage


def test_the_script_prints_a_plan_and_an_error():
  """The process: four devices of its own, JSON on stdout, nothing else."""
  done = subprocess.run(
    [
      sys.executable,
      str(EXPERIMENTS / "plan.py"),
      f"--config={CONFIGS / 'arithmetic.py'}:smoke",
      "--stage=reshard",
      "--json",
    ],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
  )
  assert done.returncode == 0, done.stderr
  values = json.loads(done.stdout)
  assert (values["topology"], values["devices"]) == ("local", 4)
  assert [s["compiled"]["name"] for s in values["stages"]] == ["reshard"]
  assert "compiling reshard" in done.stderr


def test_a_plan_of_a_cpu_invents_no_peak_rates(plan):
  names = [stage.compiled.name for stage in plan.stages]
  assert names == ["reshard", "rollout", "score", "update"]
  assert plan.target.topology == "local"
  assert plan.fits is None
  assert plan.step_seconds is plan.chip_hours is None


def test_compiled_flops_are_those_that_the_method_needs(plan, one_loop):
  """Counted in the compiled program against the closed form.

  Both see every layer, token, round and loop trip, or they would differ by
  factors. The compiled FLOPs are more: they include scores of later keys and
  of the empty cache.
  """
  for stage in (*plan.stages[1:], *one_loop.stages):
    compiled = 4 * stage.compiled.costs.flops
    assert 0.75 < stage.estimates.model_flops / compiled <= 1.0, stage


def test_every_update_of_a_rollout_is_counted(plan):
  """Two epochs of two mini-batches: twice the FLOPs, half the activations.

  The body of a loop counted once would give half the FLOPs of one update.
  """
  several = {
    "rl.updates.mini_batches": 2,
    "rl.updates.epochs": 2,
    "rl.updates.shuffle": True,
    "rl.adaptive_kl": ConfigDict({"target": 0.1, "horizon": 100}),
  }
  planner = Planner(smoke_settings(**SMALL, **several), jax.devices()[:4])
  (stage,) = planner.plan_config(("update",)).stages
  (once,) = (s for s in plan.stages if s.compiled.name == "update")
  flops = stage.compiled.costs.flops / once.compiled.costs.flops
  assert flops == pytest.approx(2, rel=0.02)
  assert stage.estimates.model_flops == 2 * once.estimates.model_flops
  memory, of_once = stage.compiled.memory, once.compiled.memory
  assert memory.temporaries < 0.75 * of_once.temporaries
  # The order and the KL coefficient.
  assert 0 < memory.arguments - of_once.arguments < 500


def test_compiled_programs_are_written_to_the_folder(plan, hlo_folder):
  """What was counted can be counted again."""
  for number, stage in enumerate(plan.stages):
    name = f"{number}_{stage.compiled.name}"
    if stage.compiled.programs:
      assert (hlo_folder / f"{name}_decode.txt.gz").exists()
      continue
    text = gzip.decompress((hlo_folder / f"{name}.txt.gz").read_bytes())
    assert count_costs(text.decode(), 4) == stage.compiled.costs


def test_a_device_holds_its_part_of_weights_and_optimizer(planner, plan):
  model, resident = planner.spec.model, plan.resident
  params = count_params(policy.declare_policy(model))
  # The biases of 4 query and 2 + 2 other heads of 8 are not split.
  biases = model.num_layers * (4 + 2 + 2) * 8
  part = 4 * ((params - biases) / 4 + biases)
  assert resident.parameters == resident.reference == part
  # Two moments and counters.
  assert 2 * part < resident.optimizer < 2 * part + 64
  # The compiler's size of the update's state, and of the batch.
  update = plan.stages[3].compiled.memory
  assert update.arguments > resident.parameters + resident.optimizer
  assert update.aliased >= resident.parameters + resident.optimizer


def test_stages_add_the_weights_that_they_do_not_read(plan):
  """The sampler's own copy leaves the parameters waiting, too."""
  held = plan.resident
  assert held.sampler > 0
  frozen = held.reference + held.prm
  waiting = [stage.estimates.waiting_bytes for stage in plan.stages]
  assert waiting == [
    held.optimizer + frozen,
    held.optimizer + frozen + held.parameters,
    held.optimizer,
    frozen,
  ]


def test_a_sampler_without_a_copy_reads_the_parameters(planner):
  """On one device in float32 no copy is made, and no stage makes one."""
  spec = with_plan(planner.spec, plan_of(sharding.make_layout()))
  programs = Programs(spec)
  held, stages = programs.resident, programs.stages()
  assert held.sampler == 0
  assert [stage.name for stage in stages] == ["rollout", "score", "update"]
  waiting = held.optimizer + held.reference + held.prm
  assert stages[0].estimates.waiting_bytes == waiting


def test_scores_of_steps_that_are_encoded_one_by_one_are_planned(plan):
  """The PRM reads as many tokens as with inserted ones, made by the host."""
  settings = smoke_settings(**SMALL | {"prm.score.separator": "each"})
  planner = Planner(settings, jax.devices()[:4])
  spec = planner.spec
  *_, score, _ = Programs(with_plan(spec, plan.execution_plan)).stages()
  inputs = score.arguments[-1]
  assert isinstance(inputs, PRMInputs)
  new_tokens, steps = spec.sampler.max_new_tokens, settings.prm.score.max_steps
  columns = spec.prm_prompt_tokens + new_tokens + steps
  assert inputs.tokens.shape == (spec.responses, columns)
  (each,) = planner.plan(plan.execution_plan, ("score",)).stages
  inserted = plan.stages[2]
  assert each.estimates == inserted.estimates
  flops = inserted.compiled.costs.flops
  assert each.compiled.costs.flops == pytest.approx(flops, rel=0.01)


def test_every_program_is_compiled_and_the_largest_is_reported(plan, rollout):
  """A plan of the decode loop alone would not see the cache twice."""
  programs = {p.name: p for p in rollout.compiled.programs}
  names = ["start", "unshare", "grow", "decode", "refill", "shrink"]
  assert list(programs) == names
  largest = max(program.total_bytes for program in programs.values())
  assert rollout.compiled.total_bytes == largest
  # The old and the new keys and values.
  cache = rollout.estimates.cache_bytes
  grow = programs["grow"].memory
  assert grow.outputs >= cache and grow.arguments > cache / 2
  assert grow.aliased == 0
  # All slots and the half that remains.
  shrink = programs["shrink"].memory
  assert shrink.arguments >= cache and shrink.outputs >= cache / 2
  text = report.as_text(plan, None)
  assert "sampled in 8 slots" in text
  assert "Total of each: start" in text
  assert report.as_json(plan, None)["stages"][1]["compiled"]["programs"]


def test_a_plan_of_some_stages_says_so(one_loop):
  note = "note: planned of a step: rollout, no more."
  assert note in report.as_text(one_loop, None)


def test_weights_that_a_program_does_not_read_are_in_memory(plan, rollout):
  programs = {p.name: p for p in rollout.compiled.programs}
  sampler = plan.resident.sampler
  assert sampler > 0
  for name in ("unshare", "grow", "shrink"):
    assert sampler <= programs[name].held_bytes < 2 * sampler, name
  decode = programs["decode"]
  assert decode.held_bytes < sampler
  assert decode.memory.arguments > sampler + rollout.estimates.cache_bytes


@pytest.mark.parametrize(
  ("slots", "sync_interval", "expected"),
  [
    # Prompts wait: they are copied before the last growth of the ring.
    (
      8,
      5,
      {"unshare": 20, "grow": 20, "decode": 31, "refill": 31, "shrink": 31},
    ),
    (8, 16, {"unshare": 16, "grow": 16, "decode": 31, "refill": 31}),
    # The first ring is the longest.
    (8, 40, {"unshare": 31, "decode": 31, "refill": 31}),
    # No prompt waits: prompts may be shared until half of the rows have ended.
    (32, 5, {"unshare": 31, "grow": 20, "decode": 31, "shrink": 31}),
  ],
)
def test_programs_are_compiled_for_the_longest_ring_that_they_see(
  planner, slots, sync_interval, expected
):
  """A shorter ring than the engine's would leave memory out."""
  spec, rings = planner.spec, {}
  sampler = dataclasses.replace(spec.sampler, max_new_tokens=32)
  rl = dataclasses.replace(
    spec.settings.rl,
    sampler=dataclasses.replace(spec.settings.rl.sampler, max_new_tokens=32),
    engine=EngineSettings(slots, sync_interval),
  )
  settings = dataclasses.replace(spec.settings, rl=rl)
  spec = dataclasses.replace(spec, settings=settings, sampler=sampler)

  def evaluate(call):
    for x in call.arguments:
      if isinstance(x, Slots):
        rings[call.name] = x.state.cache.ring_length
        is_shared = x.state.cache.prompt_mask is not None
        assert is_shared == (call.name == "unshare")
    return call.function.eval_shape(*call.arguments)

  stage = rollout_stage(spec, plan_of(sharding.make_layout(), slots))
  call_programs(stage.function, stage.arguments, evaluate)
  assert expected.items() <= rings.items()
  assert ("refill" in rings) == (slots < 32)


def test_bytes_of_a_device_are_its_shards():
  layout = sharding.make_layout(data=2, devices=jax.devices()[:2])
  split = jax.ShapeDtypeStruct(
    (4, 3), np.float32, sharding=sharding.batch_sharding(layout)
  )
  whole = jax.ShapeDtypeStruct(
    (5,), np.int8, sharding=sharding.replicated(layout)
  )
  assert device_bytes((split, {"a": whole})) == 24 + 5
  assert device_bytes(None) == 0


class Refused:
  """A jitted function that the compiler refuses for lack of memory."""

  def lower(self, *arguments):
    raise jax.errors.JaxRuntimeError(
      "RESOURCE_EXHAUSTED: Used 41.50G of 31.25G hbm."
    )


def test_a_program_that_the_compiler_refuses_ends_the_plan(planner):
  """The stage does not fit, whatever the other programs need."""
  stage = rollout_stage(planner.spec, plan_of(sharding.make_layout(), 8))
  engine = stage.function
  engine.programs = dataclasses.replace(engine.programs, start=Refused())
  compiled = compiler.compile_stage(stage, 1)
  assert compiled.memory is None and compiled.costs is None
  assert compiled.needed_bytes == 41.5 * 2**30
  names = [program.name for program in compiled.programs]
  assert names == ["to_decoding_params", "start"]


def test_a_stage_is_compiled_once_for_plans_that_share_it(planner, plan):
  """Only the rollout differs, so scores and update are the same objects."""
  layout = plan.execution_plan.layouts.training
  layouts = dataclasses.replace(plan.execution_plan.layouts, rollout=layout)
  other = ExecutionPlan(layouts, plan.execution_plan.micro_batches, 2)
  again = planner.plan(other, ("score", "update"))
  for new, old in zip(again.stages, plan.stages[2:], strict=True):
    assert new.compiled is old.compiled


def test_flags_of_the_command_line_are_flags_of_the_plan(monkeypatch):
  given = "--config.rl.prompts=16"
  with command_line(
    monkeypatch, f"--config={CONFIGS / 'arithmetic.py'}:smoke", given
  ) as script:
    settings = script.read_settings()
  assert settings.rl.prompts == 16
  planner = Planner(settings, jax.devices()[:1], config_flags=[given])
  flags = planner.plan(plan_of(sharding.make_layout()), ()).flags
  assert flags[0] == given
