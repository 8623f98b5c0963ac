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
from pure_jax.runs import loop, workspace
from pure_jax.runs.evaluation import labelled_rows
from pure_jax.runs.settings.run import ConfigError
from pure_jax.training import supervised, train
from pure_jax.training.optim import make_optimizer


def train_stage(
  space: workspace.Workspace,
  stage: str,
  params: Any,
  labelled: workspace.LabelledResponses,
) -> Any:
  """One of the two stages of PRM training.

  Args:
    space: the open run.
    stage: "prm_head" trains the head alone, "prm_full" everything.
    params: PRM weights to start from.
    labelled: what it learns from.

  Returns:
    The PRM's weights after it.
  """
  settings, head_only = space.settings.prm, stage == "prm_head"
  steps, optim = settings.full_steps, settings.full_optim
  if head_only:
    steps, optim = settings.head_steps, settings.head_optim
  optimizer = make_optimizer(optim)
  model = space.prm_model
  if not head_only:
    model = settings.lora.of(model)
  declared = prm.declare_prm(model)
  if model.lora is not None:
    params = add_adapters(space, params, declared)
  step = supervised.make_prm_step(
    model,
    space.prm_score_config,
    optimizer,
    space.table,
    space.layout,
    head_only,
  )
  trained, frozen = supervised.split_prm_params(params, head_only)
  declared, _ = supervised.split_prm_params(declared, head_only)
  state = train.start_state(trained, declared, optimizer, space.layout)

  def make_batch(indices):
    # The columns that the whole batch needs, whoever makes which rows.
    batch = workspace.take(labelled.responses, indices)
    batch = labelled_rows.crop(batch, settings.length_multiple)
    labels = labelled.labels[indices], labelled.label_mask[indices]
    return space.put((batch, *labels))

  def update(state, batch):
    return step(state, frozen, *batch)

  state = loop.run_steps(
    space,
    stage,
    steps,
    settings.log_every,
    state,
    make_batch,
    update,
    num_examples=len(labelled.labels),
    batch_size=settings.batch_size,
    tokens_per_example=labelled.responses.completion_mask.sum(1).mean(),
  )
  return merged(space, lora.join_params(frozen, state.params), model)


def add_adapters(
  space: workspace.Workspace, params: Any, declared: Any
) -> dict[str, Any]:
  """Weights with adapters that do nothing yet beside them."""
  adapters, _ = lora.split_adapters(declared)
  init = jax.jit(
    lambda key: init_params(key, adapters),
    out_shardings=sharding.weight_shardings(adapters, space.layout),
  )
  return lora.join_params(params, init(space.key(7)))


def merged(space: workspace.Workspace, params: Any, model: ModelConfig) -> Any:
  """Plain weights: a PRM that is trained is read by who knows no adapters."""
  if model.lora is None:
    return params
  declared = prm.declare_prm(space.prm_model)
  return jax.jit(
    lambda params: lora.merge(params, model),
    out_shardings=sharding.weight_shardings(declared, space.layout),
  )(params)


def train_prm(space: workspace.Workspace):
  """Runs the stage, or loads what it left.

  Args:
    space: the open run.

  Returns:
    (policy weights, PRM weights), sharded on the layout; None for the latter in
    a run without a PRM.
  """
  policy_params = train_sft.train_policy(space)
  if space.prm_model is None:
    return policy_params, None
  given = space.task.start_prm(space)
  if given is not None:
    return policy_params, given
  declared = prm.declare_prm(space.prm_model)
  if space.is_done("prm"):
    return policy_params, space.load_weights("prm", declared)
  with space.lock_start():
    return policy_params, _make_prm(space, policy_params, declared)


def _make_prm(
  space: workspace.Workspace, policy_params: Any, declared: Any
) -> Any:
  """Trains the PRM in its two stages, from where it was."""
  settings = space.settings.prm
  labelled = space.task.labelled(space, policy_params)
  init = jax.jit(
    lambda key, start: prm.init_prm_from_policy(
      key, start, space.model, settings.extra_layers
    ),
    out_shardings=sharding.weight_shardings(declared, space.layout),
  )
  params = init(space.key(3), policy_params)
  begun = (space.start / "prm").exists()
  space.metrics.rewind("prm_eval", 1 if begun else 0)

  # ===== The head =====
  params = train_stage(space, "prm_head", params, labelled)
  # A row that is there stays where it is: those of the next stage follow.
  if settings.evaluate_head and not processes.broadcast_from_zero(
    lambda: space.metrics.has("prm_eval", 0)
  ):
    numbers = space.task.evaluate_prm(space, policy_params, params)
    space.metrics.write("prm_eval", 0, numbers)

  # ===== All parameters =====
  params = train_stage(space, "prm_full", params, labelled)
  numbers = space.task.evaluate_prm(space, policy_params, params)
  space.metrics.write("prm_eval", settings.full_steps, numbers)
  space.finish_stage("prm", params, numbers)
  return params


def main(argv: list[str]) -> None:
  """Opens the workspace and trains."""
  del argv
  with cli.from_flags() as space:
    if space.prm_model is None:
      raise ConfigError(
        "rl.reward_mode='vr' without files.prm and files.labelled has no PRM "
        "to train: name labelled solutions with files.labelled."
      )
    train_prm(space)
    space.draw_curves()


if __name__ == "__main__":
  cli.run(main)
