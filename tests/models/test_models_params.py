"""One declaration per weight; values, shapes and axes follow from it."""

import dataclasses

import jax
import numpy as np
import pytest
from small_models import TINY, initial_params

from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.activation_sharding import (
  HIDDEN,
  KEYS,
  LOGITS,
  MLP,
  QUERIES,
)
from pure_jax.models.config import ModelConfig, RopeScaling
from pure_jax.parallel import sharding

QWEN2_05B = ModelConfig(
  vocab_size=151936,
  width=896,
  num_layers=24,
  num_heads=14,
  num_kv_heads=2,
  head_dim=64,
  mlp_width=4864,
  rope_theta=1e6,
)
QWEN25_7B = ModelConfig(
  vocab_size=152064,
  width=3584,
  num_layers=28,
  num_heads=28,
  num_kv_heads=4,
  head_dim=128,
  mlp_width=18944,
  rope_theta=1e6,
  tied_embeddings=False,
)
LLAMA32_1B = ModelConfig(
  vocab_size=128256,
  width=2048,
  num_layers=16,
  num_heads=32,
  num_kv_heads=8,
  head_dim=64,
  mlp_width=8192,
  rope_theta=5e5,
  attention_bias=False,
)

QWEN3_06B = ModelConfig(
  vocab_size=151936,
  width=1024,
  num_layers=28,
  num_heads=16,
  num_kv_heads=8,
  head_dim=128,
  mlp_width=3072,
  rope_theta=1e6,
  attention_bias=False,
  qk_norm=True,
)


@pytest.mark.parametrize(
  ("config", "published"),
  [
    (QWEN2_05B, 494_032_768),
    (QWEN25_7B, 7_615_616_512),
    (LLAMA32_1B, 1_235_814_400),
    (QWEN3_06B, 596_049_920),
  ],
)
def test_known_models_have_their_published_number_of_weights(config, published):
  assert weights.count_params(policy.declare_policy(config)) == published


def test_an_empty_declaration_counts_nothing():
  assert weights.count_params({}) == 0


def test_initial_values_are_what_is_declared():
  config = dataclasses.replace(TINY, tied_embeddings=False, width=64)
  declared = policy.declare_policy(config)
  params = initial_params(declared)
  weights.check_params(params, declared)
  layers = params["layers"]
  for name in ("attention_norm", "mlp_norm"):
    assert (layers[name] == 1).all()
  for name in ("query_bias", "key_bias", "value_bias"):
    assert (layers[name] == 0).all()
  N, H, F, D = 4, 6, 20, 64
  for values, stddev in (
    (params["embedding"], 0.02),
    (params["head"], D**-0.5),
    (layers["query"], D**-0.5),
    (layers["gate"], D**-0.5),
    (layers["output"], (N * H * 2 * 2) ** -0.5),
    (layers["down"], (F * 2 * 2) ** -0.5),
  ):
    # The deviation of n normals has standard error stddev / sqrt(2 n).
    error = 4 * stddev / np.sqrt(2 * values.size)
    assert abs(np.std(values) - stddev) < error


def test_a_bfloat16_declaration_gives_bfloat16_weights():
  config = dataclasses.replace(TINY, param_dtype="bfloat16")
  params = initial_params(prm.declare_prm(config, extra_layers=1))
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_removing_a_weight_leaves_the_others_as_they_were():
  def draw(config):
    declared = policy.declare_policy(config)
    return weights.init_params(jax.random.key(3), declared)

  with_bias = draw(TINY)
  without = draw(dataclasses.replace(TINY, attention_bias=False))
  for name, values in without["layers"].items():
    np.testing.assert_array_equal(values, with_bias["layers"][name])
  # Same shape, same initialiser, another name: another draw.
  assert (with_bias["layers"]["gate"] != with_bias["layers"]["up"]).all()


def test_abstract_params_are_the_shapes_of_the_values():
  declared = prm.declare_prm(TINY, extra_layers=2)
  values = jax.eval_shape(
    lambda key: weights.init_params(key, declared), jax.random.key(0)
  )
  assert weights.abstract_params(declared) == values


def test_every_logical_axis_has_a_sharding_rule():
  declared = [
    policy.declare_policy(dataclasses.replace(TINY, tied_embeddings=False)),
    prm.declare_prm(TINY),
  ]
  axes = {*jax.tree.leaves(weights.logical_axes(declared))}
  for named in (HIDDEN, QUERIES, KEYS, MLP, LOGITS):
    axes |= {*named}
  for rules in sharding.RULE_SETS.values():
    assert axes == set(rules)


def test_logical_axes_of_a_layer_as_a_table():
  axes = weights.logical_axes(policy.declare_policy(TINY))
  assert axes["embedding"] == ("vocab", "width")
  assert axes["layers"]["key"] == ("layers", "width", "kv_heads", "head_dim")
  assert axes["layers"]["output"] == ("layers", "heads", "head_dim", "width")
  assert axes["layers"]["down"] == ("layers", "mlp", "width")


def test_weights_that_do_not_fit_are_all_named():
  declared = policy.declare_policy(TINY)
  params = initial_params(declared)
  params["embed"] = params.pop("embedding")
  params["layers"]["up"] = params["layers"]["up"][:, :, :-1]
  with pytest.raises(ValueError, match="Weights do not fit") as error:
    weights.check_params(params, declared)
  message = str(error.value)
  for fault in (
    "['embedding'] is missing",
    "['embed'] is not declared",
    "['layers']['up'] is ((2, 16, 19), 'float32')",
  ):
    assert fault in message


def test_a_weight_with_an_axis_too_few_raises():
  with pytest.raises(ValueError, match="needs 2 logical axes"):
    weights.Weight((2, 3), "float32", ("width",), weights.ZEROS)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_kv_heads": 3}, "does not divide num_heads=4"),
    ({"head_dim": 5}, "must be even"),
    ({"num_layers": 0}, "num_layers must be at least 1"),
    ({"compute_dtype": "float16"}, "compute_dtype must be one of"),
    ({"rope_theta": 0.0}, "must be positive"),
    ({"rope_scaling": (8.0, 4.0, 1.0, 8192)}, "below high_frequency_factor"),
    ({"rope_scaling": (0.5, 1.0, 4.0, 8192)}, "factor=0.5 .* at least 1"),
    ({"rope_scaling": (8.0, 1.0, 4.0, 0)}, "original_length=0 must be"),
  ],
)
def test_impossible_architectures_raise(change, message):
  with pytest.raises(ValueError, match=message):
    if "rope_scaling" in change:
      change = {"rope_scaling": RopeScaling(*change["rope_scaling"])}
    dataclasses.replace(TINY, **change)
