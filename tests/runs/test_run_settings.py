"""Settings of runs and evaluations: conversion, checks, derived values."""

import dataclasses

import jax
import pytest
from configs import arithmetic, evaluate, qwen2p5_7b
from overrides import with_changes

from pure_jax.host.checkpoints.record import config_differences
from pure_jax.runs import folder
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.runs.settings.mesh import MeshSettings

# Four devices that split no rows.
TENSOR = {"mesh__tensor": 4, "mesh__rules": "tensor"}


def changed(**changes):
  """The smoke config with other values; `a__b` is field b of group a."""
  return with_changes(arithmetic.get_config("smoke"), **changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"rl__loss__kl_coeff": 0.1},
      r"config\.rl\.loss\.kl_coeff .*mean 'kl_coef'",
    ),
    ({"rl__prompts": "many"}, r"config\.rl\.prompts must be int"),
    ({"rl__prompts": True}, r"config\.rl\.prompts must be int"),
    (
      {"rl__credit__zero_truncated_end": 1},
      r"config\.rl\.credit\.zero_truncated_end must be bool",
    ),
    ({"rl": 3}, r"config\.rl must be a group of fields"),
    (
      {"rl__credit__process_coef": 0.0, "rl__credit__verifiable_coef": 0.0},
      "leaves no reward to learn from",
    ),
    (
      {"rl__credit__group_size": 8},
      r"rl\.credit\.group_size follows from other fields, which make it 4",
    ),
    ({"rl__credit__form": "max"}, "rl.credit: form must be one of"),
    ({"rl__credit__temperature": 0.0}, "rl.credit: temperature must be betw"),
    ({"rl__credit__discount": 0.9}, "discount other than 1 needs form='sum'"),
    ({"rl__loss__aggregate": "sum"}, "aggregate must be one of"),
    (
      {"rl__loss__aggregate": "constant_length"},
      "constant_length goes with aggregate",
    ),
    ({"model__width": -1}, r"config\.model: width must be"),
    ({"rl__sampler__temperature": 0.0}, "temperature must be between"),
    ({"rl__samples_per_prompt": 1}, "no other sample to compare with"),
    ({"rl__micro_batches": 5}, "does not divide the 32 responses"),
    ({"rl__micro_batches": 0}, "does not divide the 32 responses"),
    (
      {"rl__updates__mini_batches": 5},
      r"updates\.mini_batches=5 does not divide the 32 responses",
    ),
    (
      {"rl__updates__mini_batches": 0},
      r"rl\.updates: mini_batches must be at least 1, got 0",
    ),
    ({"rl__updates__epochs": 0}, r"rl\.updates: epochs must be at least 1"),
    ({"rl__updates__shuffle": 1}, r"rl\.updates\.shuffle must be bool"),
    (
      {"mesh__data": 4, "rl__updates__mini_batches": 16},
      r"rl\.updates\.mini_batches=2 is not divisible by the 4 row shards",
    ),
    (
      {"rl__adaptive_kl": {}, "rl__loss__kl_in_loss": None},
      "set either credit.kl_in_reward or loss.kl_in_loss, not None and None",
    ),
    (
      {"rl__adaptive_kl": {}, "rl__credit__kl_in_reward": "k1"},
      "set either credit.kl_in_reward or loss.kl_in_loss, not 'k1' and 'k3'",
    ),
    (
      {"rl__adaptive_kl": {}, "rl__loss__kl_coef": 0.0},
      "multiplies loss.kl_coef, which is 0 and would stay so",
    ),
    (
      {"rl__adaptive_kl": {"horizon": 6}},
      "horizon=6 is at most a fifth of the 32 responses",
    ),
    (
      {"rl__adaptive_kl": {"aim": 1.0}},
      r"rl\.adaptive_kl\.aim is not a field of this config",
    ),
    ({"rl__adaptive_kl": {"target": 0.0}}, "adaptive_kl: target must be betw"),
    ({"rl__length_buckets": 0}, "length_buckets must be at least 1, got 0"),
    ({"rl__packed_tokens": 64}, "set micro_batches to more than 1"),
    (
      {"rl__packed_tokens": 0, "rl__micro_batches": 2},
      "packed_tokens must be at least 1, got 0",
    ),
    ({"rl__answer_fraction": 0.0}, "answer_fraction must be between"),
    ({"rl__credit__kl_in_reward": "k4"}, "kl_in_reward must be one of"),
    ({"rl__loss__kl_in_loss": "k4"}, "kl_in_loss must be one of"),
    ({"prm__score__empty_step_reward": 2.0}, "empty_step_reward must be betw"),
    ({"rl__iterations": 0}, "iterations must be at least 1"),
    ({"mesh__data": 3}, r"sft\.batch_size=64 is not divisible by the 3"),
    ({"mesh__data": 0}, "mesh sizes must be at least 1"),
    ({"mesh__rules": "zero"}, r"config\.mesh: rules must be one of"),
    (
      {"rl__rollout_mesh": {"data": 2}},
      r"rl\.rollout_mesh .* has 2 devices, but mesh .* has 1",
    ),
    ({"rl__rollout__batches": 3}, "rollout.batches=3 does not divide the 32"),
    (
      {"mesh__data": 8, "rl__rollout__batches": 8},
      r"responses / rl\.rollout\.batches=4 is not divisible by the 8 row",
    ),
    ({"rl__prm_mesh": {"rows": 2}}, r"prm_mesh\.rows is not a field"),
    (
      {**TENSOR, "rl__rollout_mesh": {"fsdp": 4}, "rl__rollout__batches": 16},
      r"responses / rl\.rollout\.batches=2 is not divisible by the 4 row",
    ),
    (
      {**TENSOR, "rl__prm_mesh": {"fsdp": 4}, "rl__micro_batches": 16},
      r"responses / rl\.micro_batches=2 is not divisible by the 4 row shards",
    ),
    (
      {**TENSOR, "rl__reference_mesh": {"data": 4}, "rl__micro_batches": 16},
      r"responses / rl\.micro_batches=2 is not divisible by the 4 row shards",
    ),
    (
      {**TENSOR, "rl__rollout_mesh": {"fsdp": 4}, "rl__eval_prompts": 6},
      r"rl\.eval_prompts \(in rl\.rollout_mesh\)=6 is not divisible by the 4",
    ),
    (
      {"mesh__data": 4, "rl__micro_batches": 16},
      r"responses / rl\.micro_batches=2 is not divisible by the 4 row shards",
    ),
    ({"kernels__logp": "splash"}, r"kernels\.logp must be one of"),
    (
      {"kernels__attention": "cudnn", "model__compute_dtype": "float32"},
      "takes 16 bits, and compute_dtype is 'float32': set it to 'bfloat16'",
    ),
    ({"world__min_operations": 9}, "min_operations must be"),
    ({"world__slip_rate": 1.5}, "slip_rate must be between 0 and 1, got"),
    ({"model__num_heads": 3}, "num_kv_heads|num_heads"),
    ({"prm__score__separator": "drop"}, "separator must be"),
    ({"rl__optim__learning_rate": 0.0}, "learning_rate must be between"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"rl__sampler__top_p": 2.0}, "top_p must be between"),
    (
      {"rl__old_logp__source": "update", "rl__updates__epochs": 2},
      "old_logp.source='update' takes the log-probs of the update itself",
    ),
    (
      {"rl__old_logp__source": "update", "rl__credit__kl_in_reward": "k1"},
      "old_logp.source='update' has no old log-probs before the update",
    ),
    ({"rl__old_logp__source": "checked"}, "old_logp: source must be one of"),
    (
      {"rl__old_logp__source": "sampled", "rl__rollout__cache_dtype": "int8"},
      "cache_dtype='int8' sample from another policy",
    ),
    (
      {"rl__old_logp__source": "sampled", "rl__loss__importance_cap": 2.0},
      "importance_cap=2.0 weighs tokens by policy over sampler",
    ),
    ({"rl__rollout__weights": "int4"}, "rollout: weights must be one of"),
    (
      {"rl__old_logp__source": "sampled", "rl__rollout__weights": "int8"},
      "sample from another policy",
    ),
    ({"rl__loss__importance_cap": 0.0}, "importance_cap must be between"),
    ({"rl__old_logp__tolerance": 0.0}, "old_logp: tolerance must be betw"),
    ({"rl__old_logp__check_every": 0}, "check_every must be at least"),
    ({"rl__sampler__top_k": -1}, "top_k must be at least 0"),
    ({"rl__sampler__min_p": 1.0}, "min_p must be between"),
    (
      {"rl__engine__slots": 0},
      "engine: slots=0 and sync_interval=64 must be at least",
    ),
    (
      {"rl__engine__sync_interval": 0},
      "engine: slots=1 and sync_interval=0 must be at least",
    ),
    (
      {"rl__engine__slots": 8, "rl__rollout__batches": 2},
      "set rollout.batches to 1, or engine.slots to None",
    ),
    ({"rl__rollout__cache_dtype": "int4"}, "cache_dtype must be"),
    (
      {"rl__loss__kl_coef": float("nan")},
      r"rl\.loss\.kl_coef must be a finite number",
    ),
    ({"sft__steps": -1}, "steps must be at least"),
    (
      {"rl__optim__warmup_steps": 50, "rl__optim__decay_steps": 40},
      "warm-up alone has warmup_steps=50: set decay_steps to more",
    ),
    (
      {"prm__full_steps": 4_000},
      r"prm: full_optim\.decay_steps=2000 ends before the 4000 updates",
    ),
    (
      {"sft__steps": 1_001},
      r"sft: optim\.decay_steps=1000 ends before the 1001 updates",
    ),
    (
      {"rl__iterations": 9, "rl__optim__decay_steps": 8},
      r"rl: optim\.decay_steps=8 ends before the 9 updates",
    ),
  ],
)
def test_an_impossible_value_names_the_field(changes, message):
  with pytest.raises(ConfigError, match=message):
    settings_from_config(changed(**changes))


