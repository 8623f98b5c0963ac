"""A config that cannot be run is refused, in a sentence, before anything."""

import ast
import dataclasses
import importlib
import json
import re

import pytest
from checkout import EXPERIMENTS
from configs import arithmetic, base

from pure_jax import settings
from pure_jax.host.checkpoints.record import config_differences
from pure_jax.runs import folder
from pure_jax.runs.settings import conversion, evaluation, prm_evaluation, run

# Parts of configs: they run nothing by themselves.
PARTS = ("base", "paper")
RL = ("prm_vr", "prm", "vr", "smoke_prm_vr", "smoke_prm", "smoke_vr", "smoke")
VARIANTS = {
  "arithmetic": ("full", "smoke"),
  "evaluate": ("full", "smoke"),
  "evaluate_prm": ("full", "smoke"),
  "files": (),
  "gsm8k_prm": ("full", "smoke"),
  "pure_prm_7b": ("full", "smoke"),
  "qwen2p5_7b": RL,
  "qwen2p5_math_1p5b": RL,
  "qwen2p5_math_7b": RL,
}
KINDS = {
  "evaluate": evaluation.EvaluationSettings,
  "evaluate_prm": prm_evaluation.EvaluatePRMSettings,
}
# Four devices that split no rows.
TENSOR = {"mesh__tensor": 4, "mesh__rules": "tensor"}
PAIRS = [(name, v) for name, found in VARIANTS.items() for v in found]


def made(name, *variant):
  """A config with what the user must name, and its settings."""
  config = importlib.import_module(f"configs.{name}").get_config(*variant)
  kind = KINDS.get(name, run.Settings)
  if kind is run.Settings:
    if config.files is not None and config.files.random_model is None:
      config.files.policy = "folder"
  elif name == "evaluate" and not config.random_model:
    config.policy = "folder"
    for benchmark in config.benchmarks.values():
      benchmark.file = "b.jsonl"
  elif name == "evaluate_prm" and config.random_model is None:
    config.prm = "folder"
    data = {"name": "a", "file": "b.jsonl", "format": "mapped_steps"}
    data["fields"] = {"problem": "q", "steps": "s"}
    config.data = (data,)
  return config, conversion.settings_from_config(config, kind)


def changed(**changes):
  """The smoke config with dotted fields replaced, unlocked."""
  config = arithmetic.get_config("smoke").to_dict()
  for name, value in changes.items():
    *groups, field = name.split("__")
    place = config
    for group in groups:
      place = place[group]
    place[field] = value
  return config


def test_every_config_is_tested():
  found = {path.stem for path in (EXPERIMENTS / "configs").glob("*.py")}
  assert found == {*VARIANTS, *PARTS}


def as_json(values):
  """Tuples of dicts are tuples of dataclasses on the other side."""
  return json.loads(json.dumps(values))


@pytest.mark.parametrize(("name", "variant"), [*PAIRS, ("files", None)])
def test_every_config_makes_settings(name, variant):
  config, settings = made(name, *[variant] * (variant is not None))
  # What was written is what is run: no field is lost or made up.
  expected = as_json(config.to_dict())
  assert as_json(dataclasses.asdict(settings)) == expected


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "files"])
def test_an_unknown_variant_names_those_there_are(name):
  module = importlib.import_module(f"configs.{name}")
  with pytest.raises(ValueError, match=r"Variants are .* and 'smoke', not 'x'"):
    module.get_config("x")


@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in KINDS])
def test_every_docstring_says_how_it_is_run(name):
  text = (EXPERIMENTS / "configs" / f"{name}.py").read_text()
  doc = ast.get_docstring(ast.parse(text))
  assert f"--config=experiments/configs/{name}.py" in doc
  assert ("ot yet run" in doc) != ("Measured on" in doc)


