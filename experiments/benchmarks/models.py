"""The weights of a benchmark's models: random, or of a Hugging Face folder."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import MODELS, BenchmarkError, Case
from pure_jax.host import huggingface
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.training.weight_copies import make_compute_copy, make_int8_copy

# Fields of `ModelConfig` that determine the shapes or the values of a model.
SHAPE = (
  *("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads"),
  *("head_dim", "mlp_width", "rope_theta", "norm_eps", "attention_bias"),
  *("qk_norm", "tied_embeddings"),
)


def cast_to_compute_dtype(model: ModelConfig) -> Callable[[Any], Any]:
  """Makes a jitted function from a policy's stored weights to their copy.

  The copy has the compute dtype, or int8 matrices with `int8_matrices`.
  """
  layout = sharding.make_layout()
  make_copy = make_int8_copy if model.int8_matrices else make_compute_copy
  stored = dataclasses.replace(model, int8_matrices=False)
  return make_copy(policy.declare_policy(stored), stored, layout, layout)


@functools.lru_cache(maxsize=4)
def _make_init(model: ModelConfig, cast: bool) -> Callable[..., Any]:
  """A function from a key to a policy, compiled once for all cases."""
  stored = dataclasses.replace(model, int8_matrices=False)
  declared = policy.declare_policy(stored)

  def init(key):
    params = weights.init_params(key, declared)
    return cast_to_compute_dtype(model)(params) if cast else params

  return jax.jit(init)


def init_policy(case: Case) -> Any:
  """Makes the weights of a policy as they are stored and trained.

  They are in arrays of their own, and the same in each call.

  Raises:
    BenchmarkError: if the folder of weights has a model of another shape.
  """
  if case.options.weights is None:
    return _make_init(case.model_config, cast=False)(jax.random.key(0))
  return jax.tree.map(jnp.copy, _read_weights(case.options.weights, case.model))


def init_cast_policy(case: Case, rollout: bool = False) -> Any:
  """Makes the weights of `init_policy` in the compute dtype.

  Random weights are cast as they are drawn, so that the memory never holds
  all of them as they are stored. `rollout` makes those that rollouts read.
  """
  model = case.rollout_config if rollout else case.model_config
  if case.options.weights is None:
    return _make_init(model, cast=True)(jax.random.key(0))
  return cast_to_compute_dtype(model)(init_policy(case))


def init_prm(case: Case, cast: bool = False) -> Any:
  """Makes a PRM with a random head on the policy's trunk.

  `cast` makes it in the compute dtype, not as it is stored and trained.
  """
  init_trunk = init_cast_policy if cast else init_policy
  declared = prm.declare_prm(case.model_config)
  head = weights.init_params(jax.random.key(1), {"score": declared["score"]})
  params = init_trunk(case) | head
  return {name: params[name] for name in declared}


@functools.lru_cache(maxsize=1)
def _read_weights(folder: str, name: str) -> Any:
  """Reads a folder that must hold a model of the named shape."""
  if not pathlib.Path(folder).is_dir():
    raise BenchmarkError(f"--weights={folder}: no such folder.")
  try:
    params, config = huggingface.load_policy(folder, sharding.make_layout())
  except huggingface.HuggingFaceError as error:
    raise BenchmarkError(f"--weights: {error}") from error
  differences = [
    field
    for field in SHAPE
    # Files may hold numbers that were rounded to float32.
    if not math.isclose(
      getattr(config, field), getattr(MODELS[name], field), rel_tol=1e-6
    )
  ]
  if differences:
    raise BenchmarkError(
      f"--weights={folder} is not of the shape {name}: it differs in "
      f"{', '.join(differences)}. Name its shape by --models."
    )
  return params
