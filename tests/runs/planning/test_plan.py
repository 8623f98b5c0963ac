"""Plans: compiled for the devices here, and for TPUs where libtpu is."""

import dataclasses
import gzip
import json

import jax
import plan
import plan_script
import pytest
from absl import flags
from configs import arithmetic, qwen2p5_7b
from ml_collections import config_flags

from pure_jax.models import policy
from pure_jax.models.params import count_params
from pure_jax.parallel import sharding
from pure_jax.runs.planning import (
  compiler,
  estimates,
  execution_plan,
  hlo_costs,
  programs,
  report,
  search,
)
from pure_jax.runs.planning.roofline import GIB, Bound, Chip
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.models import ARCHITECTURES


def settings_of(config, platform):
  return settings_from_config(config).for_platform(platform)


def all_in(layout):
  return execution_plan.Layouts(layout, layout, layout, layout)


@pytest.fixture(scope="module")
def settings():
  return settings_of(arithmetic.get_config("smoke"), "cpu")


@pytest.fixture(scope="module")
def shapes(settings):
  return programs.shapes_of(settings)


@pytest.fixture(scope="module")
def hlo(tmp_path_factory):
  return tmp_path_factory.mktemp("plan") / "hlo"


@pytest.fixture(scope="module")
def local_plan(hlo):
  config = plan_script.CONFIGS / "arithmetic.py"
  done = plan_script.run(f"--config={config}:smoke", "--json", f"--hlo={hlo}")
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_a_plan_of_the_devices_here(local_plan):
  """Each stage is compiled; no peak numbers of a CPU are made up."""
  assert local_plan["topology"] == "local"
  assert local_plan["devices"] == 4
  names = [stage["compiled"]["name"] for stage in local_plan["stages"]]
  assert names == ["reshard", "rollout", "score", "update"]
  assert local_plan["fits"] is None
  assert local_plan["step_seconds"] is local_plan["chip_hours"] is None


def test_compiled_products_are_what_the_method_needs(local_plan):
  """Counted in the compiled program against the closed form.

  Both see every layer, token and loop trip, or they would differ by factors.
  Compiled are more: scores of later keys, and of the empty cache.
  """
  for stage in local_plan["stages"][1:]:
    compiled = 4 * stage["compiled"]["costs"]["flops"]
    assert 0.75 < stage["model_flops"] / compiled <= 1.0, stage


def test_the_compiled_programs_are_kept_where_asked(local_plan, hlo):
  """What was counted can be counted again."""
  for number, stage in enumerate(local_plan["stages"]):
    costs = stage["compiled"]["costs"]
    name = f"{number}_{stage['compiled']['name']}.txt.gz"
    text = gzip.decompress((hlo / name).read_bytes()).decode()
    assert hlo_costs.count(text, 4).flops == costs["flops"]


def test_weights_held_by_a_device_are_a_part_of_all(local_plan, shapes):
  params = count_params(policy.declare_policy(shapes.model))
  held = local_plan["resident"]
  # The biases of 4 query and 2 + 2 other heads of 8 in 2 layers have no width.
  biases = 2 * (4 + 2 + 2) * 8
  mine = 4 * ((params - biases) / 4 + biases)
  assert held["parameters"] == held["reference"] == mine
  assert 2 * mine < held["optimizer"] < 2 * mine + 64  # Two moments, counters.
  # What the compiler takes as the update's state is that, and the batch.
  update = local_plan["stages"][3]["compiled"]["memory"]
  assert update["arguments"] > held["parameters"] + held["optimizer"]
  assert update["aliased"] >= held["parameters"] + held["optimizer"]


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ("files", "nothing says what the policy is"),
    ("evaluate", "config.batch_rows is not a field of this config"),
  ],
)
def test_a_plan_without_a_run_or_a_shape_says_what_to_name(config, message):
  done = plan_script.run(f"--config={plan_script.CONFIGS / config}.py")
  assert done.returncode == 1
  assert done.stderr.startswith(f"error: {message}")


def test_flags_that_name_nothing_are_refused(settings):
  """An empty topology is, for libtpu, some slice of its own choice."""
  with pytest.raises(ConfigError, match="--topology= names nothing"):
    plan.Planner(settings, "")
  with pytest.raises(ConfigError, match="--hlo=/dev/null/x must be a folder"):
    plan.Planner(settings, None, "/dev/null/x")


def test_the_paper_needs_no_folder():
  """Names of shapes stand in for folders: 7.6 billion weights, no file."""
  config = qwen2p5_7b.get_config()
  config.files.policy = config.files.architecture
  shapes = programs.shapes_of(settings_of(config, "tpu"))
  assert count_params(policy.declare_policy(shapes.model)) == 7_615_616_512
  assert shapes.model.attention_chunk == config.files.model.attention_chunk
  assert shapes.prm_model.width == 3584
  config = qwen2p5_7b.get_config("vr")
  config.files.policy = config.files.architecture
  assert programs.shapes_of(settings_of(config, "tpu")).prm_model is None


