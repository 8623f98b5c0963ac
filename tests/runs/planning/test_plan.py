"""Plans without compiling: specifications, estimates, flags and the search."""

import dataclasses
import importlib.metadata
import math
import pathlib

import jax
import pytest
from configs import arithmetic, qwen2p5_7b
from planned_runs import (
  CONFIGS,
  command_line,
  plan_of,
  read_flags,
  settings_of,
  smoke_settings,
)

from pure_jax.models import kv_cache, policy
from pure_jax.models.params import count_params
from pure_jax.parallel import sharding
from pure_jax.rollout import engine_programs, generation
from pure_jax.runs.planning import compiler, devices, estimates, search
from pure_jax.runs.planning.execution_plan import (
  ExecutionPlan,
  fitting_flags,
  nearest_micro_batches,
  with_plan,
)
from pure_jax.runs.planning.plan import Plan, StagePlan
from pure_jax.runs.planning.planned_spec import read_spec
from pure_jax.runs.planning.planner import Planner
from pure_jax.runs.planning.programs import Resident
from pure_jax.runs.planning.roofline import GIB, Bound, Chip
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.models import ARCHITECTURES
from pure_jax.runs.spec import Layouts


@pytest.fixture(scope="module")
def spec():
  return read_spec(smoke_settings(), jax.devices())


def changed(spec, **changes):
  """The specification with other fields of `settings.rl`."""
  rl = dataclasses.replace(spec.settings.rl, **changes)
  settings = dataclasses.replace(spec.settings, rl=rl)
  return dataclasses.replace(spec, settings=settings)


def on_devices(spec, count):
  """The specification planned for the first devices."""
  layout = sharding.make_layout(fsdp=count, devices=jax.devices()[:count])
  return dataclasses.replace(spec, layouts=Layouts.same(layout))


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ("files", "nothing says what the policy is"),
    ("evaluate", "config.batch_rows is not a field of this config"),
  ],
)
def test_a_config_without_a_policy_says_what_to_name(
  config, message, monkeypatch
):
  with (
    command_line(monkeypatch, f"--config={CONFIGS / config}.py") as plan,
    pytest.raises(ConfigError, match=message),
  ):
    plan.read_settings()


def test_folders_that_cannot_be_created_are_an_error():
  with pytest.raises(ConfigError, match="--hlo=/dev/null/x must be a folder"):
    Planner(
      smoke_settings(),
      jax.devices(),
      hlo_folder=pathlib.Path("/dev/null/x"),
    )


def test_an_online_prm_is_an_error():
  """Its state and updates are not counted."""
  settings = smoke_settings()
  online = dataclasses.replace(settings.rl.online_prm, every=1)
  rl = dataclasses.replace(settings.rl, online_prm=online)
  settings = dataclasses.replace(settings, rl=rl)
  with pytest.raises(ConfigError, match=r"does not count .* an online PRM"):
    Planner(settings, jax.devices())


def test_an_empty_topology_is_an_error():
  """libtpu would take a slice of its own choice."""
  with pytest.raises(ConfigError, match="--topology= names nothing"):
    devices.find_devices("")


def test_the_paper_needs_no_folder():
  """Names of architectures replace folders: 7.6 billion weights, no file."""
  config = qwen2p5_7b.get_config()
  config.files.policy = config.files.architecture
  spec = read_spec(settings_of(config, "tpu"), jax.devices())
  assert count_params(policy.declare_policy(spec.model)) == 7_615_616_512
  assert spec.model.attention_chunk == config.files.model.attention_chunk
  assert spec.prm_model.width == 3584
  config = qwen2p5_7b.get_config("vr")
  config.files.policy = config.files.architecture
  spec = read_spec(settings_of(config, "tpu"), jax.devices())
  assert spec.prm_model is None


