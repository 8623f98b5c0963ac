"""The models of a benchmark: how they run, and their weights."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import MODELS, BenchmarkError
from pure_jax.host import huggingface
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.training.weight_copies import make_compute_copy, make_int8_copy

# Fields of `ModelConfig` that determine the shapes or the values of a model.
SHAPE = (
  "vocab_size",
  "width",
  "num_layers",
  "num_heads",
  "num_kv_heads",
  "head_dim",
  "mlp_width",
  "rope_theta",
  "norm_eps",
  "attention_bias",
  "qk_norm",
  "tied_embeddings",
)


@dataclasses.dataclass(frozen=True)
class Options:
  """How the models of all cases run.

  Attributes:
    dtype: compute dtype of matrix products.
    rows_at_a_time: most rows in a micro-batch of scores and updates.
    remat: activations that the backward pass keeps, see `ModelConfig`. On a
      CPU nothing was faster than "dots" for a model that scans its layers
      (docs/speed.md).
    logits_chunk: see `ModelConfig`.
    attention_chunk: see `ModelConfig`.
    engine_slots: slots of the second engine, which are fewer than the
      responses of a large batch; the first has a slot for every response.
    engine_chunk: tokens that an engine decodes between two host syncs.
    cache_dtype: dtype of keys and values in rollouts, see `ModelConfig`.
    int8_matrices: whether rollouts read matrices in int8, see `ModelConfig`.
    weights: a Hugging Face folder with the weights of every case; None draws
      them at random.
  """

  dtype: str = "float32"
  rows_at_a_time: int = 8
  remat: str = "dots"
  logits_chunk: int | None = None
  attention_chunk: int | None = None
  engine_slots: int = 16
  engine_chunk: int = 16
  cache_dtype: str | None = None
  int8_matrices: bool = False
  weights: str | None = None

  def model(self, name: str) -> ModelConfig:
    """The architecture `name` of `MODELS` as it is trained and scored."""
    return dataclasses.replace(
      MODELS[name],
      compute_dtype=self.dtype,
      remat=self.remat,
      logits_chunk=self.logits_chunk,
      attention_chunk=self.attention_chunk,
    )

  def rollout_model(self, name: str) -> ModelConfig:
    """The architecture `name` of `MODELS` as rollouts run it."""
    return dataclasses.replace(
      self.model(name),
      cache_dtype=self.cache_dtype,
      int8_matrices=self.int8_matrices,
    )

  @property
  def rounded(self) -> bool:
    """Whether rollouts round weights, keys or values."""
    return self.int8_matrices or self.cache_dtype is not None

  @property
  def recomputes_layers(self) -> bool:
    """Whether baselines recompute whole layers for the backward pass too."""
    return self.remat in ("layer", "offload")

  @property
  def itemsize(self) -> int:
    """Bytes of a weight in the compute dtype."""
    return jnp.dtype(self.dtype).itemsize


def cast_to_compute_dtype(model: ModelConfig) -> Callable[[Any], Any]:
  """Makes the function from a policy's stored weights to its compute dtype.

  Args:
    model: the architecture; with `int8_matrices`, matrices become int8.

  Returns:
    A jitted function from stored weights to their copy.
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


def init_policy(name: str, options: Options) -> Any:
  """Makes the weights of a policy as they are stored and trained.

  Args:
    name: name in `MODELS`.
    options: how the model runs, and its folder of weights if there is one.

  Returns:
    Weights in arrays of their own, the same in each call: random, or those of
    the folder.

  Raises:
    BenchmarkError: if the folder holds a model of another shape.
  """
  model = options.model(name)
  if options.weights is None:
    return _make_init(model, cast=False)(jax.random.key(0))
  return jax.tree.map(jnp.copy, _read_weights(name, options.weights, model))


def init_cast_policy(name: str, options: Options, rollout: bool = False) -> Any:
  """Makes the weights of `init_policy` in the compute dtype.

  Random weights are cast as they are drawn, so that the memory never holds
  all of them as they are stored.

  Args:
    name: name in `MODELS`.
    options: how the model runs, and its folder of weights if there is one.
    rollout: True gives weights as `Options.rollout_model` reads them.

  Returns:
    Weights in arrays of their own.

  Raises:
    BenchmarkError: as `init_policy`.
  """
  model = options.rollout_model(name) if rollout else options.model(name)
  if options.weights is None:
    return _make_init(model, cast=True)(jax.random.key(0))
  return cast_to_compute_dtype(model)(init_policy(name, options))


def init_prm(name: str, options: Options, cast: bool = False) -> Any:
  """Makes a PRM on the policy's trunk.

  Args:
    name: name in `MODELS`.
    options: how the model runs.
    cast: True gives weights in the compute dtype, False as they are stored and
      trained.

  Returns:
    Weights as `prm.declare_prm` declares them; the head is random.
  """
  init_trunk = init_cast_policy if cast else init_policy
  declared = prm.declare_prm(options.model(name))
  head = weights.init_params(jax.random.key(1), {"score": declared["score"]})
  params = init_trunk(name, options) | head
  return {part: params[part] for part in declared}


@functools.lru_cache(maxsize=1)
def _read_weights(name: str, folder: str, model: ModelConfig) -> Any:
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
      getattr(config, field), getattr(model, field), rel_tol=1e-6
    )
  ]
  if differences:
    raise BenchmarkError(
      f"--weights={folder} is not of the shape {name}: it differs in "
      f"{', '.join(differences)}. Name its shape by --models."
    )
  return params