def test_the_shapes_are_those_that_were_published():
  """Weights of the model cards: 7.61 and 1.54 billion and 135 million,
  embeddings included."""
  counts = {
    name: count_params(policy.declare_policy(model))
    for name, model in ARCHITECTURES.items()
  }
  assert counts["qwen2p5_math_7b"] == 7_615_616_512
  assert counts["qwen2p5_math_1p5b"] == 1_543_714_304
  assert counts["smollm2_135m"] == 134_515_008


def test_a_forward_pass_by_counting():
  """Every matrix product of a small model, one at a time."""
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


def test_bytes_of_a_cache(settings, shapes):
  from pure_jax.models import kv_cache

  rl = settings.rl
  rows = rl.prompts * rl.samples_per_prompt
  model, groups = shapes.model, rl.samples_per_prompt
  prompt = jax.ShapeDtypeStruct(
    (
      rl.prompts,
      model.num_kv_heads,
      shapes.prompt_tokens,
      model.head_dim,
    ),
    model.compute_dtype,
  )
  prompts = [prompt] * model.num_layers
  cache = jax.eval_shape(
    lambda keys, values, mask: kv_cache.begin_cache(
      model,
      keys,
      values,
      mask,
      groups,
      rl.sampler.max_new_tokens - 1,
      shared=False,
    ),
    prompts,
    prompts,
    jax.ShapeDtypeStruct((rl.prompts, shapes.prompt_tokens), bool),
  )
  assert cache.mask.shape[0] == rows
  all_bytes = sum(
    x.size * x.dtype.itemsize
    for x in jax.tree.leaves((cache.keys, cache.values))
  )
  whole = sharding.make_layout()
  split = sharding.make_layout(
    fsdp=2, tensor=2, rules="fsdp+tensor", devices=jax.devices()[:4]
  )
  for layout, part in ((whole, 1), (split, 2)):
    found = estimates.cache_bytes(settings, shapes, layout, rows // part)
    assert found == all_bytes / part**3  # A part of rows, shards and heads.


def test_micro_batches_that_rows_cannot_fill(settings):
  """32 rows on 8 shards are 4 for each: at most 4 micro-batches."""
  layouts = all_in(sharding.make_layout(fsdp=8))
  assert search.possible_micro_batches(settings, layouts, 2) == (2, ())
  for wanted in (3, 64):
    parts, (note,) = search.possible_micro_batches(settings, layouts, wanted)
    assert parts == {3: 2, 64: 4}[wanted]
    assert f"rl.micro_batches={wanted}" in note


def test_a_mesh_of_another_size_is_refused(settings, shapes):
  mesh = dataclasses.replace(settings.mesh, fsdp=2)
  with pytest.raises(ValueError, match=r"has 2 devices, but there are 8"):
    search.config_way(
      dataclasses.replace(settings, mesh=mesh), shapes, jax.devices()
    )


def test_the_search_tries_what_the_rules_can_split(settings, shapes):
  found = list(search.training_layouts(settings, shapes, jax.devices()))
  training = {str(layouts) for layouts in found}
  way = execution_plan.Way(found[0], 4, 1)
  ways = list(search.rollout_ways(settings, shapes, way, jax.devices()))
  rollout = {str(other.layouts.rollout) for other in ways}
  assert {
    "training: fsdp on fsdp=8",
    "training: fsdp+tensor on fsdp=4 x tensor=2",
    "training: fsdp+sequence on fsdp=4 x sequence=2",
  } <= training
  assert {"fsdp on data=8", "tensor on data=4 x tensor=2"} <= rollout
  # 4 heads cannot be split over 8 devices.
  assert not any("tensor=8" in layout for layout in training | rollout)
  assert all(32 % layouts.row_shards == 0 for layouts in found)


def plan_of(way, stages, seconds, size):
  """A plan whose stages take what is said, of a chip with 100 bytes."""
  chip = Chip(1.0, 1.0, 1.0, 100.0)
  memory = compiler.Memory(0, 0, 0, size)
  return report.Plan(
    topology="none",
    device_kind="none",
    devices=8,
    devices_per_chip=1,
    layout=str(way.layouts),
    rows=32,
    micro_batches=way.micro_batches,
    rollout_parts=way.rollout_parts,
    rollout_rows=way.rollout_rows,
    flags=tuple(way.flags()),
    notes=(),
    iterations=1,
    resident=programs.Resident(0, 0, 0, 0, 0),
    chip=chip,
    stages=tuple(
      report.StagePlan(
        compiler.CompiledStage(name, 0.0, memory),
        0,
        0,
        0,
        0,
        Bound(seconds, 0.0, 0.0),
      )
      for name in stages
    ),
    versions={},
  )


def test_the_search_finds_the_fastest_that_fits(settings, shapes):
  """More rows at a time are faster and larger, and so are fewer parts."""
  asked = []

  def plan(way, stages):
    asked.append((way, stages))
    training, rollout = way.layouts.training, way.layouts.rollout
    if stages == ("score", "update"):
      # Split tokens are fastest, but never fit.
      split = training.mesh.shape["sequence"] > 1
      rows = 32 // training.row_shards // way.micro_batches
      size = 200 if split else 40 * rows
      return plan_of(way, stages, (1 if split else 8) / rows, size)
    size = 400 / rollout.mesh.shape["tensor"] / way.rollout_parts
    seconds = way.rollout_parts / rollout.mesh.shape["tensor"]
    return plan_of(way, stages or ("rollout",), seconds, size)

  search.search(settings, shapes, jax.devices(), plan)
  way, stages = asked[-1]
  assert stages is None
  assert str(way.layouts.training) == "fsdp on fsdp=8"
  assert way.micro_batches == 2  # Of 4 rows, two at a time: three do not fit.
  assert str(way.layouts.rollout) == "tensor on data=4 x tensor=2"
  assert way.rollout_parts == 2
  assert way.flags() == [
    "--config.mesh.fsdp=8",
    '--config.rl.rollout_mesh={"data": 4, "tensor": 2, "rules": "tensor"}',
    "--config.rl.micro_batches=2",
    "--config.rl.rollout.batches=2",
  ]
  # Halves of a layout that needs four times the memory were tried.
  whole = [
    way.rollout_parts
    for way, _ in asked
    if "data=8" in str(way.layouts.rollout)
  ]
  assert whole[:3] == [1, 2, 4]


def test_the_flags_of_a_plan_are_a_config(shapes):
  """What a plan names, a run can be given, and it is the same layouts."""
  devices = jax.devices()
  way = execution_plan.Way(
    execution_plan.Layouts(
      sharding.make_layout(fsdp=4, tensor=2, rules="fsdp+tensor"),
      sharding.make_layout(data=8),
      sharding.make_layout(data=8),
      sharding.make_layout(fsdp=4, sequence=2, rules="fsdp+sequence"),
    ),
    4,
    2,
  )
  config = arithmetic.get_config("smoke")
  given = ["plan", *way.flags()]
  flag_values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    "config", config, flag_values=flag_values, sys_argv=given
  )
  flag_values(given)
  read = settings_from_config(flag_values.config)
  assert search.config_way(read, shapes, devices) == way


