"""Lower bounds of memory: runs that fit are not stopped; errors name fields."""

import dataclasses
import importlib
import json
import re
from types import SimpleNamespace

import pytest
import smoke_run
from checkout import ROOT
from configs import arithmetic
from overrides import with_changes

from pure_jax.runs.memory import needs, of_run, run_sizes
from pure_jax.runs.memory.needs import Need
from pure_jax.runs.run import open_run
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.models import ARCHITECTURES
from pure_jax.runs.spec import make_layouts

GIB = 2**30
PLANS = (
  *("qwen2p5_7b_v5p_4", "qwen2p5_7b_v6e_8", "qwen2p5_math_1p5b_v5e_4"),
  *("qwen2p5_math_1p5b_v5e_8", "qwen2p5_math_7b_v5p_4"),
  "qwen2p5_math_7b_v6e_8",
)


def set_memory(monkeypatch, num_bytes):
  """Makes this a machine with so much memory."""
  monkeypatch.setattr(needs, "machine_bytes", lambda: num_bytes)


def smoke(**changes):
  """Settings of the embedded world's smoke run."""
  config = with_changes(arithmetic.get_config("smoke"), **changes)
  return settings_from_config(config).for_platform("cpu")


def refusal(run, stages):
  """Why memory refuses stages of a run; None if it does not."""
  try:
    of_run.check_memory(run, stages)
  except ConfigError as error:
    return str(error)
  return None


def check(settings, stages=run_sizes.STAGES):
  """Checks counts and memory, as opening a run does."""
  run = run_sizes.read_sizes(settings, make_layouts(settings))
  run_sizes.check_counts(run, stages)
  of_run.check_memory(run, stages)


@pytest.mark.parametrize(
  ("name", "variant", "gib"),
  [
    ("arithmetic", "full", 1),
    *((name, "smoke", 0.05) for name in ("arithmetic", "gsm8k_prm")),
    *((name, "smoke", 0.05) for name in ("pure_prm_7b", "qwen2p5_7b")),
    ("qwen2p5_math_1p5b", "smoke_reference_verl_prm_vr", 0.05),
    ("qwen2p5_math_7b", "smoke_paper_vr", 0.05),
  ],
)
def test_runs_for_a_laptop_are_far_from_refused(
  name, variant, gib, monkeypatch
):
  set_memory(monkeypatch, gib * GIB)
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  check(settings_from_config(config).for_platform("cpu"))


def test_a_stage_that_does_not_run_needs_nothing(monkeypatch):
  """The config of a PRM's training holds RL too, whose batch is larger.

  It ran on two cores with 23 GiB.
  """
  set_memory(monkeypatch, 23 * GIB)
  config = importlib.import_module("configs.gsm8k_prm").get_config("full")
  config.files.policy = "folder"
  settings = settings_from_config(config).for_platform("cpu")
  model = settings.files.computed(ARCHITECTURES["smollm2_135m"])
  layouts = make_layouts(settings)
  run = run_sizes.RunSizes(settings, layouts, model, model, 1024, 1024)
  assert refusal(run, ["sft", "prm"]) is None
  assert "an update takes at least" in refusal(run, ["rl"])


@pytest.mark.parametrize("name", PLANS)
def test_the_compiler_never_needs_less_than_the_estimate(name):
  """The plans that docs/planning.md reports, compiled for TPUs."""
  plan = json.loads((ROOT / "docs" / "plans" / f"{name}.json").read_text())
  module = importlib.import_module(f"configs.{re.sub('_v.*', '', name)}")
  config = module.get_config()
  config.files.policy = config.files.architecture
  changes = {}
  for flag in plan["flags"]:
    field, value = flag.removeprefix("--config.").split("=", 1)
    numeric = re.fullmatch(r"\d+|\{.*\}", value)
    changes[field.replace(".", "__")] = json.loads(value) if numeric else value
  settings = settings_from_config(with_changes(config, **changes))
  settings = settings.for_platform("tpu")
  files = settings.files
  models = [
    files.computed(ARCHITECTURES[model])
    for model in (files.architecture, files.prm_architecture)
  ]
  layouts = make_layouts(settings)
  lengths = files.prompt_tokens, files.prm_prompt_tokens
  run = run_sizes.RunSizes(settings, layouts, *models, *lengths)
  least = {
    stage: sum(need.num_bytes for need in of_stage)
    for stage, of_stage in of_run.stage_needs(run, ["rl"]).items()
  }
  for stage in plan["stages"]:
    of_compiler = stage["total_bytes"]
    name = stage["compiled"]["name"]
    of_stage = least.get(
      {"rollout": "a rollout", "update": "an update"}.get(name)
    )
    if of_stage is not None:
      assert of_compiler / 20 < of_stage <= of_compiler


