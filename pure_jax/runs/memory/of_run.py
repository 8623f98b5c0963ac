"""Lower bounds of the memory of the stages of a training run.

The terms are those that grow with the settings: weights and moments, tokens,
keys and values, activations that a backward pass keeps, examples on the host.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from pure_jax.host.machine_memory import machine_bytes
from pure_jax.models import critic, lora, policy, prm
from pure_jax.runs.memory.arrays import backward_needs, weight_bytes
from pure_jax.runs.memory.needs import Need, check_bytes, check_stage
from pure_jax.runs.memory.run_sizes import RunSizes
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
    check_stage(stage, needs, run.layouts.training)


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
    states = [_state(run), *_frozen(run)]
    needs["RL"] = states
    needs["a rollout"] = [*states, *_rollout(run)]
    needs["an update"] = [*states, *_update(run)]
    needs["a validation"] = [*states, *_validation(run)]
  examples = _examples(run)
  return {stage: [*examples, *of_stage] for stage, of_stage in needs.items()}


def _examples(run: RunSizes) -> list[Need]:
  """The examples of the embedded world, in the host's memory."""
  settings = run.settings
  if settings.files is not None:
    return []
  prm_settings = settings.prm
  train = {"sft.demonstrations": settings.sft.demonstrations}
  train |= {"prm.policy_prompts": prm_settings.policy_prompts}
  held_out = {"rl.eval_prompts": settings.rl.eval_prompts}
  held_out |= {"prm.eval_prompts": prm_settings.eval_prompts}
  needs = []
  for sizes in (train, held_out):
    name = max(sizes, key=lambda name: sizes[name])
    needs.append(_example_need({name: sizes[name]}))
  return needs


def _example_need(size: dict[str, int]) -> Need:
  """The examples of one split, whose number is a field."""
  num_bytes = sum(size.values()) * EXAMPLE_BYTES
  return Need("examples", num_bytes, size, on_host=True)


def _supervised_start(run: RunSizes) -> list[Need]:
  """Weights, gradients and moments, and the activations of a batch."""
  layout, batch_size = run.layouts.training, run.settings.sft.batch_size
  states = 4 * weight_bytes(policy.declare_policy(run.model), layout)
  return [
    Need("weights, gradients and moments", states, run.model_fields),
    *backward_needs(
      run.model,
      batch_size // layout.row_shards,
      run.columns,
      run.new_tokens,
      layout,
      {"sft.batch_size": batch_size} | run.lengths | run.model_fields,
    ),
  ]


def _prm_training(run: RunSizes) -> list[Need]:
  """Weights of both models, the PRM's moments and gradients, and its data."""
  settings, layout = run.settings.prm, run.layouts.training
  model = settings.lora.of(run.prm_model)
  declared = prm.declare_prm(model)
  trained, frozen = supervised.split_prm_params(declared, head_only=False)
  states = 4 * weight_bytes(trained, layout) + weight_bytes(frozen, layout)
  states += weight_bytes(policy.declare_policy(run.model), layout)
  rank = {"prm.lora.rank": settings.lora.rank} if settings.lora.rank else {}
  # Batches are cropped to the longest text, of two tokens or more.
  batch = estimates.layer_input_bytes(
    model, settings.batch_size // layout.row_shards, 2, layout
  )
  needs = [
    Need("weights, gradients and moments", states, run.prm_fields | rank),
    Need("a batch", batch, {"prm.batch_size": settings.batch_size}),
  ]
  if run.settings.files is not None:
    return needs
  needs.append(_example_need({"prm.labelled": settings.labelled}))
  prompts = {"prm.policy_prompts": settings.policy_prompts}
  prompts |= {"prm.eval_prompts": settings.eval_prompts}
  name = max(prompts, key=lambda name: prompts[name])
  samples = {name: prompts[name], "prm.policy_samples": settings.policy_samples}
  steps = settings.score.max_steps
  of_one = run.columns * PROMPT_BYTES + steps * LABEL_BYTES
  num_bytes = math.prod(samples.values()) * of_one
  what, fields = "samples of the policy", samples | run.lengths
  fields |= run.step_fields
  return [*needs, Need(what, num_bytes, fields, on_host=True)]


def check_labelled(settings: Settings, rows: int) -> None:
  """Validates that the host has memory for the labels of a file's solutions.

  Args:
    settings: the run's settings, with files.
    rows: number of solutions.

  Raises:
    ConfigError: if it has too little.
  """
  steps = settings.prm.score.max_steps
  what, num_bytes = (
    f"the labels of {rows} solutions",
    rows * steps * LABEL_BYTES,
  )
  fields = {"prm.score.max_steps": steps}
  needs = [Need(what, num_bytes, fields, on_host=True)]
  check_bytes(what, needs, machine_bytes(), "this machine")


def _trained(run: RunSizes) -> dict[str, Any]:
  """Declares the policy's weights that RL trains."""
  model = run.settings.rl.lora.of(run.model)
  return lora.trained_and_frozen(policy.declare_policy(model), model)[0]


def _state(run: RunSizes) -> Need:
  """The weights that RL trains and their moments; those of a critic too."""
  rl, layout = run.settings.rl, run.layouts.training
  states = 3 * weight_bytes(_trained(run), layout)
  if rl.trains_critic:
    model = rl.lora.of(run.model)
    trained, _ = critic.trained_and_frozen(critic.declare_critic(model), model)
    states += 3 * weight_bytes(trained, layout)
  return Need("weights and moments", states, run.trained_fields)