def test_named_architectures_are_those_that_were_published():
  """Weights of the model cards: 7.61, 1.54 and .49 billion and 135 million,
  embeddings included."""
  counts = {
    name: count_params(policy.declare_policy(model))
    for name, model in ARCHITECTURES.items()
  }
  assert counts["qwen2p5_math_7b"] == 7_615_616_512
  assert counts["qwen2p5_math_1p5b"] == 1_543_714_304
  assert counts["qwen2p5_0p5b"] == 494_032_768
  assert counts["smollm2_135m"] == 134_515_008


def test_flops_of_a_forward_pass_by_counting_each_product():
  model = dataclasses.replace(
    ARCHITECTURES["qwen2p5_7b"], width=8, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=6, mlp_width=10, vocab_size=11,
  )  # fmt: skip
  flops = 0
  for _layer in range(2):
    for _token in range(5):
      for rows, columns in (
        (8, 24), (8, 12), (8, 12), (24, 8), (8, 10), (8, 10), (10, 8)
      ):  # fmt: skip
        flops += 2 * rows * columns
    for query in range(5):
      flops += (query + 1) * 4 * 2 * (2 * 6)  # Scores, and their values.
  flops += 3 * 2 * 8 * 11
  assert estimates.forward_flops(model, 5, 15, 3) == flops


def test_bytes_of_the_cache_are_those_of_its_arrays(spec):
  rl, model = spec.settings.rl, spec.model
  prompt = jax.ShapeDtypeStruct(
    (rl.prompts, model.num_kv_heads, spec.prompt_tokens, model.head_dim),
    model.compute_dtype,
  )
  prompts = [prompt] * model.num_layers
  cache = jax.eval_shape(
    lambda keys, values, mask: kv_cache.begin_cache(
      model,
      keys,
      values,
      mask,
      rl.samples_per_prompt,
      spec.sampler.max_new_tokens - 1,
      share_prompts=False,
    ),
    prompts,
    prompts,
    jax.ShapeDtypeStruct((rl.prompts, spec.prompt_tokens), bool),
  )
  assert cache.mask.shape[0] == spec.responses
  all_bytes = sum(
    x.size * x.dtype.itemsize
    for x in jax.tree.leaves((cache.keys, cache.values))
  )
  whole = sharding.make_layout()
  split = sharding.make_layout(
    fsdp=2, tensor=2, rules="fsdp+tensor", devices=jax.devices()[:4]
  )
  # Split are the rows at a time, the row shards and the heads.
  for layout, parts in ((whole, 1), (split, 2)):
    planned = with_plan(spec, plan_of(layout))
    rows = spec.responses // parts
    assert estimates.cache_bytes(planned, rows) == all_bytes / parts**3


def test_micro_batches_that_the_rows_do_not_allow_become_fewer(spec):
  """32 rows on 8 shards are 4 for each: at most 4 micro-batches."""
  layouts = Layouts.same(sharding.make_layout(fsdp=8))
  assert nearest_micro_batches(spec, layouts, 2) == (2, ())
  for requested, possible in ((3, 2), (64, 4)):
    number, (note,) = nearest_micro_batches(spec, layouts, requested)
    assert number == possible
    assert f"rl.micro_batches={requested}" in note


def test_prompts_that_the_row_shards_do_not_divide_are_an_error(spec):
  """12 x 4 rows could be split over 8 devices, 12 prompts cannot."""
  layouts = Layouts.same(sharding.make_layout(fsdp=8))
  with pytest.raises(ValueError, match=r"rl.prompts=12 is not divisible"):
    nearest_micro_batches(changed(spec, prompts=12), layouts, 1)


def test_other_batch_sizes_become_divisible_by_the_row_shards(spec):
  """480 held-out prompts over 64 row shards: 448, or a run could not start."""
  layouts = Layouts.same(sharding.make_layout(fsdp=8))
  for prompts, divisible in ((20, 16), (4, 8)):
    flags = fitting_flags(changed(spec, eval_prompts=prompts), layouts)
    assert f"--config.rl.eval_prompts={divisible}" in flags