@pytest.mark.parametrize(
  ("name", "iterations"),
  [
    ("qwen2p5_7b", 1000),
    ("qwen2p5_math_7b", 500),
    ("qwen2p5_math_1p5b", 500),
  ],
)
@pytest.mark.parametrize(
  ("variant", "rate", "process", "verifiable"),
  [("prm", 5e-7, 1.0, 0.0), ("vr", 1e-6, 0.0, 1.0), ("prm_vr", 1e-6, 1.0, 1.0)],
)
def test_rl_runs_are_those_of_the_paper(
  name, iterations, variant, rate, process, verifiable
):
  """Section 4 and appendix of arXiv 2504.15275, number by number."""
  rl = made(name, variant)[1].rl
  assert (rl.iterations, rl.prompts, rl.samples_per_prompt) == (
    *(iterations, 64, 8),
  )
  assert (rl.max_new_tokens, rl.temperature) == (8192, 1.0)
  assert (rl.top_p, rl.top_k) == (1.0, 0)
  assert rl.optim.learning_rate == rate
  assert (rl.optim.warmup_steps, rl.optim.decay_steps) == (0, 0)
  assert (rl.clip_low, rl.clip_high, rl.kl_coef) == (0.2, 0.2, 1e-3)
  # Credit and loss are the preset's, but for what a mode leaves out.
  credit, loss = settings.paper()
  assert rl.credit_config() == dataclasses.replace(
    credit,
    baseline_length=8192,
    process_coef=process,
    verifiable_coef=verifiable,
  )
  assert rl.loss_config() == loss
  assert (credit.form, credit.temperature) == ("softmin", 0.1)


def test_the_default_of_rl_runs_is_prm_with_verdicts():
  for name, variants in VARIANTS.items():
    if variants == RL:
      assert made(name) == made(name, "prm_vr")
      # The 879 prompts with an answer, not a tenth of all that are drawn.
      assert made(name)[1].rl.answer_fraction is None
      tied = {"qwen2p5_math_1p5b": "tied"}.get(name, "untied")
      smoke = made(name, "smoke")
      assert smoke == made(name, "smoke_prm_vr")
      assert smoke[1].files.random_model == tied


@pytest.mark.parametrize(
  ("variant", "named"), [("prm", {"prm"}), ("vr", set()), ("prm_vr", {"prm"})]
)
def test_a_smoke_run_is_given_what_the_real_one_is_given(variant, named):
  """A PRM to load, or none; training one would be another path."""
  for name, variants in VARIANTS.items():
    if variants == RL:
      real, smoke = made(name, variant)[1], made(name, f"smoke_{variant}")[1]
      assert {*smoke.files.random_files} == {"train", "held_out"} | named
      assert smoke.rl.reward_mode == real.rl.reward_mode
      assert smoke.rl.credit_config() == dataclasses.replace(
        real.rl.credit_config(),
        group_size=4,
        baseline_length=smoke.rl.max_new_tokens,
      )


def test_the_papers_prm_is_asked_as_it_was_trained():
  """Its trainer put nothing between the problem and the first step."""
  runs = [name for name, found in VARIANTS.items() if found == RL]
  for name in (*runs, "pure_prm_7b"):
    assert made(name)[1].files.prm_prompt_format == "raw", name
  assert made("evaluate")[1].prm_prompt_format == "raw"
  assert made("evaluate_prm")[1].prompt_format == "raw"
  # What its committed results were measured with.
  assert made("gsm8k_prm")[1].files.prm_prompt_format == "plain"


