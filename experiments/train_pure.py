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
again with the same command, a run that was cut off continues exactly: random
keys follow from seed and iteration, all else is in the checkpoint. SIGTERM
lets the iteration under way end and saves it; the exit status is 75 then.
"""

import hashlib
from typing import Any

import cli
import jax
import numpy as np
import train_prm

from pure_jax.host.data import batches
from pure_jax.host.data.records import Problem
from pure_jax.host.distributed import preemption, processes
from pure_jax.host.logs.progress import Progress
from pure_jax.runs import rl_functions, rl_report, workspace
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.rl import RLSettings
from pure_jax.runs.stage_checkpoints import StageCheckpoints
from pure_jax.training import train
from pure_jax.training.optim import make_optimizer


def may_use_answer(problem: Problem, rl: RLSettings) -> bool:
  """Whether the update may use the verdict, the same in every epoch."""
  if rl.reward_mode == "prm":
    return False
  if rl.reward_mode == "prm+vr" and rl.answer_fraction is None:
    return problem.has_answer
  known = problem.has_answer or problem.withheld_answer is not None
  fraction = 1.0 if rl.reward_mode == "vr" else rl.answer_fraction
  text = problem.problem.encode()
  digest = hashlib.blake2b(text, digest_size=4, salt=b"answer").digest()
  return known and int.from_bytes(digest, "little") < fraction * 2**32


def evaluate(
  space: workspace.Workspace,
  functions: rl_functions.Functions,
  frozen: rl_functions.Frozen,
  params: Any,
) -> dict[str, float]:
  """Held-out prompts: one sample at temperature 1, one greedy response."""
  problems = space.task.held_out[: space.settings.rl.eval_prompts]
  prompts = space.encode_prompts(problems)
  prm_prompts = space.put_prm_prompts(problems)
  sampling = frozen.sampler(functions.for_rollout(params))
  rollout = functions.generate_held_out(sampling, prompts, space.key(5))
  scores = functions.score(
    frozen.policy(params), frozen.reference, frozen.prm, rollout, prm_prompts
  )
  texts, verdicts = rl_report.read_responses(space, problems, rollout)
  numbers = rl_report.describe(space, texts, verdicts, rollout, scores)
  greedy = functions.generate_greedy(sampling, prompts, space.key(5))
  _, verdicts = rl_report.read_responses(space, problems, greedy)
  return numbers | {"greedy_accuracy": float(np.mean(verdicts.correct))}


def iterate(
  space: workspace.Workspace,
  functions: rl_functions.Functions,
  frozen: rl_functions.Frozen,
  state: train.TrainState,
  step: int,
  problems: list[Problem],
) -> tuple[train.TrainState, rl_report.Iteration]:
  """One iteration: rollout, scores, verdicts, update.

  Args:
    space: the open run.
    functions: what is compiled.
    frozen: reference and PRM.
    state: before the update; donated.
    step: the iteration's number, from 1; its random key follows from it.
    problems: P problems.

  Returns:
    The next state, on its way, and what is to be reported.
  """
  rl, clock = space.settings.rl, rl_report.Clock()
  prompts = space.encode_prompts(problems)
  key = jax.random.fold_in(space.key(4), step - 1)
  sampling = frozen.sampler(functions.for_rollout(state.params))
  clock.wait("reshard", sampling)
  rollout = functions.generate(sampling, prompts, key)
  clock.wait("rollout", rollout.tokens)
  del sampling  # A copy: its memory is the next stages'.
  problems = [p for p in problems for _ in range(rl.samples_per_prompt)]
  prm_prompts = space.put_prm_prompts(problems)
  scores = functions.score_at(step)(
    frozen.policy(state.params),
    frozen.reference,
    frozen.prm,
    rollout,
    prm_prompts,
  )
  texts, verdicts = rl_report.read_responses(space, problems, rollout)
  known = np.asarray([may_use_answer(problem, rl) for problem in problems])
  clock.wait("score", scores.step_rewards)
  correct, known = space.put((verdicts.correct.astype(np.float32), known))
  batch = {"rollout": rollout, "scores": scores}
  batch |= {"correct": correct, "has_answer": known}
  rl_report.check_finite(space, step, problems, batch)
  rl_report.check_drift(space, step, scores)
  scores = scores.replace(drift_max=None)  # Not every iteration has it.
  state, found = functions.update(
    state, rollout, scores, correct, known, *frozen.base
  )
  return state, rl_report.Iteration(
    step, problems, texts, verdicts, batch, found, clock
  )


def run_iterations(
  space: workspace.Workspace,
  functions: rl_functions.Functions,
  frozen: rl_functions.Frozen,
  state: train.TrainState,
  kept: StageCheckpoints,
) -> None:
  """From the last checkpoint to the last iteration.

  Args:
    space: the open run.
    functions: what is compiled.
    frozen: reference and PRM.
    state: the state at step 0.
    kept: the checkpoints.

  Raises:
    FloatingPointError, Preempted: see `train_rl`.
  """
  rl, total = space.settings.rl, space.settings.rl.iterations
  problems = space.task.train
  state, first, cursor = kept.resume(state)
  rl_report.rewind(space, first)
  if first == 0:
    metrics = evaluate(space, functions, frozen, state.params)
    space.metrics.write("rl_eval", 0, metrics)
  pending = None  # Reported while the next iteration is on its way.
  bar = Progress("rl", total, first, enabled=space.shows_progress)
  with bar, preemption.graceful_shutdown() as stop:
    for step in range(first + 1, total + 1):
      chosen, cursor = batches.next_batch(len(problems), rl.prompts, cursor)
      state, iteration = iterate(
        space, functions, frozen, state, step, [problems[i] for i in chosen]
      )
      if pending is not None:
        rl_report.write_iteration(space, bar, pending)
      iteration.clock.wait("update", iteration.found)
      pending = iteration
      failing, stopping = kept.is_failing(iteration.found), stop.asked()
      evaluates = step % rl.eval_every == 0 or step == total
      regular = evaluates or step % rl.checkpoint_every == 0
      if not regular and not failing and not stopping:
        continue
      rl_report.write_iteration(space, bar, pending)
      pending, metrics = None, None
      if evaluates:
        metrics = evaluate(space, functions, frozen, state.params)
        space.metrics.write("rl_eval", step, metrics)
      kept.save(step, state, cursor, metrics, regular=regular)
      if failing:
        kept.fail(step, iteration.found, iteration.batch, iteration.facts)
      if stopping or stop.asked():
        kept.stop(step)


def train_rl(space: workspace.Workspace) -> dict[str, Any] | None:
  """Runs the stages that are missing, then RL.

  Args:
    space: the open run.

  Returns:
    The summary that summary.json holds as well, in process 0; else None.

  Raises:
    ConfigError: without problems.
    FloatingPointError: if step rewards are not finite, or too many updates
      in a row were not; the batch is saved, and in the second case the state.
    Preempted: after SIGTERM, once the iteration under way is saved.
  """
  if not space.task.train or not space.task.held_out:
    raise ConfigError(
      "RL needs problems to train on and others to evaluate on: name files "
      "with files.train and files.held_out."
    )
  policy_params, prm_params = train_prm.train_prm(space)
  frozen = rl_functions.freeze(space, policy_params, prm_params)

  # ===== Functions and state =====
  rl = space.settings.rl
  optimizer = make_optimizer(rl.optim)
  functions = rl_functions.compile_functions(space, optimizer)
  state = rl_functions.start_state(space, policy_params, optimizer)
  del policy_params, prm_params  # The state and the frozen copies remain.

  # ===== Iterations =====
  with StageCheckpoints(
    space,
    "rl",
    space.workdir / "rl",
    rl.iterations,
    keep_latest=rl.checkpoints_kept,
    best_metric="accuracy",
    may_differ=workspace.MAY_DIFFER,
  ) as kept:
    run_iterations(space, functions, frozen, state, kept)

  # ===== What it came to =====
  space.draw_curves()
  return processes.on_process_zero(lambda: rl_report.summarize(space))


def main(argv: list[str]) -> None:
  """Opens the workspace and trains."""
  del argv
  with cli.from_flags() as space:
    summary = train_rl(space)
  if summary is None:
    return
  print(
    f"held-out accuracy {summary['first']['accuracy']:.3f} -> "
    f"{summary['last']['accuracy']:.3f}; everything is in {space.workdir}"
  )


if __name__ == "__main__":
  cli.run(main)
