"""The files of experiments/configs: complete, commented, and the paper's."""

import ast
import dataclasses
import importlib
import json
import re
import typing

import evaluate
import evaluate_prm
import field_reads
import pytest
from checkout import EXPERIMENTS, ROOT
from configs import base, paper

from pure_jax import settings
from pure_jax.runs import folder
from pure_jax.runs.settings import (
  checks,
  conversion,
  evaluation,
  run,
)

# Parts of configs: they run nothing by themselves.
PARTS = ("alarms", "base", "method", "paper")
RUNS = [f"{preset}_{mode}" for preset in paper.PRESETS for mode in paper.MODES]
RL = (*paper.MODES, *RUNS, "smoke", *(f"smoke_{run}" for run in RUNS))
VARIANTS = {
  "arithmetic": ("full", "smoke"),
  "evaluate": ("full", "paper", "one_loop", "smoke"),
  "evaluate_prm": ("full", "smoke"),
  "files": (),
  "gsm8k_prm": ("full", "smoke"),
  "pure_prm_7b": ("full", "smoke"),
  "qwen2p5_0p5b_gsm8k": ("full", "smoke"),
  "qwen2p5_0p5b_gsm8k_prm": ("full", "smoke"),
  "qwen2p5_7b": RL,
  "qwen2p5_math_1p5b": RL,
  "qwen2p5_math_7b": RL,
}
KINDS = {
  "evaluate": evaluation.EvaluationSettings,
  "evaluate_prm": evaluation.EvaluatePRMSettings,
}
PAIRS = [(name, v) for name, variants in VARIANTS.items() for v in variants]


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
    data |= {"fields": {"problem": "q", "steps": "s"}, "neutral_labels": "good"}
    data |= dict.fromkeys(("held_out_one_in", "problems"))
    data |= dict.fromkeys(("problems_format", "problems_fields"))
    config.data = (data,)
  return config, conversion.settings_from_config(config, kind)


def test_every_config_is_tested():
  names = {path.stem for path in (EXPERIMENTS / "configs").glob("*.py")}
  assert names == {*VARIANTS, *PARTS}


@pytest.mark.parametrize(("name", "variant"), [*PAIRS, ("files", None)])
def test_every_config_makes_settings(name, variant):
  config, settings = made(name, *[variant] * (variant is not None))
  # The run has every value that the config gives, and no other field but
  # one that follows from the batch, and one of RL in evaluations.
  expected = json.loads(json.dumps(config.to_dict()))
  values = json.loads(json.dumps(dataclasses.asdict(settings)))
  if "rl" in values:
    credit = values["rl"]["credit"]
    assert credit.pop("group_size") == settings.rl.samples_per_prompt
  else:
    assert values["score"].pop("empty_step_reward") is None
  assert values == expected


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "files"])
def test_an_unknown_variant_raises_and_lists_the_known_ones(name):
  module = importlib.import_module(f"configs.{name}")
  with pytest.raises(
    checks.ConfigError, match=r"Variants are .* and 'smoke', not 'x'"
  ):
    module.get_config("x")


@pytest.mark.parametrize(
  "variant",
  [
    *("", "reference", "paper", "reference_verl", "verl_prm", "smoke_paper"),
    *("smoke_smoke", "paper_prm_vr_vr", "PRM", "prm_one_loop_smoke"),
    *("smoke_", "_one_loop", "paper_smoke_prm", "one_loop"),
  ],
)
def test_no_other_text_is_a_variant_of_the_authors_runs(variant):
  with pytest.raises(checks.ConfigError, match=re.escape(f"not {variant!r}.")):
    paper.parse(variant)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in KINDS])
def test_every_docstring_gives_the_command_and_a_result(name):
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
  """Section 4 and appendix of arXiv 2504.15275, number by number.

  docs/hyperparameters.md has all values, and its test those of the code.
  """
  rl = made(name, variant)[1].rl
  assert (rl.iterations, rl.prompts, rl.samples_per_prompt) == (
    *(iterations, 64, 8),
  )
  assert (rl.sampler.max_new_tokens, rl.sampler.temperature) == (8192, 1.0)
  assert (rl.sampler.top_p, rl.sampler.top_k) == (1.0, 0)
  assert rl.optim.learning_rate == rate
  assert (rl.optim.warmup_steps, rl.optim.decay_steps) == (0, 0)
  assert (rl.loss.clip_low, rl.loss.clip_high) == (0.2, 0.2)
  assert rl.credit.kl_coef == 1e-3
  # Credit and loss are the preset's, but for what a mode leaves out.
  credit, loss = settings.paper()
  assert rl.credit == dataclasses.replace(
    credit,
    process_coef=process,
    verifiable_coef=verifiable,
  )
  assert rl.loss == loss
  assert (credit.form, credit.temperature) == ("softmin", 0.1)