def test_a_run_may_resume_on_other_devices():
  """Without this for every mesh, such a run could not be resumed at all."""
  other = {"tensor": 2, "rules": "tensor"}
  before, after = (
    dataclasses.asdict(settings_from_config(config))
    for config in (
      changed(),
      changed(
        mesh__fsdp=2,
        rl__rollout_mesh=other,
        rl__reference_mesh=other,
        rl__prm_mesh=other,
        rl__micro_batches=2,
        rl__rollout__batches=4,
        kernels__logp="pallas",
      ),
    )
  )
  assert before["mesh"] != after["mesh"]
  for one, two in ((before, after), (after, before)):
    assert not config_differences(one, two, folder.MAY_DIFFER)
  after["rl"]["prompts"] = 4
  (line,) = config_differences(before, after, folder.MAY_DIFFER)
  assert line.startswith("rl.prompts: ")


def test_settings_read_again_from_their_record_are_the_same():
  """A workdir holds them as JSON has them, with the values that follow."""
  settings = settings_from_config(changed())
  assert settings_from_config(dataclasses.asdict(settings)) == settings


def test_a_missing_field_is_named():
  config = changed()
  del config["rl"]["sampler"]["top_p"]
  with pytest.raises(ConfigError, match=r"rl\.sampler\.top_p is miss"):
    settings_from_config(config)


