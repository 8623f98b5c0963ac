"""Lower bounds of the memory of the stages of a training run.

The terms are those that grow with the settings: weights and moments, tokens,
keys and values, activations that a backward pass keeps, examples on the host.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from pure_jax.host.machine_memory import machine_bytes
from pure_jax.models import critic, lora, policy, prm
from pure_jax.runs.memory.arrays import backward_needs, weight_bytes
from pure_jax.runs.memory.needs import Need, check_bytes, check_stage
from pure_jax.runs.memory.run_sizes import (
  LENGTH,
  MODEL,
  PRM_READS,
  ROWS,
  RunSizes,
)
from pure_jax.runs.planning import estimates
from pure_jax.runs.settings.run import Settings
from pure_jax.training import supervised

# Bytes of a column: an id and its mask; in a response two log-probs as well; in
# a batch of updates the old and the reference log-prob.
PROMPT_BYTES, RESPONSE_BYTES, SCORE_BYTES = 5, 13, 8
# Bytes of a step of a response: its reward; its label with a mask.
STEP_BYTES, LABEL_BYTES = 4, 5
# Bytes of an example of the embedded world on the host: two texts of over 50
# bytes each, and a record.
EXAMPLE_BYTES = 150


def check_memory(run: RunSizes, stages: Collection[str]) -> None:
  """Validates that a run has the memory that its stages need at least.

  Args:
    run: the run, with a dtype in place of "auto". Its layouts divide the
      weights.
    stages: the stages that are going to run, of `run_sizes.STAGES`.

  Raises:
    ConfigError: if memory is too small; it names the field and the memory.
  """
  for stage, needs in stage_needs(run, stages).items():
    check_stage(run.settings, stage, needs, run.layouts.training)


def stage_needs(
  run: RunSizes, stages: Collection[str]
) -> dict[str, list[Need]]:
  """Lists what each stage of a run needs at the same time.

  Args:
    run: as for `check_memory`.
    stages: as for `check_memory`.
  """
  needs = {"the data set": []}
  if "sft" in stages and run.settings.sft is not None:
    needs["the supervised start"] = _supervised_start(run)
  if "prm" in stages and run.trains_prm:
    needs["the PRM's training"] = _prm_training(run)
  if "rl" in stages:
    models = _models(run)
    needs["a rollout"] = [*models, *_rollout(run)]
    needs["an update"] = [*models, *_update(run)]
    needs["a validation"] = [*models, *_validation(run)]
  examples = _examples(run)
  return {stage: [*examples, *of_stage] for stage, of_stage in needs.items()}


def _examples(run: RunSizes) -> list[Need]:
  """The examples of the embedded world, in the host's memory."""
  settings = run.settings
  if settings.files is not None:
    return []
  train = {"sft.demonstrations": settings.sft.demonstrations}
  train["prm.policy_prompts"] = settings.prm.policy_prompts
  held_out = {"rl.eval_prompts": settings.rl.eval_prompts}
  held_out["prm.eval_prompts"] = settings.prm.eval_prompts
  needs = []
  for sizes in (train, held_out):
    name = max(sizes, key=sizes.get)
    num_bytes = sizes[name] * EXAMPLE_BYTES
    needs.append(Need("examples", num_bytes, (name,), on_host=True))
  return needs


def _supervised_start(run: RunSizes) -> list[Need]:
  """Weights, gradients and moments, and the activations of a batch."""
  layout = run.layouts.training
  states = 4 * weight_bytes(policy.declare_policy(run.model), layout)
  rows = run.settings.sft.batch_size // layout.row_shards
  return [
    Need("weights, gradients and moments", states, MODEL),
    *backward_needs(
      run.model,
      rows,
      run.columns,
      run.new_tokens,
      layout,
      ("sft.batch_size", *LENGTH, *MODEL),
    ),
  ]


