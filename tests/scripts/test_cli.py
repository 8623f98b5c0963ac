"""Flags of configs: None for every field that may be unset, and errors."""

import dataclasses
import sys
import typing

import cli
import pytest
from absl import flags
from absl.testing import flagsaver
from script_flags import CONFIGS, parsed

from pure_jax.runs.settings import evaluation, run
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config

KINDS = {
  "arithmetic.py": run.Settings,
  "gsm8k_prm.py": run.Settings,
  "qwen2p5_7b.py": run.Settings,
  "evaluate.py": evaluation.EvaluationSettings,
  "evaluate_prm.py": evaluation.EvaluatePRMSettings,
}


def optional_fields(kind, config, prefix=""):
  """Dotted names of the fields that may be None, in the groups of a config."""
  for name, hint in typing.get_type_hints(kind).items():
    if name not in config:
      continue  # A field with a default that this config does not list.
    kinds = typing.get_args(hint) or (hint,)
    if type(None) in kinds:
      yield prefix + name
    is_dict = typing.get_origin(hint) is dict
    groups = {f".{key}" for key in config[name]} if is_dict else {""}
    for one in filter(dataclasses.is_dataclass, kinds):
      for group in groups:
        path = f"{name}{group}"
        value = config[name][group[1:]] if group else config[name]
        if hasattr(value, "items"):
          yield from optional_fields(one, value, f"{prefix}{path}.")


def value_of(config, name):
  """A field by its dotted name."""
  for part in name.split("."):
    config = config[part]
  return config


def settings_of(name, *options):
  """The field values of a config after the flags of a command line."""
  with parsed(name, "unused", *options):
    return flags.FLAGS.config


@pytest.mark.parametrize("name", KINDS)
def test_none_unsets_every_field_that_may_be_unset(name):
  """Numbers, texts and groups, whether or not the config sets them."""
  names = list(optional_fields(KINDS[name], settings_of(name)))
  assert len(names) > 5
  config = settings_of(
    name,
    *(
      f"--config.{field}=None"
      for field in names
      if not field.startswith("files.")
    ),
  )
  for field in names:
    if not field.startswith("files."):
      assert value_of(config, field) is None, field
  inner = [field for field in names if field.startswith("files.")]
  config = settings_of(name, *(f"--config.{field}=None" for field in inner))
  for field in inner:
    assert value_of(config, field) is None, field


@pytest.mark.parametrize(
  ("name", "field", "value", "expected"),
  [
    ("arithmetic.py", "rl.answer_fraction", "0.25", 0.25),
    # Fields that the config sets to None, which leaves them no type.
    ("qwen2p5_7b.py", "rl.answer_fraction", "0.25", 0.25),
    ("qwen2p5_7b.py", "rl.loss.kl_in_loss", "k2", "k2"),
    ("qwen2p5_7b.py", "files.model.logits_chunk", "256", 256),
    ("arithmetic.py", "rl.prm_mesh", "{'data': 2}", {"data": 2}),
    ("evaluate.py", "k", "(2, 4)", (2, 4)),
    ("evaluate.py", "k", "[2]", (2,)),
    ("evaluate.py", "k", "8", (8,)),
    ("evaluate.py", "grader.extractors", "boxed", ("boxed",)),
    ("arithmetic.py", "rl.lora.targets", "('query', 'up')", ("query", "up")),
    ("evaluate.py", "benchmarks.math500.file", "a b", "a b"),
    ("evaluate.py", "benchmarks.math500.fields", "{'a': 'b'}", {"a": "b"}),
  ],
)
def test_a_field_that_may_be_unset_takes_a_value(name, field, value, expected):
  config = settings_of(name, f"--config.{field}={value}")
  actual = value_of(config, field)
  assert (actual if expected.__class__ is not dict else actual.to_dict()) == (
    expected
  )


@pytest.mark.parametrize(
  ("field", "message"),
  [
    ("rl.prompts", r"config\.rl\.prompts must be int, got None"),
    ("rl.optim.learning_rate", r"learning_rate must be float, got None"),
    ("rl.credit.form", r"config\.rl\.credit\.form must be str, got None"),
    ("rl.lora.targets", r"config\.rl\.lora\.targets must be a tuple, got None"),
    ("rl.credit", r"config\.rl\.credit must be a group of fields, got None"),
  ],
)
def test_none_for_a_field_that_needs_a_value_names_it(field, message):
  config = settings_of("arithmetic.py", f"--config.{field}=None")
  with pytest.raises(ConfigError, match=message):
    settings_from_config(config)


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    (("arithmetic.py:smok",), "Variants are 'full' and 'smoke', not 'smok'."),
    (("files.py:smoke",), "The only variant is 'full', not 'smoke'."),
    (
      ("arithmetic.py", "--config.rl.prm_mesh=3"),
      "A group of fields is a dict, such as \"{'data': 4}\", or None.",
    ),
    (("arithmetic.py", "--config.rl.prompts=many"), "'many'"),
    (("arithmetic.py", "--nosuch=3"), "Unknown command line flag 'nosuch'"),
  ],
)
def test_a_wrong_command_line_ends_in_one_sentence(
  words, sentence, monkeypatch, capsys
):
  config, *options = words
  argv = ["script", f"--config={CONFIGS / config}", "--workdir=x", *options]
  monkeypatch.setattr(sys, "argv", argv)
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
    cli.run(pytest.fail)
  assert end.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  assert line.endswith(sentence)