def _frozen(run: RunSizes) -> list[Need]:
  """The reference policy and the PRM, in the compute dtype."""
  reference = weight_bytes(
    policy.declare_policy(run.model),
    run.layouts.reference,
    run.model.compute_dtype,
  )
  needs = [Need("the reference policy", reference, run.model_fields)]
  if run.prm_model is not None:
    of_prm = weight_bytes(
      prm.declare_prm(run.prm_model),
      run.layouts.prm,
      run.prm_model.compute_dtype,
    )
    needs.append(Need("the PRM", of_prm, run.prm_fields))
  return needs


def _rollout(run: RunSizes) -> list[Need]:
  """Keys and values, and the responses of an iteration."""
  rl, layout = run.settings.rl, run.layouts.rollout
  shards, group = layout.row_shards, rl.samples_per_prompt
  ring, slots = max(run.new_tokens - 1, 1), {}
  if rl.engine.slots is not None:
    fitting = rl.engine.slots // (shards * group)
    prompts = max(min(fitting, -(-rl.prompts // shards)), 1)
    rows = prompts * group
    ring = min(ring, rl.engine.sync_interval)
    slots = {"rl.engine.slots": rl.engine.slots}
  elif rl.rollout.batches == 1:
    prompts = rl.prompts // shards
    rows = rl.responses // shards
  else:
    # Batches that cannot be equal may be as small as the row shards.
    prompts = rows = 1
  dtype = rl.rollout.cache_dtype
  cache = estimates.kv_cache_bytes(
    dataclasses.replace(run.model, cache_dtype=dtype),
    rows * ring + prompts * run.prompt_tokens,
    layout,
  )
  return [
    Need("keys and values", cache, run.row_fields | run.model_fields | slots),
    Need("responses", _response_bytes(run), run.row_fields),
  ]


def _response_bytes(run: RunSizes) -> int:
  """Bytes of the responses of an iteration and their prompts, on a device."""
  of_one = run.prompt_tokens * PROMPT_BYTES + run.new_tokens * RESPONSE_BYTES
  return run.settings.rl.responses // run.layouts.training.row_shards * of_one


def _update(run: RunSizes) -> list[Need]:
  """The scored batch, gradients, and activations of a micro-batch."""
  settings, layout = run.settings, run.layouts.training
  rl, shards = settings.rl, layout.row_shards
  steps = settings.prm.score.max_steps
  scores = run.new_tokens * SCORE_BYTES + steps * STEP_BYTES
  scores += run.prm_prompt_tokens * PROMPT_BYTES
  gradients = weight_bytes(_trained(run), layout)
  needs = [
    # Clipping to a global norm needs all of them before it scales one.
    Need("gradients", gradients, run.trained_fields),
    Need(
      "scored responses",
      _response_bytes(run) + rl.responses // shards * scores,
      run.row_fields | run.step_fields | run.prm_prompt_fields,
    ),
  ]
  if rl.updates.count > 1:
    epochs = {"rl.updates.epochs": rl.updates.epochs}
    order = 4 * rl.responses * rl.updates.epochs
    needs.append(Need("the order of updates", order, run.row_fields | epochs))
  limit = rl.responses // rl.micro_batches
  mini_batch = rl.responses // rl.updates.mini_batches
  rows = min(limit, mini_batch) // shards
  if mini_batch % limit and limit < mini_batch:
    rows = 1  # Micro-batches that cannot be equal may be as small.
  fields = run.row_fields | run.model_fields
  if rl.packed_tokens is not None:
    columns = {"rl.packed_tokens": rl.packed_tokens}
    hidden = limit // shards * rl.packed_tokens * run.model.width
    itemsize = jnp.dtype(run.model.compute_dtype).itemsize
    sequence = layout.mesh.shape["sequence"]
    needs.append(
      Need("packed rows", hidden * itemsize // sequence, fields | columns)
    )
  elif rl.length_buckets == 1:
    needs += backward_needs(
      run.model, rows, run.columns, run.new_tokens, layout, fields
    )
  return needs


def _validation(run: RunSizes) -> list[Need]:
  """The responses of a validation."""
  rl, settings = run.settings.rl, run.settings
  shards, needs = run.layouts.training.row_shards, []
  if settings.files is None:
    # A file may hold fewer problems than a config asks for.
    of_one = run.prompt_tokens * PROMPT_BYTES + run.new_tokens * RESPONSE_BYTES
    needs.append(
      Need(
        "responses",
        rl.eval_prompts // shards * of_one,
        {"rl.eval_prompts": rl.eval_prompts} | run.lengths,
      )
    )
  elif run.has_benchmarks:
    new_tokens = rl.benchmark_sampler.max_new_tokens
    of_one = max(rl.benchmark_samples, 1) * new_tokens * RESPONSE_BYTES
    fields = run.benchmark_fields
    needs.append(Need("responses to benchmarks", of_one, fields))
    if rl.engine.slots is None:
      layout = run.layouts.rollout
      cache = estimates.kv_cache_bytes(run.model, new_tokens - 1, layout)
      cache //= jnp.dtype(run.model.compute_dtype).itemsize  # int8, maybe.
      needs.append(Need("keys and values", cache, fields))
  return needs
