"""PURE: reinforcement learning on step rewards, from nothing in one command.

  python experiments/train_pure.py \\
    --config=experiments/configs/arithmetic.py --workdir=DIR

Runs whatever stage DIR lacks (supervised start, PRM), then one iteration of
RL after the other:

  1. prompt batch   host   P prompts, left-padded
  2. rollout        jit    G samples each
  3. scores         jit    steps, PRM rewards, old and reference log-probs
  4. verdicts       host   the answers graded, while 3 runs
  5. update         jit    credit, baseline, clipped loss, gradient, AdamW

Metrics of an iteration are read after the next one is on its way. Started
again with the same command, a run that was cut off continues exactly.
"""

import dataclasses
import hashlib
import time

import jax
import numpy as np
import rl_report
import train_prm
import workspace

from pure_jax.host import curves
from pure_jax.host.checkpoint import Checkpoints
from pure_jax.host.data import batches
from pure_jax.host.progress import Progress
from pure_jax.host.workdir import write_json_atomic
from pure_jax.models import policy
from pure_jax.training import score, train
from pure_jax.training.optim import make_optimizer


def has_answer(problem: str, fraction: float) -> bool:
  """Whether this prompt's answer may be used, the same in every epoch."""
  digest = hashlib.blake2b(problem.encode(), digest_size=4, salt=b"answer")
  return int.from_bytes(digest.digest(), "little") < fraction * 2**32


@dataclasses.dataclass(frozen=True)
class Functions:
  """The compiled functions of a run."""

  generate: object
  generate_greedy: object
  generate_held_out: object
  score: object
  update: object


def compile_functions(space: workspace.Workspace, optimizer) -> Functions:
  """Builds the jit boundary from the run's settings."""
  rl = space.settings.rl
  greedy = dataclasses.replace(
    space.sampler, temperature=0.0, top_p=1.0, top_k=0
  )
  plain = dataclasses.replace(greedy, temperature=1.0)
  return Functions(
    generate=train.make_generate(
      space.model, space.sampler, rl.samples_per_prompt, space.mesh
    ),
    generate_greedy=train.make_generate(space.model, greedy, 1, space.mesh),
    generate_held_out=train.make_generate(space.model, plain, 1, space.mesh),
    score=score.make_score(
      space.model,
      space.prm_model,
      space.sampler,
      rl.score_config(space.settings.prm.separator),
      space.table,
      space.mesh,
    ),
    update=train.make_update(
      space.model,
      space.sampler,
      rl.credit_config(),
      rl.loss_config(),
      optimizer,
      space.table,
      space.mesh,
      rl.micro_batches,
    ),
  )


def evaluate(space, functions, params, reference, prm_params) -> dict:
  """Held-out prompts: one sample at temperature 1, one greedy response."""
  problems = [row["problem"] for row in space.rows["held_out"]]
  problems = problems[: space.settings.rl.eval_prompts]
  prompts = space.encode_prompts(problems)
  rollout = functions.generate_held_out(params, prompts, space.key(5))
  scores = functions.score(params, reference, prm_params, rollout)
  texts, right = rl_report.read_responses(space, problems, rollout)
  numbers = rl_report.describe(texts, right, rollout, scores)
  greedy = functions.generate_greedy(params, prompts, space.key(5))
  _, right = rl_report.read_responses(space, problems, greedy)
  return numbers | {"greedy_accuracy": float(np.mean(right))}


def train_rl(space: workspace.Workspace) -> dict:
  """Runs the stages that are missing, then RL.

  Args:
    space: the open run.

  Returns:
    The summary that is also written to summary.json.

  Raises:
    FloatingPointError: if step rewards are not finite, or too many updates
      in a row were not; the last checkpoint stays as it is.
  """
  began = time.perf_counter()
  reference, prm_params = train_prm.train_prm(space)
  stage_seconds = time.perf_counter() - began

  # ===== State, or where a run was cut off =====
  rl = space.settings.rl
  optimizer = make_optimizer(rl.optim)
  functions = compile_functions(space, optimizer)
  state = train.start_state(
    reference, policy.declare_policy(space.model), optimizer, space.mesh
  )
  problems = [row["problem"] for row in space.rows["train"]]
  cursor, first = batches.Cursor(space.settings.seed), 0
  checkpoints = Checkpoints(
    space.workdir / "rl",
    keep_latest=rl.checkpoints_kept,
    best_metric="accuracy",
  )
  restored = checkpoints.restore_latest(state)
  if restored is not None:
    state, first = restored.state, restored.step
    cursor = batches.Cursor(**restored.extra["cursor"])
  for stage, start in (("rl", first + 1), ("rl_eval", first)):
    space.metrics.rewind(stage, start if first else 0)
  space.samples.rewind("rl", first + 1)

  # ===== Iterations =====
  key, pending = space.key(4), None
  bar = Progress("rl", rl.iterations, first, enabled=space.settings.progress)
  with checkpoints, bar:
    if first == 0:
      found = evaluate(space, functions, state.params, reference, prm_params)
      space.metrics.write("rl_eval", 0, found)
    for iteration in range(first, rl.iterations):
      clock = rl_report.Clock()
      indices, cursor = batches.next_batch(len(problems), rl.prompts, cursor)
      chosen = [problems[i] for i in indices]
      rollout = functions.generate(
        state.params,
        space.encode_prompts(chosen),
        jax.random.fold_in(key, iteration),
      )
      clock.wait("rollout", rollout.tokens)
      scores = functions.score(state.params, reference, prm_params, rollout)
      chosen = [p for p in chosen for _ in range(rl.samples_per_prompt)]
      texts, right = rl_report.read_responses(space, chosen, rollout)
      known = [has_answer(p, rl.has_answer_fraction()) for p in chosen]
      clock.wait("score", scores.step_rewards)
      rl_report.check_finite(scores, iteration)
      verdicts = space.put((right.astype(np.float32), np.asarray(known)))
      state, found = functions.update(state, rollout, scores, *verdicts)
      if pending is not None:
        rl_report.write_iteration(space, bar, pending)
      clock.wait("update", found)
      pending = rl_report.Iteration(
        iteration + 1, chosen, texts, right, rollout, scores, found, clock
      )
      done = iteration + 1
      last = done == rl.iterations
      if done % rl.eval_every == 0 or last or done % rl.checkpoint_every == 0:
        rl_report.write_iteration(space, bar, pending)
        pending = None
        metrics = None
        if done % rl.eval_every == 0 or last:
          metrics = evaluate(
            space, functions, state.params, reference, prm_params
          )
          space.metrics.write("rl_eval", done, metrics)
        checkpoints.save(
          done, state, {"cursor": dataclasses.asdict(cursor)}, metrics
        )

  # ===== What it came to =====
  summary = rl_report.summarize(space, stage_seconds)
  write_json_atomic(space.workdir / "summary.json", summary)
  curves.plot_curves(
    space.workdir / "metrics.jsonl", space.workdir / "curves.png"
  )
  return summary


def main(argv: list[str]) -> None:
  """Opens the workspace and trains."""
  del argv
  with workspace.from_flags() as space:
    summary = train_rl(space)
  print(
    f"accuracy {summary['first']['accuracy']:.3f} -> "
    f"{summary['last']['accuracy']:.3f}, results in {space.workdir}"
  )


if __name__ == "__main__":
  workspace.run(main)