@pytest.mark.parametrize(
  ("platform", "expected"),
  [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")],
)
def test_the_platform_decides_a_compute_dtype_of_auto(platform, expected):
  settings = settings_from_config(arithmetic.get_config())
  with pytest.raises(ValueError, match="compute_dtype must be one of"):
    settings.model.architecture(8)  # Nobody has decided yet.
  model = settings.for_platform(platform).model.architecture(8)
  assert model.compute_dtype == expected
  assert model.param_dtype == "float32"


def test_the_platform_decides_for_models_of_files_too():
  config = qwen2p5_7b.get_config()
  config.files.policy = "folder"
  settings = settings_from_config(config).for_platform("tpu")
  assert settings.files.model.compute_dtype == "bfloat16"
  assert settings.files.model.param_dtype == "float32"


def test_a_compute_dtype_that_the_config_names_stays():
  settings = settings_from_config(changed(model__compute_dtype="bfloat16"))
  assert settings.for_platform("cpu") == settings
  with pytest.raises(ConfigError, match="compute_dtype must be one of"):
    settings_from_config(changed(model__compute_dtype="float16"))


def test_rows_are_split_over_data_and_fsdp_and_nothing_else():
  """If one axis were forgotten, jax would raise an error of its own later."""
  mesh = MeshSettings(data=2, fsdp=3, tensor=5, sequence=7)
  mesh.check_rows("rl.prompts", 12)
  for rows in (2, 3, 10, 35):
    with pytest.raises(ValueError, match=f"rl.prompts={rows} .* 6 row shards"):
      mesh.check_rows("rl.prompts", rows)


def test_a_mesh_of_several_processes_takes_all_devices(monkeypatch):
  """A process without a device in the mesh would wait for ever."""
  assert MeshSettings(data=2).layout().mesh.size == 2
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert MeshSettings(data=8).layout().mesh.size == 8
  with pytest.raises(ValueError, match="leaves out some of the 8 devices"):
    MeshSettings(data=2).layout()


def evaluation(**changes):
  """Settings of the smoke evaluation with other values."""
  fields = with_changes(evaluate.get_config("smoke"), **changes)
  return settings_from_config(fields, EvaluationSettings)


@pytest.mark.parametrize(
  ("units", "rows"),
  [(30, 32), (500, 256), (300, 160), (256, 256), (257, 160), (12136, 256)],
)
def test_few_rows_of_a_batch_only_repeat_others(units, rows):
  """A repeated row costs as much: 226 for the 30 problems of AIME."""
  settings = evaluation(batch_rows=256, engine__slots=32)
  assert settings.rows_of_batches(units) == rows
  assert evaluation(batch_rows=256).rows_of_batches(units) == 256


def test_samples_share_the_prefill_of_their_prompt_if_they_fill_the_slots():
  settings = evaluation(batch_rows=48, engine__slots=24)  # Of 4 samples.
  assert settings.group_size(2, greedy=False) == 4
  assert settings.group_size(4, greedy=False) == 1
  assert settings.group_size(2, greedy=True) == 1
  assert evaluation().group_size(1, greedy=False) == 1
  # Greedy responses only: no samples to divide the slots by.
  greedy = evaluation(batch_rows=48, engine__slots=24, samples=0)
  assert greedy.group_size(1, greedy=False) == 1


def test_greedy_responses_ignore_temperature_and_filters():
  sampler = evaluation(sampler__temperature=0.5, sampler__top_k=3).sampler
  ids = dict(pad_id=0, stop_ids=(1,))
  greedy = sampler.config(**ids, greedy=True)
  assert (greedy.temperature, greedy.filters) == (0.0, False)
  drawn = sampler.config(**ids)
  assert (drawn.temperature, drawn.top_k) == (0.5, 3)


@pytest.mark.parametrize(
  ("samples", "k", "expected"),
  [
    (0, None, ()),
    (1, None, ()),
    (2, None, (2,)),
    (7, None, (2, 4)),
    (8, None, (2, 4, 8)),
    (8, (3,), (3,)),
    (8, (), ()),
  ],
)
def test_subset_sizes_follow_from_the_samples(samples, k, expected):
  """`samples=0` alone asks for greedy responses and no subsets."""
  assert evaluation(samples=samples, k=k).subset_sizes == expected


@pytest.mark.parametrize(
  ("platform", "changes", "expected"),
  [
    ("cpu", {}, ("float32", "float32")),
    ("tpu", {}, ("bfloat16", "bfloat16")),
    ("cpu", {"param_dtype": "bfloat16"}, ("float32", "bfloat16")),
    ("gpu", {"compute_dtype": "float32"}, ("float32", "float32")),
  ],
)
def test_evaluations_compute_as_training_does(platform, changes, expected):
  """XLA on a CPU multiplies bfloat16 more slowly than float32."""
  fields = {"compute_dtype": "auto", "param_dtype": "auto"} | changes
  made = evaluation(**fields).for_platform(platform)
  assert (made.compute_dtype, made.param_dtype) == expected