def test_the_embedded_world_has_the_sizes_that_were_read_before(tmp_path):
  settings = smoke()
  sizes = run_sizes.read_sizes(settings, make_layouts(settings))
  with open_run(settings, str(tmp_path / "run")) as run:
    assert sizes.model == run.spec.model
    assert sizes.prm_model == run.spec.prm_model
    assert sizes.prompt_tokens == run.spec.prompt_tokens


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"rl__prompts": 10**6},
      "^rl.prompts=1000000 needs more memory than there is: .*this machine has "
      r"4\.0 GiB\. Lower rl\.prompts, ",
    ),
    ({"model__width": 10**6}, "^model.width=1000000 needs"),
    ({"model__num_layers": 10**7}, "^model.num_layers=10000000 needs"),
    ({"prm__extra_layers": 10**7}, "^prm.extra_layers=10000000 needs"),
    (
      {"rl__lora__rank": 10**7},
      r"^rl.lora.rank=10000000 needs .* for weights and moments",
    ),
    ({"sft__demonstrations": 10**8}, r"Lower sft\.demonstrations\.$"),
    ({"prm__labelled": 10**8}, r"Lower prm\.labelled\.$"),
    ({"prm__eval_prompts": 4 * 10**6}, "^prm.eval_prompts=4000000 needs"),
    ({"sft__batch_size": 10**7}, "^sft.batch_size=10000000 needs"),
    ({"rl__sampler__max_new_tokens": 10**6}, "max_new_tokens=1000000 needs"),
    (
      {
        "rl__micro_batches": 2,
        "rl__packed_tokens": 10**8,
      },
      "^rl.packed_tokens=100000000 needs .* for packed rows",
    ),
    (
      {"rl__updates__epochs": 10**8},
      "^rl.updates.epochs=100000000 is too large: the order of updates",
    ),
    (
      {"rl__updates__epochs": 5 * 10**7},
      "largest part for the order of updates",
    ),
    ({"world__max_operations": 1001}, "max_operations must be at most 1000"),
    (
      {"world__operand_max": 10**6, "world__value_max": 10**6},
      "makes numbers up to 6000002, .* they may go up to 100000",
    ),
  ],
)
def test_the_field_behind_the_largest_need_is_named(
  changes, message, monkeypatch
):
  set_memory(monkeypatch, 4 * GIB)
  with pytest.raises(ConfigError, match=message):
    check(smoke(**changes))


def test_adapters_need_less_than_all_weights(monkeypatch):
  """Moments of a million frozen weights would refuse what runs."""
  set_memory(monkeypatch, GIB)
  for rank, is_refused in ((0, True), (1, False)):
    settings = smoke(model__mlp_width=3 * 10**5, rl__lora__rank=rank)
    run = run_sizes.read_sizes(settings, make_layouts(settings))
    assert (refusal(run, ["rl"]) is not None) == is_refused


def need_of(what, stage, **changes):
  """Bytes of one need of a stage of RL."""
  settings = smoke(**changes)
  run = run_sizes.read_sizes(settings, make_layouts(settings))
  needs_of_stage = of_run.stage_needs(run, ["rl"])[stage]
  (num_bytes,) = [n.num_bytes for n in needs_of_stage if n.what == what]
  return num_bytes


@pytest.mark.parametrize(
  ("what", "stage", "changes"),
  [
    ("the inputs of layers", "an update", {"rl__micro_batches": 2}),
    ("the inputs of layers", "an update", {"rl__updates__mini_batches": 2}),
    ("the inputs of layers", "an update", {"mesh__data": 2}),
    ("keys and values", "a rollout", {"mesh__data": 2}),
    ("scored responses", "an update", {"mesh__data": 2}),
  ],
)
def test_half_of_the_rows_at_a_time_need_half(what, stage, changes):
  assert need_of(what, stage) == 2 * need_of(what, stage, **changes) > 0