def test_rl_runs_take_both_rewards_by_default():
  for name, variants in VARIANTS.items():
    if variants == RL:
      assert made(name) == made(name, "prm_vr") == made(name, "paper_prm_vr")
      # The data set of the hub has all answers.
      assert made(name)[1].rl.answer_fraction == 0.1
      tied = {"qwen2p5_math_1p5b": "tied"}.get(name, "untied")
      smoke = made(name, "smoke")
      assert smoke == made(name, "smoke_paper_prm_vr")
      assert smoke[1].files.random_model == tied


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v == RL])
@pytest.mark.parametrize(("process", "verifiable"), paper.MODES.values())
@pytest.mark.parametrize(
  ("preset", "make"),
  [
    ("paper", settings.paper),
    ("reference_verl", settings.reference_verl),
    ("reference_main", lambda: settings.reference_main(group_size=4)),
  ],
)
def test_credit_and_loss_are_those_of_the_presets(
  name, process, verifiable, preset, make
):
  """No config could select a reference before."""
  (mode,) = (m for m, w in paper.MODES.items() if w == (process, verifiable))
  rl = made(name, f"{preset}_{mode}")[1].rl
  credit, loss = make()
  assert rl.credit == dataclasses.replace(
    credit, process_coef=process, verifiable_coef=verifiable
  )
  assert rl.loss == loss


@pytest.mark.parametrize(
  ("mode", "named"), [("prm", {"prm"}), ("vr", set()), ("prm_vr", {"prm"})]
)
@pytest.mark.parametrize("preset", paper.PRESETS)
def test_a_smoke_run_reads_the_files_that_the_real_run_reads(
  preset, mode, named
):
  """A PRM to load, or none; training one would be another path."""
  for name, variants in VARIANTS.items():
    if variants == RL:
      run = f"{preset}_{mode}"
      real, smoke = made(name, run)[1], made(name, f"smoke_{run}")[1]
      assert {*smoke.files.random_files} == {"train", "held_out"} | named
      assert smoke.rl.reward_mode == real.rl.reward_mode
      assert smoke.rl.credit == dataclasses.replace(
        real.rl.credit, group_size=4
      )
      assert smoke.rl.loss == real.rl.loss
      assert smoke.rl.updates == real.rl.updates


def test_the_papers_prm_reads_the_prompts_it_was_trained_on():
  """Its trainer put nothing between the problem and the first step."""
  runs = [name for name, variants in VARIANTS.items() if variants == RL]
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
    assert (optim.warmup_steps, optim.decay) == (0, "linear")
  assert (head.decay_steps, full.decay_steps) == (
    *(prm.head_steps, prm.full_steps),
  )
  assert prm.score.separator == "each"
  assert made("pure_prm_7b")[1].files.neutral_labels == "good"
  assert made("pure_prm_7b")[1].files.model.compute_dtype == "auto"


@pytest.mark.parametrize(
  "name", [*PARTS[:2], "files", "evaluate", "evaluate_prm"]
)
def test_every_field_of_a_list_has_a_comment(name):
  """A field nobody explains is a field nobody dares to change."""
  text = (EXPERIMENTS / "configs" / f"{name}.py").read_text()
  lines = text.splitlines()
  fields = [
    keyword
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict"
    for keyword in node.keywords
  ]
  assert fields
  for field in fields:
    line, before = lines[field.lineno - 1], lines[field.lineno - 2]
    if not is_group(field.value):
      assert "  # " in line or before.strip().startswith("# "), field.arg


def is_group(value):
  """Whether a field's value is a group, whose fields have their comments."""
  if isinstance(value, ast.Call):
    return ast.unparse(value.func) != "placeholder"
  return isinstance(value, ast.DictComp)


def field_names(kind, prefix=""):
  """Dotted names of all fields and groups of a dataclass of settings."""
  names = set()
  for name, hint in typing.get_type_hints(kind).items():
    names.add(prefix + name)
    is_dict = typing.get_origin(hint) is dict
    for one in typing.get_args(hint) or (hint,):
      if dataclasses.is_dataclass(one):
        group = f"{prefix}{name}." + ("*." if is_dict else "")
        names |= field_names(one, group)
  return names