def _prm_training(run: RunSizes) -> list[Need]:
  """Weights of both models, the PRM's moments and gradients, and its data."""
  settings, layout = run.settings.prm, run.layouts.training
  model = settings.lora.of(run.prm_model)
  trained, frozen = supervised.split_prm_params(
    prm.declare_prm(model), head_only=False
  )
  states = 4 * weight_bytes(trained, layout) + weight_bytes(frozen, layout)
  states += weight_bytes(policy.declare_policy(run.model), layout)
  fields = (*MODEL, "prm.extra_layers", "prm.lora.rank")
  # Batches are cropped to the longest text, of two tokens or more.
  batch = estimates.layer_input_bytes(
    model, settings.batch_size // layout.row_shards, 2, layout
  )
  needs = [
    Need("weights, gradients and moments", states, fields),
    Need("a batch", batch, ("prm.batch_size",)),
  ]
  if run.settings.files is not None:
    return needs
  labelled = settings.labelled * EXAMPLE_BYTES
  needs.append(Need("examples", labelled, ("prm.labelled",), on_host=True))
  is_training = settings.policy_prompts > settings.eval_prompts
  prompts = "policy_prompts" if is_training else "eval_prompts"
  of_one = run.columns * PROMPT_BYTES + settings.score.max_steps * LABEL_BYTES
  num_bytes = getattr(settings, prompts) * settings.policy_samples * of_one
  fields = (f"prm.{prompts}", "prm.policy_samples", *LENGTH, *PRM_READS)
  needs.append(Need("samples of the policy", num_bytes, fields, on_host=True))
  return needs


def check_labelled(settings: Settings, rows: int) -> None:
  """Validates that the host has memory for the labels of a file's solutions.

  Args:
    settings: the run's settings, with files.
    rows: number of solutions.

  Raises:
    ConfigError: if it has too little.
  """
  what = f"the labels of {rows} solutions"
  num_bytes = rows * settings.prm.score.max_steps * LABEL_BYTES
  needs = [Need(what, num_bytes, ("prm.score.max_steps",), on_host=True)]
  check_bytes(settings, what, needs, machine_bytes(), "this machine")


_STATE_FIELDS = (*MODEL, "rl.lora.rank", "rl.online_prm.every")


def _trained(run: RunSizes) -> dict[str, Any]:
  """Declares the policy's weights that RL trains."""
  model = run.settings.rl.lora.of(run.model)
  return lora.trained_and_frozen(policy.declare_policy(model), model)[0]


def _models(run: RunSizes) -> list[Need]:
  """What RL trains, with moments; the reference policy; the PRM."""
  rl, layouts = run.settings.rl, run.layouts
  states = 3 * weight_bytes(_trained(run), layouts.training)
  if rl.trains_critic:
    model = rl.lora.of(run.model)
    trained, _ = critic.trained_and_frozen(critic.declare_critic(model), model)
    states += 3 * weight_bytes(trained, layouts.training)
  reference = weight_bytes(
    policy.declare_policy(run.model),
    layouts.reference,
    run.model.compute_dtype,
  )
  if rl.trains_prm:
    declared = prm.declare_prm(run.prm_model)
    states += 3 * weight_bytes(declared, layouts.training)
  needs = [
    Need("weights and moments", states, _STATE_FIELDS),
    Need("the reference policy", reference, MODEL),
  ]
  if run.prm_model is not None:
    declared = prm.declare_prm(run.prm_model)
    dtype = run.prm_model.compute_dtype
    of_prm = weight_bytes(declared, layouts.prm, dtype)
    needs.append(Need("the PRM", of_prm, (*MODEL, "prm.extra_layers")))
  return needs


