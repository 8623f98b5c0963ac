"""Stage 1: the supervised start, maximum likelihood on demonstrations.

  python experiments/train_sft.py \\
    --config=experiments/configs/arithmetic.py --workdir=DIR

Leaves the policy in DIR/sft. Started again, it continues where it was.
"""

import jax
import numpy as np
import workspace
from absl import app

from pure_jax.host.data import batches
from pure_jax.models import policy
from pure_jax.training import stages, train
from pure_jax.training.optim import make_optimizer
from pure_jax.training.stages import Demonstrations


def encode(space: workspace.Workspace, rows: list[dict]) -> Demonstrations:
  """Tokenises demonstrations: prompts left-padded, responses right-padded."""
  tokenizer, rl = space.tokenizer, space.settings.rl
  prompts = [tokenizer.encode(row["problem"]) for row in rows]
  responses = [
    [*tokenizer.encode(row["response"]), tokenizer.eos_id] for row in rows
  ]
  prompt = batches.left_pad(prompts, space.prompt_tokens, tokenizer.pad_id)
  response = batches.right_pad(responses, rl.max_new_tokens, tokenizer.pad_id)
  return Demonstrations(*prompt, *response)


def train_policy(space: workspace.Workspace):
  """Runs the stage, or loads what it left.

  Args:
    space: the run's workspace.

  Returns:
    The policy's weights, sharded on the mesh.
  """
  folder = space.start / "sft"
  declared = policy.declare_policy(space.model)
  if (folder / "done.json").exists():
    return space.load_weights(folder, declared)

  # ===== Data =====
  settings = space.settings.sft
  rows = space.demonstrations(settings.demonstrations)
  data = encode(space, rows)

  # ===== State and step =====
  optimizer = make_optimizer(settings.optim)
  key = jax.random.key(space.settings.seed)
  state = train.make_init(declared, optimizer, space.mesh)(key)
  step = stages.make_supervised_step(
    space.model, optimizer, space.sampler.banned_ids, space.mesh
  )

  def update(state, indices):
    batch = jax.tree.map(lambda x: x[indices], data)
    return step(state, space.put_rows(batch))

  # ===== Loop =====
  state = workspace.run_steps(
    space,
    workspace.Stage("sft", settings.steps, settings.log_every),
    state,
    update,
    num_examples=len(rows),
    batch_size=settings.batch_size,
    tokens_per_example=float(np.mean(data.completion_mask.sum(1))),
  )
  space.save_weights(folder, state.params)
  return state.params


def main(argv: list[str]) -> None:
  """Opens the workspace and trains."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  with workspace.from_flags() as space:
    train_policy(space)


if __name__ == "__main__":
  workspace.run(main)