def test_rows_that_samples_share_are_no_more_than_prompts():
  """As many as half of the responses would refuse what runs."""
  settings = smoke()
  run = run_sizes.read_sizes(settings, make_layouts(settings))
  room = run.columns + run.new_tokens  # For a prompt and two responses.
  each, shared = (
    need_of(
      *("packed rows", "an update"),
      rl__micro_batches=2,
      rl__packed_tokens=columns,
    )
    // columns
    for columns in (room - 1, room)
  )
  assert each * settings.rl.prompts == shared * (settings.rl.responses // 2)
  assert each > shared > 0


def test_cpu_devices_share_their_machine(monkeypatch):
  """Two devices need together what one needs with all rows."""
  layout = make_layouts(smoke(mesh__data=2)).training
  need = Need("rows", 600, ("rl.prompts",))
  settings = smoke(rl__prompts=5)
  set_memory(monkeypatch, 1200)
  needs.check_stage(settings, "a rollout", [need], layout)
  set_memory(monkeypatch, 1199)
  with pytest.raises(ConfigError, match=r"rl\.prompts=5 needs more memory"):
    needs.check_stage(settings, "a rollout", [need], layout)


def accelerators(*limits):
  """A layout of devices with so many bytes; None does not say."""
  devices = [
    SimpleNamespace(
      platform="gpu",
      memory_stats=lambda limit=limit: (
        None if limit is None else {"bytes_limit": limit}
      ),
    )
    for limit in limits
  ]
  return SimpleNamespace(mesh=SimpleNamespace(local_devices=devices))


def test_accelerators_have_their_own_memory(monkeypatch):
  set_memory(monkeypatch, 500)
  settings = smoke()
  on_device = Need("keys and values", 700, ("rl.prompts",))
  needs.check_stage(settings, "a rollout", [on_device], accelerators(700, 800))
  with pytest.raises(ConfigError, match="a device has "):
    needs.check_stage(
      settings, "a rollout", [on_device], accelerators(800, 699)
    )
  needs.check_stage(settings, "a rollout", [on_device], accelerators(None))
  # No limit is written as 0.
  needs.check_stage(settings, "a rollout", [on_device], accelerators(0))
  on_host = dataclasses.replace(on_device, on_host=True)
  with pytest.raises(ConfigError, match="this machine has "):
    needs.check_stage(settings, "a rollout", [on_host], accelerators(None))


def test_what_no_machine_holds_is_refused_where_memory_is_unknown(monkeypatch):
  """XLA ends the process for sizes that overflow 64 bits."""
  set_memory(monkeypatch, None)
  check(smoke(sft__demonstrations=10**9))
  with pytest.raises(ConfigError, match="no machine has more"):
    check(smoke(model__width=2**31 - 1, model__mlp_width=2**31 - 1))


def test_a_finished_stage_is_not_checked_again(tmp_path, monkeypatch):
  """A run may go on where its first stages would not fit."""
  settings = smoke(sft__batch_size=10**6)
  set_memory(monkeypatch, 2 * GIB)
  with (
    pytest.raises(ConfigError, match=r"sft\.batch_size=1000000 needs"),
    open_run(settings, str(tmp_path / "run")),
  ):
    pass
  assert not (tmp_path / "run").exists()
  (tmp_path / "run" / "sft").mkdir(parents=True)
  (tmp_path / "run" / "sft" / "done.json").write_text("{}")
  with open_run(settings, str(tmp_path / "run")):
    pass


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *((f"model.{name}", 10**9) for name in ("width", "num_layers")),
    *((f"rl.{name}", 10**9) for name in ("prompts", "eval_prompts")),
    ("rl.sampler.max_new_tokens", 10**9),
    ("prm.score.max_steps", 10**9),
    ("world.max_operations", 10**9),
    ("prm.eval_prompts", 10**9),
    ("rl.lora.rank", 10**9),
    ("rl.packed_tokens", 10**9),
    ("seed", 2**63),
    ("world.seed", 2**63),
  ],
)
def test_a_script_ends_in_a_sentence_and_leaves_no_folder(
  field, value, tmp_path
):
  ended = smoke_run.call(
    *("train_pure.py", tmp_path / "run", f"--config.{field}={value}"),
    "--config.rl.micro_batches=2",
  )
  assert ended.returncode == 1
  (line,) = ended.stderr.splitlines()
  assert line.startswith("error: ") and line.endswith(".")
  assert field.rpartition(".")[2] in line
  assert not (tmp_path / "run").exists()
