"""Runs that train adapters: what they save, and what they export."""

import dataclasses
import importlib
import json

import export
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_prm
import train_pure
from configs import arithmetic

from pure_jax.host import huggingface
from pure_jax.host.logs import curves
from pure_jax.models import lora, policy, prm, transformer
from pure_jax.models import params as weights
from pure_jax.parallel import sharding
from pure_jax.runs import saved_run
from pure_jax.runs.planning.planned_spec import read_spec
from pure_jax.runs.rl import weights as rl_weights
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError


def settings_of(name, variant, **groups):
  """A smoke config in which groups of fields have adapters."""
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.progress = False
  for group, values in groups.items():
    config[group].update(values)
  return conversion.settings_from_config(config)


def logits(params, model):
  tokens = jnp.asarray(np.random.default_rng(0).integers(3, 99, (2, 12)))
  segments = jnp.ones(tokens.shape, jnp.int32)
  positions = jnp.cumsum(segments, axis=1) - 1
  hidden, _ = transformer.forward(params, model, tokens, positions, segments)
  return policy.logits(params, model, hidden)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """One iteration of RL on adapters: (folder, frozen weights, model)."""
  folder = tmp_path_factory.mktemp("runs") / "run"
  settings = settings_of(
    "qwen2p5_math_1p5b",
    "smoke_prm",  # Verdicts on a random model are all the same: no gradient.
    rl={
      "iterations": 1,
      "lora": {"rank": 2, "alpha": 8.0, "targets": ("query", "down")},
      "optim": {"learning_rate": 1e-2},
      "engine": {"slots": None},  # One loop compiles fewer programs.
    },
  )
  frozen = []
  freeze = rl_weights.freeze
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      train_pure, "freeze", lambda *x: frozen.append(freeze(*x)) or frozen[-1]
    )
    patch.setattr(curves, "plot_curves", lambda *unused: None)  # Seconds.
    with open_run(settings, str(folder)) as run:
      train_pure.train_rl(run)
      return folder, frozen[0], run.spec.rl_model


def test_reference_and_bases_are_the_same_arrays(run):
  _, frozen, _ = run
  jax.tree.map(
    lambda x, y, z: np.testing.assert_(x is y is z),
    frozen.reference,
    frozen.base,
    frozen.rollout_base,
  )


def test_a_run_saves_adapters_and_exports_merged_weights(run, tmp_path):
  folder, frozen, model = run
  plain = dataclasses.replace(model, lora=None)
  saved = saved_run.read_run(folder)
  restored = saved.restore_policy(sharding.make_layout(), "latest")
  adapters = restored.state.params
  declared, _ = lora.split_adapters(policy.declare_policy(model))
  weights.check_params(adapters, declared)
  moved = adapters["layers"]["query_lora_b"]
  assert np.abs(moved).max() > 1e-3  # B was 0.
  output = tmp_path / "policy"
  export.export(folder, output, "latest")
  params, _ = huggingface.load_policy(output, sharding.make_layout())
  expected = logits(frozen.policy(adapters), model)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(logits(params, plain), expected, atol=2e-6 * scale)
  assert np.abs(expected - logits(frozen.reference, plain)).max() > 1e-3 * scale


def test_adapters_are_not_merged_into_another_policy(run, tmp_path):
  folder, _, _ = run
  saved = saved_run.read_run(folder)
  saved = dataclasses.replace(saved, contents={"policy": "another"})
  with pytest.raises(ConfigError, match="has changed since"):
    saved.merge_adapters(sharding.make_layout(), {})


def test_a_prm_is_trained_by_adapters_and_stored_without(tmp_path):
  """Only the adapted matrices and the head change after the head's stage."""
  settings = settings_of(
    "pure_prm_7b",
    "smoke",
    prm={
      "lora": {"rank": 2, "alpha": 8.0, "targets": ("gate", "output")},
      "full_optim": {"learning_rate": 1e-2},
    },
  )
  with open_run(settings, str(tmp_path / "run")) as run:
    start, params = train_prm.train_prm(run)
    declared = prm.declare_prm(run.spec.prm_model)
    weights.check_params(params, declared)
    stored = run.folder.load_weights("prm", declared, run.spec.layouts.training)
  jax.tree.map(np.testing.assert_array_equal, stored, params)
  changed = {
    name
    for name, value in params["layers"].items()
    if np.abs(value - start["layers"][name]).max() > 0
  }
  assert changed == {"gate", "output"}
  np.testing.assert_array_equal(params["embedding"], start["embedding"])
  record = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  losses = [
    row["loss"] for row in map(json.loads, record) if row["stage"] == "prm_full"
  ]
  assert np.isfinite(losses).all()


def test_impossible_settings_of_adapters_are_rejected():
  def check_rejected(message, **changes):
    config = arithmetic.get_config("smoke")
    for name, value in changes.items():
      group, field = name.split("__")
      config[group].lora[field] = value
    with pytest.raises(ConfigError, match=message):
      conversion.settings_from_config(config)

  check_rejected("config.rl.lora: rank must be at least 1", rl__rank=-1)
  check_rejected("rl.lora: alpha must be between", rl__alpha=-1.0)
  check_rejected("targets must be some of", rl__targets=("q_proj",))
  check_rejected("extra_layers=1 start as the identity", prm__rank=4)


def test_a_plan_of_adapters_is_rejected():
  settings = settings_of("arithmetic", "smoke", rl={"lora": {"rank": 2}})
  with pytest.raises(ConfigError, match="Plans know no adapters"):
    read_spec(settings, jax.devices())