def test_a_mesh_with_another_number_of_devices_is_an_error(spec):
  mesh = dataclasses.replace(spec.settings.mesh, fsdp=2)
  settings = dataclasses.replace(spec.settings, mesh=mesh)
  with pytest.raises(ValueError, match=r"has 2 devices, but there are 8"):
    search.config_plan(dataclasses.replace(spec, settings=settings))


def test_rollouts_on_an_open_mesh_gather_no_weight_for_each_token(spec):
  layouts = search.config_plan(spec).layouts
  assert str(layouts.training) == "fsdp on fsdp=8"
  assert str(layouts.rollout) == "tensor on data=4 x tensor=2"
  alone = search.config_plan(on_devices(spec, 1)).layouts
  assert alone.rollout == alone.training


@pytest.mark.parametrize(
  ("prompts", "samples", "shards", "slots"),
  [(8, 4, 1, 7), (8, 4, 2, 17), (3, 2, 2, 64), (8, 2, 4, 1), (6, 3, 4, 60)],
)
def test_rows_at_a_time_are_those_that_the_engine_starts(
  spec, prompts, samples, shards, slots
):
  """With another rounding, memory of another size would be planned."""
  layout = sharding.make_layout(data=shards, devices=jax.devices()[:shards])
  engine = engine_programs.EngineSpec(
    generation.GenerationSpec(spec.model, None),
    samples,
    engine_programs.EngineConfig(slots, 5),
    shards=shards,
  )
  rows = plan_of(layout, slots).rows_at_a_time(prompts, samples)
  assert rows == engine.num_starting_prompts(prompts) * samples


def test_slots_are_halved_down_to_a_prompt_on_each_shard():
  layout = sharding.make_layout(data=2, devices=jax.devices()[:2])
  plan, rows = plan_of(layout, 130), []
  while plan is not None:
    rows.append(plan.rows_at_a_time(64, 8))
    plan = plan.with_half_the_rows(64, 8)
  assert rows == [128, 64, 32, 16]


def test_the_flags_of_a_plan_make_a_config_with_the_same_plan(spec):
  """With continuous batching, too, and if the config samples in batches."""
  layouts = Layouts(
    sharding.make_layout(fsdp=4, tensor=2, rules="fsdp+tensor"),
    sharding.make_layout(data=8),
    sharding.make_layout(data=8),
    sharding.make_layout(fsdp=4, sequence=2, rules="fsdp+sequence"),
  )
  config = arithmetic.get_config("smoke")
  config.rl.rollout.batches = 2
  for plan in (ExecutionPlan(layouts, 4, 2), ExecutionPlan(layouts, 2, 1, 16)):
    settings = read_flags(config, plan.flags())
    read = dataclasses.replace(spec, settings=settings)
    assert search.config_plan(read) == plan


def test_the_search_tries_the_layouts_that_the_rules_can_split(spec):
  spec = on_devices(spec, 4)
  training = list(search._training_layouts(spec))
  plans = search._rollout_plans(spec, ExecutionPlan(training[0], 8, 1))
  rollout = {str(plan.layouts.rollout) for plan in plans}
  names = {str(layouts) for layouts in training}
  # Tokens can be split over 4 devices, 2 heads of keys and values cannot.
  assert names == {
    "training: fsdp on fsdp=4",
    "training: fsdp+tensor on fsdp=2 x tensor=2",
    "training: fsdp+sequence on fsdp=2 x sequence=2",
    "training: fsdp+sequence on sequence=4",
  }
  assert rollout == {"fsdp on data=4", "tensor on data=2 x tensor=2"}


def fake_plan(execution_plan, stages, seconds, size):
  """A plan whose stages take so many seconds and bytes, of a chip with 100."""
  chip = Chip(1.0, 1.0, 1.0, 100.0)
  memory = compiler.Memory(0, 0, 0, size)
  return Plan(
    target=devices.Target("none", "none", 8, 1, chip, {}),
    execution_plan=execution_plan,
    rows=32,
    iterations=1,
    flags=(),
    notes=(),
    resident=Resident(0, 0, 0, 0, 0),
    stages=tuple(
      StagePlan(
        compiler.CompiledStage(name, 0.0, memory),
        estimates.Estimates(0, 0),
        Bound(seconds, 0.0, 0.0),
      )
      for name in stages
    ),
  )


