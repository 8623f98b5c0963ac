"""Stage 2: the process reward model, head first, then everything.

  python experiments/train_prm.py \\
    --config=experiments/configs/arithmetic.py --workdir=DIR

Starts from the policy's trunk (and trains the policy first if DIR has none),
judges demonstrations and the policy's own samples with the world's checker,
and leaves the PRM in DIR/prm. Started again, it continues where it was.
"""

from typing import Any

import jax
import numpy as np
import supervised
import train_sft
import workspace

from pure_jax.host.contract import split_texts
from pure_jax.host.data.arithmetic import grade, parse_problem
from pure_jax.host.data.arithmetic_dataset import label_rollout
from pure_jax.models import prm
from pure_jax.parallel import sharding
from pure_jax.training import stages, train
from pure_jax.training.optim import make_optimizer
from pure_jax.training.score import ScoreConfig
from pure_jax.training.stages import Demonstrations

SAMPLE_ROWS = 1024  # Responses sampled at a time.


def sample_policy(
  space: workspace.Workspace, params, problems: list[str], key: jax.Array
) -> tuple[list[str], Demonstrations]:
  """One response to each problem, as host arrays.

  Args:
    space: the open run.
    params: policy weights.
    problems: problem texts; a repeated one gets another response each time.
    key: consumed.

  Returns:
    (the problems, prompts and responses), rows in the order of `problems`.
  """
  generate = train.make_generate(
    space.model, space.sampler, group_size=1, mesh=space.mesh
  )
  devices = space.mesh.size
  rows = -(-min(SAMPLE_ROWS, len(problems)) // devices) * devices
  parts = []
  for first in range(0, len(problems), rows):
    # The last part is filled up with problems of the first: one shape only.
    chosen = [problems[i % len(problems)] for i in range(first, first + rows)]
    prompts = space.encode_prompts(chosen)
    part = generate(params, prompts, jax.random.fold_in(key, first))
    parts.append(
      jax.device_get(
        Demonstrations(
          part.prompt_tokens,
          part.prompt_mask,
          part.tokens,
          part.completion_mask,
        )
      )
    )
  joined = jax.tree.map(lambda *x: np.concatenate(x)[: len(problems)], *parts)
  return problems, joined


def judged_data(space: workspace.Workspace, params):
  """Judged responses and policy samples with the checker's labels.

  Args:
    space: the open run.
    params: policy weights.

  Returns:
    (responses, labels [n, S] int32, label mask [n, S] bool).
  """
  settings = space.settings.prm
  rows, shown = space.encode_demonstrations(space.rows["judged"])
  problems = [row["problem"] for row in space.rows["train"]]
  problems = problems[: settings.policy_prompts] * settings.policy_samples
  problems, sampled = sample_policy(space, params, problems, space.key(1))
  data = jax.tree.map(lambda *x: np.concatenate(x), shown, sampled)
  labels = label_rollout(
    space.tokenizer,
    [row["problem"] for row in rows] + problems,
    data.tokens,
    data.completion_mask,
    space.settings.rl.max_steps,
  )
  return data, *labels


def evaluate_prm(space: workspace.Workspace, policy_params, params) -> dict:
  """Judges the PRM on the policy's samples for held-out prompts.

  Args:
    space: the open run.
    policy_params: weights of the policy that is sampled.
    params: PRM weights.

  Returns:
    Step accuracy, its mean over the two classes, and the share of wrong
    answers whose every step scores above 0: the door to hacking.
  """
  settings = space.settings
  problems = [row["problem"] for row in space.rows["held_out"]]
  problems = problems[: settings.prm.eval_prompts]
  problems *= settings.prm.policy_samples
  problems, data = sample_policy(space, policy_params, problems, space.key(2))
  labels, label_mask = label_rollout(
    space.tokenizer,
    problems,
    data.tokens,
    data.completion_mask,
    settings.rl.max_steps,
  )
  score = stages.make_prm_evaluation(
    space.prm_model,
    ScoreConfig(settings.rl.max_steps, settings.prm.separator),
    space.table,
    space.mesh,
  )
  rewards = np.asarray(score(params, space.put(data)))
  good, kept = labels == 1, label_mask
  right = (rewards > 0) == good
  texts = split_texts(space.tokenizer, data.tokens, data.completion_mask)
  wrong = ~np.asarray(
    [
      grade(parse_problem(problem), "\n\n".join(steps))
      for problem, steps in zip(problems, texts, strict=True)
    ]
  )
  steps_there = np.asarray([min(len(t), rewards.shape[1]) for t in texts])
  exists = np.arange(rewards.shape[1]) < steps_there[:, None]
  worst = np.where(exists, rewards, np.inf).min(1)
  numbers = {
    "step_accuracy": right[kept].mean(),
    "good_recall": right[kept & good].mean(),
    "bad_recall": right[kept & ~good].mean(),
    "policy_accuracy": 1 - wrong.mean(),
  }
  numbers["balanced_accuracy"] = (
    numbers["good_recall"] + numbers["bad_recall"]
  ) / 2
  if wrong.any():
    numbers["hacked_given_wrong"] = (worst[wrong] > 0).mean()
  return {name: float(value) for name, value in numbers.items()}


def train_stage(
  space: workspace.Workspace, stage: str, params: Any, data: tuple
) -> Any:
  """One of the two stages of PRM training.

  Args:
    space: the open run.
    stage: "prm_head" trains the head alone, "prm_full" everything.
    params: PRM weights to start from.
    data: responses, labels and label mask, from `judged_data`.

  Returns:
    The PRM's weights after it.
  """
  settings, head_only = space.settings.prm, stage == "prm_head"
  steps, optim = settings.full_steps, settings.full_optim
  if head_only:
    steps, optim = settings.head_steps, settings.head_optim
  optimizer = make_optimizer(optim)
  step = stages.make_prm_step(
    space.prm_model,
    ScoreConfig(space.settings.rl.max_steps, settings.separator),
    optimizer,
    space.table,
    space.mesh,
    head_only,
  )
  trained, frozen = stages.split_prm_params(params, head_only)
  declared = prm.declare_prm(space.prm_model)
  declared, _ = stages.split_prm_params(declared, head_only)
  state = train.start_state(trained, declared, optimizer, space.mesh)

  def update(state, indices):
    batch = jax.tree.map(lambda x: x[indices], data)
    return step(state, frozen, *space.put(batch))

  state = supervised.run_steps(
    space,
    stage,
    steps,
    settings.log_every,
    state,
    update,
    num_examples=len(data[1]),
    batch_size=settings.batch_size,
    tokens_per_example=data[0].completion_mask.sum() / len(data[0].tokens),
  )
  return frozen | state.params


def train_prm(space: workspace.Workspace):
  """Runs the stage, or loads what it left.

  Args:
    space: the open run.

  Returns:
    (policy weights, PRM weights), sharded on the mesh.
  """
  policy_params = train_sft.train_policy(space)
  declared = prm.declare_prm(space.prm_model)
  if space.is_done("prm"):
    return policy_params, space.load_weights("prm", declared)

  # ===== Two stages: the head, then all parameters =====
  settings = space.settings.prm
  data = judged_data(space, policy_params)
  init = jax.jit(
    lambda key, start: prm.init_prm_from_policy(
      key, start, space.model, settings.extra_layers
    ),
    out_shardings=sharding.weight_shardings(declared, space.mesh),
  )
  params = init(space.key(3), policy_params)
  params = train_stage(space, "prm_head", params, data)
  params = train_stage(space, "prm_full", params, data)

  # ===== How good it is =====
  numbers = evaluate_prm(space, policy_params, params)
  space.metrics.rewind("prm_eval", 0)
  space.metrics.write("prm_eval", settings.full_steps, numbers)
  space.finish_stage("prm", params, numbers)
  return policy_params, params


def main(argv: list[str]) -> None:
  """Opens the workspace and trains."""
  del argv
  with workspace.from_flags() as space:
    train_prm(space)


if __name__ == "__main__":
  workspace.run(main)
