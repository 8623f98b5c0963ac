"""Stage 2: the process reward model, its head first, then all weights.

  python experiments/train_prm.py \\
    --config=experiments/configs/arithmetic.py --workdir=DIR

The script trains on the task's labelled responses, starting from the policy's
trunk. It trains the policy first if DIR has none. It writes the PRM to DIR/prm
and curves to DIR/curves.png. Evaluations are the rows of stage prm_eval: step
0 after the training of the head, if prm.evaluate_head is set, and the number
of full updates after those. The same command continues an interrupted run.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import cli
import jax
import numpy as np
import optax
import train_sft

from pure_jax.host.distributed import processes
from pure_jax.host.logs import console
from pure_jax.host.text.tokenization import split_texts
from pure_jax.models import lora, prm
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import init_params
from pure_jax.parallel import sharding
from pure_jax.runs import early_ends, loop, trunk_states
from pure_jax.runs.batches import take_rows
from pure_jax.runs.evaluation import labelled_solutions
from pure_jax.runs.run import Run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.spec import RandomStream
from pure_jax.runs.tasks.task import LabelledResponses
from pure_jax.training import supervised, train
from pure_jax.training.optim import make_optimizer
from pure_jax.training.train import Metrics, TrainState

# Of `loop.SupervisedStage`: indices -> a batch, and an update on it.
MakeBatch = Callable[[np.ndarray], Any]
Update = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def train_stage(
  run: Run, stage: str, params: Any, labelled: LabelledResponses
) -> Any:
  """Trains the head ("prm_head") or all weights ("prm_full")."""
  settings, head_only = run.spec.settings.prm, stage == "prm_head"
  steps, optim = settings.full_steps, settings.full_optim
  if head_only:
    steps, optim = settings.head_steps, settings.head_optim
  layout = run.spec.layouts.training
  plain = run.spec.prm_model
  model = plain if head_only else settings.lora.of(plain)
  declared = prm.declare_prm(model)
  if model.lora is not None:
    params = add_adapters(run, params, declared)
  trained, frozen = supervised.split_prm_params(params, head_only)
  declared, _ = supervised.split_prm_params(declared, head_only)
  optimizer = make_optimizer(optim, declared)
  if head_only and settings.trunk_states is not None:
    make_batch, update = make_head_updates(run, optimizer, frozen, labelled)
  else:
    make_batch, update = make_updates(
      run, stage, model, optimizer, frozen, labelled
    )
  state = train.start_state(trained, declared, optimizer, layout)
  prm_stage = loop.SupervisedStage(
    name=stage,
    num_steps=steps,
    log_every=settings.log_every,
    num_examples=len(labelled.labels),
    batch_size=settings.batch_size,
    tokens_per_example=labelled.tokens_per_response,
    make_batch=make_batch,
    update=update,
  )
  state = loop.run_stage(run, prm_stage, state)
  params = lora.join_params(frozen, state.params)
  if model.lora is None:
    return params
  # Merged, for readers without adapters.
  merge = jax.jit(
    lambda params: lora.merge(params, model),
    out_shardings=sharding.weight_shardings(prm.declare_prm(plain), layout),
  )
  return merge(params)


def add_early_ends(run: Run, labelled: LabelledResponses) -> LabelledResponses:
  """Adds responses that end too early, for a PRM that reads the end."""
  settings = run.spec.settings
  rng = np.random.default_rng((settings.seed, RandomStream.EARLY_ENDS.value))
  whole = labelled.responses, labelled.labels, labelled.label_mask
  cut = early_ends.cut_early(
    *whole, jax.device_get(run.spec.table), settings.prm.early_ends, rng
  )
  # An end after the answer is not too early.
  arrays = (cut[0].tokens, cut[0].completion_mask)
  texts = split_texts(run.task.tokenizer, *arrays)
  early = [run.task.find_answer(steps) is None for steps in texts]
  cut = jax.tree.map(lambda x: x[np.asarray(early, bool)], cut)
  every = jax.tree.map(lambda *x: np.concatenate(x), whole, cut)
  metrics = {**labelled.metrics, "early_ends": float(len(cut[1]))}
  return LabelledResponses(*every, metrics)


def make_updates(
  run: Run,
  stage: str,
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  frozen: Any,
  labelled: LabelledResponses,
) -> tuple[MakeBatch, Update]:
  """Makes the batches and the update of a stage that runs the whole PRM."""
  settings, config = run.spec.settings.prm, run.spec.prm_score_config
  responses = labelled.responses
  if settings.trunk_states is not None:
    # Already laid out; then rows have no padding between prompt and response.
    responses = trunk_states.compact(run.spec, responses)
    config = dataclasses.replace(config, separator="each", read_end=False)
  step = supervised.make_prm_step(
    model,
    config,
    optimizer,
    run.spec.table,
    run.spec.layouts.training,
    head_only=stage == "prm_head",
  )

  def make_batch(indices):
    # Every process crops to the columns that the whole batch needs.
    batch = take_rows(responses, indices)
    batch = labelled_solutions.crop(batch, settings.length_multiple)
    labels = labelled.labels[indices], labelled.label_mask[indices]
    return run.batches.put((batch, *labels))

  def update(state, batch):
    return step(state, frozen, *batch)

  return make_batch, update


def make_head_updates(
  run: Run,
  optimizer: optax.GradientTransformation,
  trunk: Any,
  labelled: LabelledResponses,
) -> tuple[MakeBatch, Update]:
  """Makes the same for the head, on states of the trunk that are kept."""
  settings = run.spec.settings.prm
  step = supervised.make_head_step(
    run.spec.prm_model, optimizer, run.spec.layouts.training
  )

  @functools.cache
  def states():
    return trunk_states.load_or_compute(
      run.spec, run.batches, run.folder.start, trunk, labelled.responses
    )

  def make_batch(indices):
    labels = labelled.labels[indices], labelled.label_mask[indices]
    return run.batches.put((states().take(indices), *labels))

  def update(state, batch):
    return step(state, *batch)

  last = loop.stage_folder(run, "prm_head") / str(settings.head_steps)
  if not processes.broadcast_from_zero(last.exists):
    states()  # Now, while a signal ends the script at once.
  return make_batch, update


def add_adapters(run: Run, params: Any, declared: Any) -> dict[str, Any]:
  """Adds adapters, which at first change nothing, to the weights."""
  adapters, _ = lora.split_adapters(declared)
  layout = run.spec.layouts.training
  init = jax.jit(
    lambda key: init_params(key, adapters),
    out_shardings=sharding.weight_shardings(adapters, layout),
  )
  return lora.join_params(params, init(run.spec.key(RandomStream.PRM_ADAPTERS)))


def train_prm(run: Run):
  """Trains policy and PRM, or loads them: (policy weights, PRM weights).

  The PRM's weights are None in a run without a PRM.
  """
  policy_params = train_sft.train_policy(run)
  layout = run.spec.layouts.training
  if run.spec.prm_model is None:
    return policy_params, None
  if run.spec.settings.files is not None and run.spec.settings.files.prm:
    run.tell("loading the PRM")
  given = run.task.start_prm(layout)
  if given is not None:
    return policy_params, given
  declared = prm.declare_prm(run.spec.prm_model)
  if run.folder.is_done("prm"):
    return policy_params, run.folder.load_weights("prm", declared, layout)
  with run.folder.lock_start():
    return policy_params, _make_prm(run, policy_params, declared)


def _make_prm(run: Run, policy_params: Any, declared: Any) -> Any:
  """Trains the PRM in its two stages, from the last checkpoint on."""
  settings, layout = run.spec.settings.prm, run.spec.layouts.training
  labelled = run.task.labelled(run.spec, run.batches, policy_params)
  if run.spec.settings.prm.early_ends:
    labelled = add_early_ends(run, labelled)
  if labelled.metrics:
    run.folder.metrics.rewind("prm_data", 0)
    run.folder.metrics.write("prm_data", 0, labelled.metrics)
  init = jax.jit(
    lambda key, start: prm.init_prm_from_policy(
      key, start, run.spec.model, settings.extra_layers
    ),
    out_shardings=sharding.weight_shardings(declared, layout),
  )
  params = init(run.spec.key(RandomStream.PRM_WEIGHTS), policy_params)
  has_begun = (run.folder.start / "prm").exists()
  run.folder.metrics.rewind("prm_eval", 1 if has_begun else 0)

  def evaluate(params):
    return run.task.evaluate_prm(run.spec, run.batches, policy_params, params)

  # ===== The head =====
  params = train_stage(run, "prm_head", params, labelled)
  # A resumed run does not write this row again: later rows follow it.
  if settings.evaluate_head and not processes.broadcast_from_zero(
    lambda: run.folder.metrics.has("prm_eval", 0)
  ):
    run.folder.metrics.write("prm_eval", 0, evaluate(params))

  # ===== All parameters =====
  params = train_stage(run, "prm_full", params, labelled)
  metrics = evaluate(params)
  run.folder.metrics.write("prm_eval", settings.full_steps, metrics)
  run.folder.finish_stage("prm", params, metrics)
  return params


def describe_result(run: Run) -> str:
  """Describes a finished PRM in one line: how good it is, and where."""
  folder = run.folder.start / "prm"
  if not (folder / "done.json").exists():
    return "files.prm names a trained PRM: there was nothing to train"
  metrics = run.folder.read_result("prm")
  numbers = [
    f"{name.replace('_', ' ')} {metrics[name]:.3f}"
    for name in ("step_accuracy", "balanced_accuracy", "auc")
    if metrics.get(name) is not None
  ]
  return (
    f"held-out {', '.join(numbers) or 'metrics are undefined'}; the PRM is in "
    f"{folder}, metrics and curves are in {run.folder.path}"
  )


def main(argv: list[str]) -> None:
  """Opens the run and trains."""
  del argv
  with cli.from_flags("sft", "prm") as run:
    if run.spec.prm_model is None:
      raise ConfigError(
        "rl.credit.process_coef=0 without files.prm and files.labelled has no "
        "PRM to train: name labelled solutions with files.labelled."
      )
    train_prm(run)
    run.folder.draw_curves()
    result = processes.on_process_zero(lambda: describe_result(run))
  if result is not None:
    console.show(result)


if __name__ == "__main__":
  cli.run(main)
