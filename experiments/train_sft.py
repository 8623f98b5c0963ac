"""Stage 1: the supervised start, maximum likelihood on demonstrations.

  python experiments/train_sft.py \\
    --config=experiments/configs/arithmetic.py --workdir=DIR

Leaves the policy in DIR/sft and a picture in DIR/curves.png. Started again, it
continues where it was.
"""

from typing import Any

import cli

from pure_jax.models import policy
from pure_jax.runs import loop, workspace
from pure_jax.training import supervised, train
from pure_jax.training.optim import make_optimizer


def train_policy(space: workspace.Workspace):
  """Runs the stage, or loads what it left or what the task has.

  Args:
    space: the open run.

  Returns:
    The policy's weights, sharded on the mesh.
  """
  declared = policy.declare_policy(space.model)
  given = space.task.start_policy(space)
  if given is not None:
    return given
  if space.is_done("sft"):
    return space.load_weights("sft", declared)
  with space.lock_start():
    return _make_policy(space, declared)


def _make_policy(space: workspace.Workspace, declared: Any) -> Any:
  """Trains the policy, from where it was."""
  # ===== Data =====
  settings = space.settings.sft
  data = space.task.demonstrations(space)

  # ===== State and step =====
  optimizer = make_optimizer(settings.optim)
  state = train.make_init(declared, optimizer, space.layout)(space.key(0))
  step = supervised.make_supervised_step(
    space.model, optimizer, space.sampler.banned_ids, space.layout
  )

  def make_batch(indices):
    return space.put_rows(
      len(indices), lambda rows: workspace.take(data, indices[rows])
    )

  # ===== Loop =====
  state = loop.run_steps(
    space,
    "sft",
    settings.steps,
    settings.log_every,
    state,
    make_batch,
    step,
    num_examples=len(data.tokens),
    batch_size=settings.batch_size,
    tokens_per_example=data.completion_mask.sum() / len(data.tokens),
  )
  space.finish_stage("sft", state.params, {"steps": settings.steps})
  return state.params


def main(argv: list[str]) -> None:
  """Opens the workspace and trains."""
  del argv
  with cli.from_flags() as space:
    train_policy(space)
    space.draw_curves()


if __name__ == "__main__":
  cli.run(main)
