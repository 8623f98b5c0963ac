"""Stage 1: the supervised start, maximum likelihood on demonstrations.

  python experiments/train_sft.py \\
    --config=experiments/configs/arithmetic.py --workdir=DIR

The script writes the policy to DIR/sft and curves to DIR/curves.png. The same
command continues an interrupted run from its last checkpoint.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

from typing import Any

import cli

from pure_jax.models import policy
from pure_jax.runs import loop
from pure_jax.runs.batches import take_rows
from pure_jax.runs.run import Run
from pure_jax.runs.spec import RandomStream
from pure_jax.training import supervised, train
from pure_jax.training.optim import make_optimizer


def train_policy(run: Run):
  """Trains the policy, or loads it from the run's folder or the task."""
  declared = policy.declare_policy(run.spec.model)
  layout = run.spec.layouts.training
  if run.spec.settings.files is not None:
    run.tell("loading the policy")
  given = run.task.start_policy(layout)
  if given is not None:
    return given
  if run.folder.is_done("sft"):
    return run.folder.load_weights("sft", declared, layout)
  with run.folder.lock_start():
    return _make_policy(run, declared)


def _make_policy(run: Run, declared: Any) -> Any:
  """Trains the policy, from the last checkpoint on."""
  # ===== Data =====
  spec, settings = run.spec, run.spec.settings.sft
  layout = spec.layouts.training
  data = run.task.demonstrations()

  # ===== State and step =====
  optimizer = make_optimizer(settings.optim, declared)
  state = train.make_init(declared, optimizer, layout)(
    spec.key(RandomStream.POLICY_WEIGHTS)
  )
  step = supervised.make_supervised_step(
    spec.model, optimizer, spec.sampler.banned_ids, layout
  )

  def make_batch(indices):
    return run.batches.put_rows(
      len(indices), lambda rows: take_rows(data, indices[rows])
    )

  # ===== Loop =====
  stage = loop.SupervisedStage(
    name="sft",
    num_steps=settings.steps,
    log_every=settings.log_every,
    num_examples=len(data.tokens),
    batch_size=settings.batch_size,
    tokens_per_example=data.completion_mask.sum() / len(data.tokens),
    make_batch=make_batch,
    update=step,
  )
  state = loop.run_stage(run, stage, state)
  run.folder.finish_stage("sft", state.params, {"steps": settings.steps})
  return state.params


def main(argv: list[str]) -> None:
  """Opens the run and trains."""
  del argv
  with cli.from_flags("sft") as run:
    train_policy(run)
    run.folder.draw_curves()


if __name__ == "__main__":
  cli.run(main)