FIELDS = {kind: field_names(kind) for kind in (run.Settings, *KINDS.values())}


def test_names_of_fields_reach_the_leaves_of_every_group():
  names = FIELDS[run.Settings]
  assert {"seed", "rl", "rl.credit.form", "rl.rollout_mesh.data"} <= names
  assert "rl.form" not in names
  assert "benchmarks.*.file" in FIELDS[evaluation.EvaluationSettings]


@pytest.mark.parametrize(
  ("kind", "names"),
  [
    (run.Settings, folder.MAY_DIFFER),
    # And the folder that a run starts from, and fingerprints of files.
    (run.Settings, folder.MAY_DIFFER_FROM_START),
    (evaluation.EvaluationSettings, evaluate.MAY_DIFFER),
    (evaluation.EvaluatePRMSettings, evaluate_prm.MAY_DIFFER),
  ],
)
def test_what_may_differ_on_resume_names_fields(kind, names):
  """A renamed field would be compared again, without a word."""
  added = {"start", "contents.benchmarks", "commits"}  # They are no fields.
  assert names and set(names) - added <= FIELDS[kind]


def test_every_flag_that_a_text_names_is_a_field():
  """In README, docs, docstrings and messages."""
  known = set().union(*FIELDS.values())
  files = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
  for top in ("docs", "pure_jax", "experiments", "kernels", "notebooks"):
    for ending in ("md", "py", "json", "log", "ipynb"):
      files += (ROOT / top).rglob(f"*.{ending}")
  flag = re.compile(r"--config\.([a-z][\w.]*)|[`\"](rl\.[\w.]+)[=`]")
  count = 0
  for path in files:
    for match in flag.finditer(path.read_text()):
      name = (match[1] or match[2]).rstrip(".")
      name = re.sub(r"\bbenchmarks\.\w+", "benchmarks.*", name)
      assert name in known or name in ("rl.", "rl"), (path.name, match[0])
      count += 1
  assert count > 100


def test_every_field_is_read_and_every_read_has_a_field():
  """A config field nobody reads is a promise nobody keeps."""
  folders = (ROOT / "pure_jax", ROOT / "experiments", ROOT / "kernels")
  program = field_reads.Program(field_reads.sources(*folders))
  kinds = [kind.__name__ for kind in (run.Settings, *KINDS.values())]
  assert program.unread(kinds) == set()
  assert program.unknown(kinds) == set()


@pytest.mark.parametrize(
  ("use", "is_read"),
  [
    ("", False),
    ("def f(rl: RLSettings): rl.old_logp.planted = 1", False),
    # Fields of that name of another class, and of nobody knows what.
    ("class Other:\n  planted: int\ndef f(x: Other): x.planted", False),
    ("def f(x): return x.planted", False),
    ("def f(rl: RLSettings): return rl.planted", False),
    ("def f(rl: RLSettings): return rl.old_logp.planted", True),
    ("def f(x: Settings):\n  a, b = 0, x.rl\n  b.old_logp.planted", True),
    ("def f(x: 'Settings | None'): return [y.planted for y in [g(x)]]", True),
  ],
)
def test_a_planted_field_is_noticed_unless_it_is_read(use, is_read):
  """Its own validation does not count either."""
  text = "\n".join(field_reads.sources(ROOT / "pure_jax/runs/settings"))
  for old, new in (
    ("  check_every: int\n", "  check_every: int\n  planted: int\n"),
    ('at_least(1, self, "check_every")\n', "assert self.planted > 0\n"),
  ):
    assert text.count(old) == 1
    text = text.replace(old, new)
  text += "\ndef g(x) -> OldLogpSettings: ...\n"
  program = field_reads.Program([text, use])
  planted = ("OldLogpSettings", "planted")
  assert (planted not in program.unread(["Settings"])) == is_read
  wrong = {("RLSettings", "planted")} if "rl.planted" in use else set()
  assert program.unknown(["Settings"]) == wrong


@pytest.mark.parametrize(
  ("variant", "rows"),
  [("full", 32), ("paper", 32), ("one_loop", None), ("smoke", None)],
)
def test_evaluations_use_continuous_batching_except_in_one_loop(variant, rows):
  assert made("evaluate", variant)[0].engine.slots == rows


def test_the_base_config_is_complete():
  conversion.settings_from_config(base.get_config())