def test_the_prm_run_is_that_of_the_paper():
  prm = made("pure_prm_7b")[1].prm
  assert prm.batch_size == 128
  # 3 epochs and 1 over 369k rows, to within a step.
  assert abs(prm.head_steps * 128 - 3 * 369_000) < 128
  assert abs(prm.full_steps * 128 - 369_000) < 128
  head, full = prm.head_optim, prm.full_optim
  assert (head.learning_rate, full.learning_rate) == (1e-4, 1e-6)
  for optim in (head, full):
    assert (optim.weight_decay, optim.beta2) == (0.1, 0.95)
    assert (optim.warmup_steps, optim.decay_steps) == (0, 0)
  assert made("pure_prm_7b")[1].files.compute_dtype == "auto"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rl__kl_coeff": 0.1}, r"config\.rl\.kl_coeff .*mean 'kl_coef'"),
    ({"rl__prompts": "many"}, r"config\.rl\.prompts must be int"),
    ({"rl__prompts": True}, r"config\.rl\.prompts must be int"),
    ({"rl__whiten": 1}, r"config\.rl\.whiten must be bool"),
    ({"rl": 3}, r"config\.rl must be a group of fields"),
    ({"rl__reward_mode": "both"}, "reward_mode must be one of"),
    ({"rl__credit": "max"}, "rl: credit must be one of"),
    ({"rl__credit_temperature": 0.0}, "credit_temperature must be > 0"),
    ({"rl__discount": 0.9}, "discount=0.9 needs credit='sum'"),
    ({"rl__loss_aggregate": "sum"}, "loss_aggregate must be one of"),
    ({"model__width": -1}, r"config\.model: width must be"),
    ({"rl__temperature": -1.0}, "temperature must be > 0"),
    ({"rl__samples_per_prompt": 1}, "no other sample to compare with"),
    ({"rl__micro_batches": 5}, "does not divide the 32 responses"),
    ({"rl__micro_batches": 0}, "does not divide the 32 responses"),
    ({"rl__length_buckets": 0}, "length_buckets must be at least 1, got 0"),
    ({"rl__packed_tokens": 64}, "packed_tokens=64 needs parts of a batch"),
    (
      {"rl__packed_tokens": 0, "rl__micro_batches": 2},
      "packed_tokens must be at least 1, got 0",
    ),
    ({"rl__answer_fraction": 0.0}, "answer_fraction must be in"),
    ({"rl__kl_placement": "both"}, "kl_placement must be"),
    ({"rl__empty_step_reward": 2.0}, "empty_step_reward must be in"),
    ({"rl__iterations": 0}, "iterations must be at least 1"),
    ({"mesh__data": 3}, r"sft\.batch_size=64 is not divisible by the 3"),
    ({"mesh__data": 0}, "mesh sizes must be at least 1"),
    ({"mesh__rules": "zero"}, r"config\.mesh: rules must be one of"),
    (
      {"rl__rollout_mesh": {"data": 2}},
      r"rl\.rollout_mesh .* has 2 devices, but mesh .* has 1",
    ),
    ({"rl__rollout_parts": 3}, "rollout_parts=3 does not divide the 32"),
    (
      {"mesh__data": 8, "rl__rollout_parts": 8},
      r"rows / rl\.rollout_parts=4 is not divisible by the 8 row shards",
    ),
    ({"rl__prm_mesh": {"rows": 2}}, r"prm_mesh\.rows is not a field"),
    (
      {**TENSOR, "rl__rollout_mesh": {"fsdp": 4}, "rl__rollout_parts": 16},
      r"rows / rl\.rollout_parts=2 is not divisible by the 4 row shards",
    ),
    (
      {**TENSOR, "rl__prm_mesh": {"fsdp": 4}, "rl__micro_batches": 16},
      r"rows / rl\.micro_batches=2 is not divisible by the 4 row shards",
    ),
    (
      {**TENSOR, "rl__reference_mesh": {"data": 4}, "rl__micro_batches": 16},
      r"rows / rl\.micro_batches=2 is not divisible by the 4 row shards",
    ),
    (
      {**TENSOR, "rl__rollout_mesh": {"fsdp": 4}, "rl__eval_prompts": 6},
      r"rl\.eval_prompts \(in rl\.rollout_mesh\)=6 is not divisible by the 4",
    ),
    (
      {"mesh__data": 4, "rl__micro_batches": 16},
      r"rows / rl\.micro_batches=2 is not divisible by the 4 row shards",
    ),
    ({"kernels__logp": "splash"}, r"kernels\.logp must be one of"),
    (
      {"kernels__attention": "cudnn", "model__compute_dtype": "float32"},
      "takes 16 bits, and compute_dtype is 'float32': set it to 'bfloat16'",
    ),
    ({"world__min_operations": 9}, "min_operations must be"),
    ({"world__slip_rate": 1.5}, r"slip_rate must be in \[0, 1\]"),
    ({"model__num_heads": 3}, "num_kv_heads|num_heads"),
    ({"prm__separator": "drop"}, "separator must be"),
    ({"rl__optim__learning_rate": 0.0}, "learning_rate must be positive"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"rl__top_p": 2.0}, "top_p must be in"),
    ({"rl__old_logp": "checked"}, "old_logp must be one of"),
    (
      {"rl__old_logp": "sampled", "rl__cache_dtype": "int8"},
      "cache_dtype='int8' sample from another policy",
    ),
    (
      {"rl__old_logp": "sampled", "rl__importance_cap": 2.0},
      "importance_cap=2.0 weighs tokens by policy over sampler",
    ),
    ({"rl__rollout_weights": "int4"}, "rollout_weights must be one of"),
    (
      {"rl__old_logp": "sampled", "rl__rollout_weights": "int8"},
      "sample from another policy",
    ),
    ({"rl__importance_cap": 0.0}, "importance_cap must be > 0"),
    ({"rl__old_logp_tolerance": 0.0}, "old_logp_tolerance must be > 0"),
    ({"rl__old_logp_check_every": 0}, "old_logp_check_every must be at least"),
    ({"rl__top_k": -1}, "top_k must be at least 0"),
    ({"rl__min_p": 1.0}, "min_p must be in"),
    ({"rl__rollout_rows": 0}, "rollout_rows must be at least 1"),
    ({"rl__rollout_chunk": 0}, "rollout_chunk must be at least 1"),
    (
      {"rl__rollout_rows": 8, "rl__rollout_parts": 2},
      "rollout_parts=2: set rollout_parts to 1, or leave rollout_rows unset",
    ),
    ({"rl__cache_dtype": "int4"}, "cache_dtype must be"),
    ({"rl__kl_coef": float("nan")}, r"rl\.kl_coef must be a finite number"),
    ({"sft__steps": -1}, "steps must be at least"),
  ],
)
def test_an_impossible_value_names_the_field(changes, message):
  with pytest.raises(run.ConfigError, match=message):
    conversion.settings_from_config(changed(**changes))


