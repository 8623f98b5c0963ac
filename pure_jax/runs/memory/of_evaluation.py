"""Lower bounds of the memory of evaluations of policies and PRMs."""

import dataclasses

from pure_jax.host import huggingface
from pure_jax.models import policy, prm
from pure_jax.parallel.sharding import Layout
from pure_jax.runs.memory.arrays import weight_bytes
from pure_jax.runs.memory.needs import Need, check_count, check_stage
from pure_jax.runs.memory.of_run import PROMPT_BYTES, RESPONSE_BYTES, STEP_BYTES
from pure_jax.runs.planning import estimates
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.evaluation import (
  EvaluatePRMSettings,
  EvaluationSettings,
)
from pure_jax.runs.tasks import tiny_files


def check_evaluation(settings: EvaluationSettings, layout: Layout) -> None:
  """Validates that the evaluation of a policy has the memory it needs.

  Args:
    settings: the settings, with dtypes in place of "auto".
    layout: devices and rules.

  Raises:
    ConfigError: if a batch has too many tokens, the layout does not divide
      the weights, or memory is too small; it names the field.
    HuggingFaceError: if the config of a model cannot be read.
  """
  if settings.random_model:
    model = prm_model = tiny_files.architecture(tied=True)
  else:
    model, prm_model = huggingface.read_config(settings.policy).model, None
    if settings.prm is not None:
      prm_model = huggingface.read_config(settings.prm).model
  L, C = settings.prompt_tokens, settings.sampler.max_new_tokens
  rows, steps = settings.batch_rows, settings.score.max_steps
  fields = ("batch_rows", "sampler.max_new_tokens", "prompt_tokens")
  check_count(settings, "a batch", rows, L + C, fields)
  if prm_model is not None:
    of_prm = (*fields, "prm_prompt_tokens", "score.max_steps")
    columns = settings.prm_prompt_tokens + steps + C
    check_count(settings, "what the PRM reads", rows, columns, of_prm)

  shards, ring = layout.row_shards, max(C - 1, 1)
  slots = settings.engine.slots
  prompts = rows
  if slots is not None:
    # A batch has no fewer rows than slots; a group may share its prompt.
    rows, prompts = slots, 0
    ring = min(ring, settings.engine.sync_interval)
    fields += ("engine.slots",)
  dtype = settings.param_dtype
  try:
    weights = weight_bytes(policy.declare_policy(model), layout, dtype)
    if prm_model is not None:
      weights += weight_bytes(prm.declare_prm(prm_model), layout, dtype)
  except ValueError as error:
    raise ConfigError(f"{error} Choose other sizes or rules.") from error
  needs = [Need("weights", weights)]
  model = dataclasses.replace(model, compute_dtype=settings.compute_dtype)
  tokens = rows // shards * ring + prompts // shards * L
  cache = estimates.kv_cache_bytes(model, tokens, layout)
  needs.append(Need("keys and values", cache, fields))
  batch = rows // shards * (L * PROMPT_BYTES + C * RESPONSE_BYTES)
  needs.append(Need("responses", batch, fields))
  check_stage(settings, "a batch", needs, layout)


def check_prm_evaluation(settings: EvaluatePRMSettings, layout: Layout) -> None:
  """Validates that the evaluation of a PRM has memory for its steps.

  Solutions have columns for the longest of a batch, which only files say.

  Args:
    settings: the settings.
    layout: devices and rules.

  Raises:
    ConfigError: if memory is too small, or a batch has too many steps; it
      names the field.
  """
  rows, steps = settings.batch_size, settings.score.max_steps
  fields = ("batch_size", "score.max_steps")
  check_count(settings, "a batch", rows, steps, fields)
  of_steps = rows // layout.row_shards * steps * STEP_BYTES
  what = "the steps of a batch"
  check_stage(settings, what, [Need(what, of_steps, fields)], layout)