def _rollout(run: RunSizes) -> list[Need]:
  """Keys and values, and the responses of an iteration."""
  rl, layout = run.settings.rl, run.layouts.rollout
  shards, group = layout.row_shards, rl.samples_per_prompt
  ring = max(run.new_tokens - 1, 1)
  if rl.engine.slots is not None:
    fitting = rl.engine.slots // (shards * group)
    prompts = max(min(fitting, -(-rl.prompts // shards)), 1)
    rows = prompts * group
    ring = min(ring, rl.engine.sync_interval)
  elif rl.rollout.batches == 1:
    prompts = rl.prompts // shards
    rows = rl.responses // shards
  else:
    # Batches that cannot be equal may be as small as the row shards.
    prompts = rows = 1
  cache = estimates.kv_cache_bytes(
    dataclasses.replace(run.model, cache_dtype=rl.rollout.cache_dtype),
    rows * ring + prompts * run.prompt_tokens,
    layout,
  )
  return [
    Need("keys and values", cache, (*ROWS, *MODEL, "rl.engine.slots")),
    Need("responses", _response_bytes(run, rl.responses), ROWS),
  ]


def _response_bytes(run: RunSizes, rows: int) -> int:
  """Bytes on a device of so many responses and their prompts."""
  of_one = run.prompt_tokens * PROMPT_BYTES + run.new_tokens * RESPONSE_BYTES
  return rows // run.layouts.training.row_shards * of_one


def _update(run: RunSizes) -> list[Need]:
  """The scored batch, gradients, and activations of a micro-batch."""
  settings, layout = run.settings, run.layouts.training
  rl, shards = settings.rl, layout.row_shards
  scores = run.new_tokens * SCORE_BYTES + run.prm_prompt_tokens * PROMPT_BYTES
  scores += settings.prm.score.max_steps * STEP_BYTES
  scored = _response_bytes(run, rl.responses) + rl.responses // shards * scores
  gradients = weight_bytes(_trained(run), layout)
  needs = [
    # Clipping to a global norm needs all of them before it scales one.
    Need("gradients", gradients, (*MODEL, "rl.lora.rank")),
    Need("scored responses", scored, (*ROWS, *PRM_READS)),
  ]
  if rl.updates.count > 1:
    order, fields = 4 * rl.responses * rl.updates.epochs, "rl.updates.epochs"
    needs.append(Need("the order of updates", order, (*ROWS, fields)))
  limit = rl.responses // rl.micro_batches
  mini_batch = rl.responses // rl.updates.mini_batches
  rows = min(limit, mini_batch) // shards
  if mini_batch % limit and limit < mini_batch:
    rows = 1  # Micro-batches that cannot be equal may be as small.
  fields = (*ROWS, *MODEL)
  if rl.packed_tokens is not None:
    if run.columns + run.new_tokens <= rl.packed_tokens:
      limit = min(limit, rl.prompts)  # Samples may share rows and prompt.
    hidden = limit // shards * rl.packed_tokens * run.model.width
    hidden *= jnp.dtype(run.model.compute_dtype).itemsize
    hidden //= layout.mesh.shape["sequence"]
    needs.append(Need("packed rows", hidden, (*fields, "rl.packed_tokens")))
  elif rl.length_buckets == 1:
    needs += backward_needs(
      run.model, rows, run.columns, run.new_tokens, layout, fields
    )
  return needs


def _validation(run: RunSizes) -> list[Need]:
  """The responses of a validation."""
  rl = run.settings.rl
  if run.settings.files is None:
    # A file may hold fewer problems than a config asks for.
    num_bytes = _response_bytes(run, rl.eval_prompts)
    return [Need("responses", num_bytes, ("rl.eval_prompts", *LENGTH))]
  if not run.has_benchmarks:
    return []
  new_tokens, fields = rl.benchmark_sampler.max_new_tokens, run.benchmark_fields
  of_one = max(rl.benchmark_samples, 1) * new_tokens * RESPONSE_BYTES
  needs = [Need("responses to benchmarks", of_one, fields)]
  if rl.engine.slots is None:
    layout = run.layouts.rollout
    cache = estimates.kv_cache_bytes(run.model, new_tokens - 1, layout)
    cache //= jnp.dtype(run.model.compute_dtype).itemsize  # int8, maybe.
    needs.append(Need("keys and values", cache, fields))
  return needs