def test_a_run_may_go_on_on_other_devices():
  """Of every layout: a run with one for rollouts would end where it began."""
  other = {"tensor": 2, "rules": "tensor"}
  before, after = (
    dataclasses.asdict(conversion.settings_from_config(config))
    for config in (
      changed(),
      changed(
        mesh__fsdp=2,
        rl__rollout_mesh=other,
        rl__reference_mesh=other,
        rl__prm_mesh=other,
        rl__micro_batches=2,
        rl__rollout_parts=4,
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


def test_a_missing_field_is_named():
  config = changed()
  del config["rl"]["clip_low"]
  with pytest.raises(run.ConfigError, match=r"rl\.clip_low is miss"):
    conversion.settings_from_config(config)


@pytest.mark.parametrize("name", ["base", "files", "evaluate_prm"])
def test_every_field_of_a_list_has_a_comment_or_says_it_all(name):
  """A field nobody explains is a field nobody dares to change."""
  lines = (EXPERIMENTS / "configs" / f"{name}.py").read_text().splitlines()
  obvious = {
    *("width", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    *("mlp_width", "rope_theta", "attention_bias", "tied_embeddings"),
    *("compute_dtype", "learning_rate", "weight_decay", "beta1", "beta2"),
    *("max_grad_norm", "warmup_steps", "optim", "head_optim", "full_optim"),
    *("steps", "log_every", "iterations", "samples_per_prompt", "top_p"),
    *("max_new_tokens", "temperature", "clip_low", "clip_high", "discount"),
    *("process_coef", "verifiable_coef", "kl_coef", "entropy_coef"),
    *("checkpoint_every", "loss_aggregate", "min_operations", "baseline"),
    *("max_operations", "head_steps", "full_steps"),
  }
  for number, line in enumerate(lines):
    field = re.match(r'\s+(\w+)=[\w"(-]', line)
    if field and "def " not in line and line.startswith("      "):
      explained = "#" in line or "#" in lines[number - 1]
      assert explained or field[1] in obvious, line


def test_every_field_is_read_somewhere():
  """A config field nobody reads is a promise nobody keeps."""
  sources = [
    *EXPERIMENTS.glob("*.py"),
    *(EXPERIMENTS.parent / "pure_jax").rglob("*.py"),
  ]
  read = {
    node.attr
    for path in sources
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
  }

  def names(kind):
    for field in dataclasses.fields(kind):
      yield field.name

  for kind in (
    prm_evaluation.DataSettings,
    prm_evaluation.EvaluatePRMSettings,
    run.FilesSettings,
    run.Settings,
    run.RLSettings,
    run.PRMSettings,
    run.SFTSettings,
    run.MeshSettings,
    run.Kernels,
  ):
    assert set(names(kind)) <= read


def test_base_config_is_complete_by_itself():
  conversion.settings_from_config(base.get_config())
