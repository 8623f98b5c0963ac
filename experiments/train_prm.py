"""Stage 2: the process reward model, head first, then everything.

  python experiments/train_prm.py \\
    --config=experiments/configs/arithmetic.py --workdir=DIR

Starts from the policy's trunk (and trains the policy first if DIR has none) on
the task's labelled responses, and leaves the PRM in DIR/prm and a picture in
DIR/curves.png. Evaluations are the rows of stage prm_eval: step 0 after the
head's training, if that is asked for, and the number of full updates after
them. Started again, it continues.
"""

from typing import Any

import cli
import jax
import train_sft

from pure_jax.host.distributed import processes
from pure_jax.models import lora, prm
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import init_params
from pure_jax.parallel import sharding
from pure_jax.runs import loop
from pure_jax.runs.batches import take_rows
from pure_jax.runs.evaluation import labelled_solutions
from pure_jax.runs.run import Run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.spec import RandomStream
from pure_jax.runs.tasks.task import LabelledResponses
from pure_jax.training import supervised, train
from pure_jax.training.optim import make_optimizer


def train_stage(
  run: Run,
  stage: str,
  params: Any,
  labelled: LabelledResponses,
) -> Any:
  """One of the two stages of PRM training.

  Args:
    run: the open run.
    stage: "prm_head" trains the head alone, "prm_full" everything.
    params: PRM weights to start from.
    labelled: what it learns from.

  Returns:
    The PRM's weights after it.
  """
  settings, head_only = run.spec.settings.prm, stage == "prm_head"
  steps, optim = settings.full_steps, settings.full_optim
  if head_only:
    steps, optim = settings.head_steps, settings.head_optim
  optimizer, layout = make_optimizer(optim), run.spec.layouts.training
  model = run.spec.prm_model
  if not head_only:
    model = settings.lora.of(model)
  declared = prm.declare_prm(model)
  if model.lora is not None:
    params = add_adapters(run, params, declared)
  step = supervised.make_prm_step(
    model,
    run.spec.prm_score_config,
    optimizer,
    run.spec.table,
    layout,
    head_only,
  )
  trained, frozen = supervised.split_prm_params(params, head_only)
  declared, _ = supervised.split_prm_params(declared, head_only)
  state = train.start_state(trained, declared, optimizer, layout)

  def make_batch(indices):
    # The columns that the whole batch needs, whoever makes which rows.
    batch = take_rows(labelled.responses, indices)
    batch = labelled_solutions.crop(batch, settings.length_multiple)
    labels = labelled.labels[indices], labelled.label_mask[indices]
    return run.batches.put((batch, *labels))

  def update(state, batch):
    return step(state, frozen, *batch)

  prm_stage = loop.SupervisedStage(
    name=stage,
    num_steps=steps,
    log_every=settings.log_every,
    num_examples=len(labelled.labels),
    batch_size=settings.batch_size,
    tokens_per_example=labelled.responses.completion_mask.sum(1).mean(),
    make_batch=make_batch,
    update=update,
  )
  state = loop.run_stage(run, prm_stage, state)
  return merged(run, lora.join_params(frozen, state.params), model)


def add_adapters(run: Run, params: Any, declared: Any) -> dict[str, Any]:
  """Weights with adapters that do nothing yet beside them."""
  adapters, _ = lora.split_adapters(declared)
  layout = run.spec.layouts.training
  init = jax.jit(
    lambda key: init_params(key, adapters),
    out_shardings=sharding.weight_shardings(adapters, layout),
  )
  return lora.join_params(params, init(run.spec.key(RandomStream.PRM_ADAPTERS)))


def merged(run: Run, params: Any, model: ModelConfig) -> Any:
  """Plain weights: a PRM that is trained is read by who knows no adapters."""
  if model.lora is None:
    return params
  declared = prm.declare_prm(run.spec.prm_model)
  layout = run.spec.layouts.training
  return jax.jit(
    lambda params: lora.merge(params, model),
    out_shardings=sharding.weight_shardings(declared, layout),
  )(params)


def train_prm(run: Run):
  """Runs the stage, or loads what it left.

  Args:
    run: the open run.

  Returns:
    (policy weights, PRM weights), sharded on the layout; None for the latter in
    a run without a PRM.
  """
  policy_params = train_sft.train_policy(run)
  layout = run.spec.layouts.training
  if run.spec.prm_model is None:
    return policy_params, None
  given = run.task.start_prm(layout)
  if given is not None:
    return policy_params, given
  declared = prm.declare_prm(run.spec.prm_model)
  if run.folder.is_done("prm"):
    return policy_params, run.folder.load_weights("prm", declared, layout)
  with run.folder.lock_start():
    return policy_params, _make_prm(run, policy_params, declared)


def _make_prm(run: Run, policy_params: Any, declared: Any) -> Any:
  """Trains the PRM in its two stages, from where it was."""
  settings, layout = run.spec.settings.prm, run.spec.layouts.training
  labelled = run.task.labelled(run.spec, run.batches, policy_params)
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
  begun = (run.folder.start / "prm").exists()
  run.folder.metrics.rewind("prm_eval", 1 if begun else 0)

  def evaluate(params):
    return run.task.evaluate_prm(run.spec, run.batches, policy_params, params)

  # ===== The head =====
  params = train_stage(run, "prm_head", params, labelled)
  # A row that is there stays where it is: those of the next stage follow.
  if settings.evaluate_head and not processes.broadcast_from_zero(
    lambda: run.folder.metrics.has("prm_eval", 0)
  ):
    numbers = run.task.evaluate_prm(
      run.spec, run.batches, policy_params, params
    )
    run.folder.metrics.write("prm_eval", 0, numbers)

  # ===== All parameters =====
  params = train_stage(run, "prm_full", params, labelled)
  numbers = evaluate(params)
  run.folder.metrics.write("prm_eval", settings.full_steps, numbers)
  run.folder.finish_stage("prm", params, numbers)
  return params


def main(argv: list[str]) -> None:
  """Opens the run and trains."""
  del argv
  with cli.from_flags() as run:
    if run.spec.prm_model is None:
      raise ConfigError(
        "rl.credit.process_coef=0 without files.prm and files.labelled has no "
        "PRM to train: name labelled solutions with files.labelled."
      )
    train_prm(run)
    run.folder.draw_curves()


if __name__ == "__main__":
  cli.run(main)