def test_the_search_finds_the_fastest_plan_that_fits(spec, monkeypatch):
  """More rows at a time are faster and larger, and so are fewer batches."""
  # The rules can split 2 heads of keys and values. Which layouts they can
  # split is tested above.
  monkeypatch.setattr(
    search,
    "_spare_bytes",
    lambda spec, layouts: (
      math.inf if layouts.rollout.mesh.shape["tensor"] <= 2 else -1
    ),
  )
  attempts = []

  def make_plan(plan, stages):
    attempts.append((plan, stages))
    training, rollout = plan.layouts.training, plan.layouts.rollout
    if stages == search.TRAINING_STAGES:
      # Split tokens are fastest, but never fit.
      is_split = training.mesh.shape["sequence"] > 1
      rows = 32 // training.row_shards // plan.micro_batches
      size = 200 if is_split else 40 * rows
      return fake_plan(plan, stages, (1 if is_split else 8) / rows, size)
    size = 400 / rollout.mesh.shape["tensor"] / plan.rollout_batches
    seconds = plan.rollout_batches / rollout.mesh.shape["tensor"]
    return fake_plan(plan, stages or ("rollout",), seconds, size)

  search.search(spec, make_plan)
  plan, stages = attempts[-1]
  assert stages is None
  assert str(plan.layouts.training) == "fsdp on fsdp=8"
  assert plan.micro_batches == 2  # Of 4 rows, two at a time: three do not fit.
  assert str(plan.layouts.rollout) == "tensor on data=4 x tensor=2"
  assert plan.rollout_batches == 2
  assert plan.flags() == [
    "--config.mesh.fsdp=8",
    '--config.rl.rollout_mesh={"data": 4, "tensor": 2, "rules": "tensor"}',
    "--config.rl.micro_batches=2",
    "--config.rl.rollout.batches=2",
  ]
  # A layout that needs four times the memory was tried in more batches.
  whole = [
    plan.rollout_batches
    for plan, _ in attempts
    if "data=8" in str(plan.layouts.rollout)
  ]
  assert whole[:3] == [1, 2, 4]


@pytest.mark.parametrize(
  ("slots", "caches", "expected"),
  [(8, 1.6, 8), (8, 1.4, 4), (32, 2.1, 32), (32, 1.9, 16)],
)
def test_the_search_leaves_room_for_the_copies_of_an_engines_cache(
  spec, monkeypatch, slots, caches, expected
):
  """Room for one cache, enough for one loop, is not enough for an engine."""
  plan = plan_of(sharding.make_layout(), slots)
  cache = estimates.cache_bytes(with_plan(spec, plan), slots)
  monkeypatch.setattr(search, "_spare_bytes", lambda *unused: caches * cache)
  (smaller, *_) = search._rollout_plans(on_devices(spec, 1), plan)
  assert (smaller.slots, smaller.rollout_batches) == (expected, 1)


@pytest.mark.parametrize(
  ("message", "size"),
  [
    ("HLO temporaries (600.66G) exceeds available HBM (9.7G).", 600.66 * GIB),
    ("Ran out of memory. Used 41.50G of 31.25G hbm.", 41.5 * GIB),
    ("Out of memory", None),
  ],
)
def test_needed_bytes_are_read_from_the_compilers_message(message, size):
  assert compiler._needed_bytes(message) == size


def test_devices_with_the_same_coordinates_share_a_chip(monkeypatch):
  @dataclasses.dataclass
  class Device:
    coords: tuple
    platform: str = "tpu"
    device_kind: str = "TPU v2"

  monkeypatch.setattr(importlib.metadata, "version", lambda package: "0")
  pairs = [Device((i // 2, 0, 0)) for i in range(8)]
  assert devices.describe_target("v2:2x2", pairs).devices_per_chip == 2
  assert devices.describe_target(None, jax.devices()).devices_per_chip == 1
