"""docs/hyperparameters.md: our columns are what the configs resolve to."""

import ast
import dataclasses
import importlib
import re

import pytest
from checkout import ROOT
from configs import paper

from pure_jax.runs.settings import evaluation, run
from pure_jax.runs.settings.conversion import settings_from_config

PAGE = ROOT / "docs" / "hyperparameters.md"
POLICIES = ("qwen2p5_7b", "qwen2p5_math_7b", "qwen2p5_math_1p5b")
# Values that no source gives: a dash.
NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table: the field, what its label adds, and its cells."""

  field: str
  addition: str
  cells: dict[str, str]


def rows_of(section):
  """The rows of all tables below a heading of the page."""
  text = PAGE.read_text(encoding="utf-8")
  text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
  rows, header = [], []
  for line in text.splitlines():
    if not line.startswith("|"):
      header = []
      continue
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    if not header:
      header = cells
    elif set(cells[0]) != {"-"}:
      label = re.fullmatch(r"`([\w.]+)`(?: \((\w+)\))?", cells[0])
      cells = dict(zip(header, cells, strict=True))
      rows.append(Row(label[1], label[2] or "", cells))
  return rows


RL = rows_of("Reinforcement learning")
PRM = rows_of("PRM")
EVALUATION = rows_of("Evaluation")


def read(text):
  """A cell's value: a Python literal, names in a tuple, or one name."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return tuple(text.split(", ")) if ", " in text else text


def value_of(settings, field):
  """A field of settings by its dotted name."""
  for part in field.split("."):
    settings = getattr(settings, part)
  return settings


def settings_of(name, variant):
  """The settings of a training run."""
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.files.policy = "folder"
  return settings_from_config(config)


def applies_to(row):
  """The (policy, mode) pairs for which a row of RL holds."""
  policies = [row.addition] if row.addition in POLICIES else POLICIES
  modes = [row.addition] if row.addition in paper.MODES else paper.MODES
  return [(policy, mode) for policy in policies for mode in modes]


@pytest.mark.parametrize("preset", paper.PRESETS)
def test_every_value_of_rl_is_that_of_the_configs(preset):
  made = {
    (policy, mode): settings_of(policy, f"{preset}_{mode}")
    for policy in POLICIES
    for mode in paper.MODES
  }
  for row in RL:
    for pair in applies_to(row):
      actual = value_of(made[pair], row.field)
      assert actual == read(row.cells[f"`{preset}`"]), (row.field, pair)


def test_every_value_of_the_prm_is_that_of_its_config():
  settings = settings_of("pure_prm_7b", "full")
  for row in PRM:
    expected = read(row.cells["`pure_prm_7b`"])
    assert value_of(settings, row.field) == expected, row.field


def test_every_value_of_the_evaluation_is_that_of_its_config():
  config = importlib.import_module("configs.evaluate").get_config("paper")
  config.policy = "folder"
  config.benchmarks.math500.file = "file"
  settings = settings_from_config(config, evaluation.EvaluationSettings)
  for row in EVALUATION:
    expected = read(row.cells["`evaluate.py:paper`"])
    assert value_of(settings, row.field) == expected, row.field


def test_the_page_lists_every_hyperparameter():
  """Of credit, loss, samples and updates, and of the stages of the PRM."""
  settings, listed = settings_of("qwen2p5_7b", "prm_vr"), set()
  for group in ("credit", "loss", "sampler", "updates", "optim"):
    fields = dataclasses.fields(getattr(settings.rl, group))
    listed |= {f"rl.{group}.{field.name}" for field in fields}
  # What follows from the batch, and the shape of a decay that no run has.
  listed -= {"rl.credit.group_size", "rl.optim.decay"}
  assert listed <= {row.field for row in RL}
  optimizer = dataclasses.fields(settings.prm.head_optim)
  for stage in ("head", "full"):
    names = {f"prm.{stage}_optim.{field.name}" for field in optimizer}
    assert names <= {row.field for row in PRM}


@pytest.mark.parametrize(
  ("rows", "pairs"),
  [
    (
      RL,
      {
        "`paper`": "paper",
        "`reference_verl`": "verl script",
        "`reference_main`": "main script",
      },
    ),
    (PRM, {"`pure_prm_7b`": "script"}),
    (EVALUATION, {"`evaluate.py:paper`": "script"}),
  ],
)
def test_we_have_what_a_source_states_or_say_why_not(rows, pairs):
  for row in rows:
    for ours, source in pairs.items():
      stated = row.cells[source]
      if stated != NOTHING and read(stated) != read(row.cells[ours]):
        # A word such as "off" may stand for a value, which is 0 or None.
        is_off = stated == "off" and read(row.cells[ours]) in (0, None)
        assert is_off or row.cells["note"], (row.field, source)
  text = PAGE.read_text(encoding="utf-8")
  for row in rows:
    note = row.cells.get("note")
    assert not note or f"\n{note}. " in text, row.field


def test_where_the_paper_is_silent_we_have_the_verl_script_or_say_why_not():
  """The rule of the preset `paper`; an exception has a note."""
  silent = [row for row in RL if row.cells["paper"] == NOTHING]
  assert len(silent) > 20
  for row in silent:
    stated, ours = row.cells["verl script"], row.cells["`paper`"]
    if stated in (NOTHING, "off") or read(stated) == read(ours):
      continue
    assert row.cells["note"], row.field


def test_the_page_names_no_field_twice():
  for rows in (RL, PRM, EVALUATION):
    labels = [(row.field, row.addition) for row in rows]
    assert len({*labels}) == len(labels)
  assert isinstance(settings_of("pure_prm_7b", "full"), run.Settings)