def test_sizes_of_other_batches_that_row_shards_divide(settings):
  """480 held-out prompts over 64 row shards: 448, or the run would refuse."""
  rl = dataclasses.replace(settings.rl, eval_prompts=20)
  asked = dataclasses.replace(settings, rl=rl)
  layouts = all_in(sharding.make_layout(fsdp=8))
  found = search.fitting_flags(asked, layouts)
  assert "--config.rl.eval_prompts=16" in found
  rl = dataclasses.replace(settings.rl, eval_prompts=4)
  asked = dataclasses.replace(settings, rl=rl)
  found = search.fitting_flags(asked, layouts)
  assert "--config.rl.eval_prompts=8" in found


def test_prompts_that_row_shards_cannot_divide_are_refused(settings):
  """12 x 4 rows could be split over 8 devices, 12 prompts cannot."""
  rl = dataclasses.replace(settings.rl, prompts=12)
  asked = dataclasses.replace(settings, rl=rl)
  layouts = all_in(sharding.make_layout(fsdp=8))
  with pytest.raises(ValueError, match=r"rl.prompts=12 is not divisible"):
    search.possible_micro_batches(asked, layouts, 1)


def test_an_open_mesh_gathers_no_weight_for_each_token(settings, shapes):
  found = search.config_way(settings, shapes, jax.devices())
  assert str(found.layouts.training) == "fsdp on fsdp=8"
  assert str(found.layouts.rollout) == "tensor on data=4 x tensor=2"
  alone = search.config_way(settings, shapes, jax.devices()[:1])
  assert str(alone.layouts.rollout) == str(alone.layouts.training)


@pytest.mark.parametrize(
  ("message", "size"),
  [
    ("HLO temporaries (600.66G) exceeds available HBM (9.7G).", 600.66 * GIB),
    ("Ran out of memory. Used 41.50G of 31.25G hbm.", 41.5 * GIB),
    ("Out of memory", None),
  ],
)
def test_sizes_in_the_compilers_words(message, size):
  assert compiler.needed_bytes(message) == size


def test_chips_with_two_devices():
  @dataclasses.dataclass
  class Device:
    id: int
    coords: tuple

  pairs = [Device(i, (i // 2, 0, 0)) for i in range(8)]
  assert compiler.devices_per_chip(pairs) == 2
  assert compiler.devices_per_chip(jax.devices()) == 1
