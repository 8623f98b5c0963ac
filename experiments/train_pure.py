"""PURE: reinforcement learning on step rewards, from nothing in one command.

  python experiments/train_pure.py \\
    --config=experiments/configs/arithmetic.py --workdir=DIR

The script runs the stages that DIR lacks (supervised start, PRM), then the
iterations of RL:

  1. encode    host   P prompts, left-padded
  2. generate  jit    G samples of each
  3. score     jit    steps, PRM rewards, old and reference log-probs; with a
                      critic (rl.credit.baseline=gae) also its values
  4. grade     host   the answers, while 3 runs
  5. update    jit    credit, baseline, clipped loss, gradient, AdamW; one
                      update, or several of mini-batches (rl.updates); with
                      rl.online_prm the PRM is updated, too

Metrics of an iteration are logged while the update of the next one runs. The
same command continues an interrupted run exactly: random keys follow from seed
and iteration, and the checkpoint has everything else. After SIGTERM the current
iteration ends and is saved; the exit status is then 75.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import contextlib
import dataclasses
from typing import Any

import cli
import jax
import numpy as np
import train_prm

from pure_jax.host.data.batches import next_batch
from pure_jax.host.data.records import Problem
from pure_jax.host.distributed import preemption, processes
from pure_jax.host.evaluation.rollout_metrics import Metrics
from pure_jax.host.logs import console
from pure_jax.host.logs.console import Progress
from pure_jax.runs import validation
from pure_jax.runs.folder import MAY_DIFFER
from pure_jax.runs.loop import StageCheckpoints, StopConditions
from pure_jax.runs.rl import online_prm, report, roll_backs
from pure_jax.runs.rl.alarms import AlarmWatch
from pure_jax.runs.rl.answers import may_reward
from pure_jax.runs.rl.functions import RLFunctions, make_functions
from pure_jax.runs.rl.prm_labels import label_rollout
from pure_jax.runs.rl.responses import (
  check_drift,
  check_finite,
  gather_facts,
  grade,
  prm_step_metrics,
  put_prm_texts,
  response_metrics,
)
from pure_jax.runs.rl.weights import (
  FrozenWeights,
  RLState,
  freeze,
  start_state,
  trained_weights,
)
from pure_jax.runs.run import Run
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.spec import RandomStream
from pure_jax.training.optim import make_optimizer
from pure_jax.training.score import ScoredBatch


def validate(
  run: Run,
  functions: RLFunctions,
  frozen: FrozenWeights,
  trained: Any,
  step: int,
) -> Metrics:
  """Evaluates on held-out problems and benchmarks; writes metrics and texts.

  Held-out problems get one sample at temperature 1 and a greedy response.
  """
  rl = run.spec.settings.rl
  problems = run.task.held_out[: rl.eval_prompts]
  key = run.spec.key(RandomStream.HELD_OUT_SAMPLES)
  prompts = run.batches.encode_prompts(problems)

  weights = functions.sampling_weights(trained, frozen)
  rollout = functions.generate_held_out(weights, prompts, key)
  prm_texts = put_prm_texts(run, problems, rollout)
  scores = functions.score_held_out(frozen, rollout, prm_texts)
  graded = grade(run, problems, rollout)
  facts = gather_facts(run, graded, rollout, scores)
  metrics = response_metrics(graded, facts)
  metrics |= prm_step_metrics(run, problems, graded, facts)
  if frozen.first_prm is not None:
    first = dataclasses.replace(frozen, prm=frozen.first_prm)
    before = functions.score_held_out(first, rollout, prm_texts)
    metrics["prm_drift"] = online_prm.drift(scores, before)
  generations = validation.held_out_generations(
    run, problems, graded, rollout, scores.step_rewards
  )

  greedy = functions.generate_greedy(weights, prompts, key)
  correct = grade(run, problems, greedy).verdicts.correct
  metrics["greedy_accuracy"] = float(np.mean(correct))

  of_benchmarks, shown = validation.evaluate_benchmarks(
    run, functions, frozen, weights
  )
  metrics |= of_benchmarks
  report.check_best_metric(run, metrics)
  run.folder.metrics.write("rl_eval", step, metrics)
  run.folder.generations.write("rl_eval", step, generations + shown)
  return metrics


def iterate(
  run: Run,
  functions: RLFunctions,
  frozen: FrozenWeights,
  state: RLState,
  step: int,
  problems: list[Problem],
  bar: Progress,
) -> tuple[RLState, report.Iteration]:
  """One iteration of RL: encode, generate, score, grade, update.

  Args:
    run: the open run.
    functions: the compiled functions.
    frozen: the weights that RL does not train.
    state: the states before the updates; donated.
    step: the iteration's number, from 1; its random key follows from it.
    problems: P problems.
    bar: shows which part runs.

  Returns:
    (the next states, the logged data of the iteration), both dispatched.
  """
  rl, clock = run.spec.settings.rl, report.Clock()
  key = jax.random.fold_in(run.spec.key(RandomStream.ROLLOUTS), step - 1)

  # ===== Encode =====
  prompts = run.batches.encode_prompts(problems)
  problems = [p for p in problems for _ in range(rl.samples_per_prompt)]

  # ===== Generate =====
  bar.doing("rollout")
  weights = functions.sampling_weights(state.policy.params, frozen)
  clock.wait("reshard", weights)
  rollout = functions.generate(weights, prompts, key)
  clock.wait("rollout", rollout.tokens)
  del weights  # A copy: the next stages need its memory.

  # ===== Score =====
  bar.doing("score")
  prm_texts = put_prm_texts(run, problems, rollout)
  scores, drift = functions.score_iteration(
    step, state.policy.params, frozen, rollout, prm_texts
  )
  values = functions.values(state, frozen, rollout)

  # ===== Grade, while scores are computed =====
  graded = grade(run, problems, rollout)
  may_use = np.asarray([may_reward(problem, rl) for problem in problems])
  clock.wait("score", (scores.step_rewards, values))
  correct = graded.verdicts.correct.astype(np.float32)
  order = run.spec.mini_batch_order(step)
  outcome = run.batches.put((correct, may_use, order))
  batch = ScoredBatch(rollout, scores, *outcome, values)
  check_finite(run, step, problems, batch)
  check_drift(run, step, drift)

  # ===== Update =====
  bar.doing("update")
  state, metrics = functions.update(step, state, batch, frozen)
  online = functions.online_prm
  if online is not None and online.is_due(step):
    labels = label_rollout(run, problems, graded, batch)
    state, of_prm = online.update(state, rollout, prm_texts, labels)
    metrics = metrics | of_prm
  return state, report.Iteration(
    step, problems, graded, batch, drift, metrics, clock
  )


def run_iterations(
  run: Run,
  functions: RLFunctions,
  frozen: FrozenWeights,
  state: RLState,
  checkpoints: StageCheckpoints,
) -> bool:
  """Runs RL to its last iteration; returns whether it was rolled back before.

  Raises AlarmError if an alarm stops the run, and Preempted after SIGTERM, once
  the state is saved.
  """
  rl, total = run.spec.settings.rl, run.spec.settings.rl.iterations
  updates = (rl.num_updates, rl.num_critic_updates)
  stop = StopConditions(run, "rl", total, checkpoints, *updates)
  saved, done, cursor = checkpoints.resume(state.to_checkpoint())
  state = RLState.from_checkpoint(saved)
  stop.check_resumed(done, state.policy, state.critic)
  frozen = online_prm.refresh(functions.online_prm, 0, state, frozen)
  report.rewind(run, done)
  watch = AlarmWatch(run)
  pending = None  # Logged while the update of the next iteration runs.
  if done < total:
    run.tell("the first evaluation and iteration also compile their programs")
  with contextlib.ExitStack() as opened:
    progress = Progress("rl", total, done, enabled=run.shows_progress)
    bar = opened.enter_context(progress)
    if done == 0:
      bar.doing("evaluation")
      validate(run, functions, frozen, state.policy.params, step=0)
    shutdown = opened.enter_context(preemption.graceful_shutdown())
    for step in range(done + 1, total + 1):
      rows, cursor = next_batch(len(run.task.train), rl.prompts, cursor)
      state, iteration = iterate(
        *(run, functions, frozen, state, step),
        *([run.task.train[row] for row in rows], bar),
      )
      frozen = online_prm.refresh(functions.online_prm, step, state, frozen)
      if pending is not None:
        report.write_iteration(run, bar, pending, watch)
        if roll_backs.begin(run, watch.rolls_back, checkpoints, shutdown):
          return True
      iteration.clock.wait("update", iteration.metrics)
      bar.advance()
      pending = iteration
      reason = stop.reason(iteration.metrics, shutdown)
      evaluates = step % rl.eval_every == 0 or step == total
      is_regular = evaluates or step % rl.checkpoint_every == 0
      if not is_regular and reason is None and not watch.stops:
        continue
      report.write_iteration(run, bar, pending, watch)
      if roll_backs.begin(run, watch.rolls_back, checkpoints, shutdown):
        return True
      pending, metrics = None, None
      if evaluates:
        bar.doing("evaluation")
        metrics = validate(run, functions, frozen, state.policy.params, step)
      saved = state.to_checkpoint()
      checkpoints.save(step, saved, cursor, metrics, regular=is_regular)
      watch.raise_if_stopped(checkpoints)
      facts = {"problems": [p.problem for p in iteration.problems]}
      stop.end(
        reason, shutdown, step, iteration.metrics, iteration.batch, facts
      )
  return False


def train_rl(run: Run) -> dict[str, Any] | None:
  """Runs the stages that are missing, then RL; returns the summary.

  The summary is None in all processes but the first.
  """
  if not run.task.train or not run.task.held_out:
    raise ConfigError(
      "RL needs problems to train on and others to evaluate on: name files "
      "with files.train and files.held_out."
    )
  # Read now, because the summary at the end needs every row.
  processes.on_process_zero(lambda: report.read_evaluations(run))
  while run_until_rolled_back(run):
    pass

  # ===== Summary =====
  run.folder.draw_curves()
  return processes.on_process_zero(lambda: report.summarize(run))


def run_until_rolled_back(run: Run) -> bool:
  """Runs RL to its end or to an alarm that rolls it back.

  Returns whether it was rolled back. The next call then continues from the
  older checkpoint, with the settings of `rl.alarms.roll_back`.
  """
  policy_params, prm_params = train_prm.train_prm(run)
  with StageCheckpoints(
    run,
    run.folder.path / "rl",
    keep_latest=run.spec.settings.rl.checkpoints_kept,
    best_metric=run.spec.settings.best_metric,
    may_differ=MAY_DIFFER,
  ) as checkpoints:
    run = roll_backs.finish(run, checkpoints)

    # ===== Weights, functions and state =====
    frozen = freeze(run.spec, policy_params, prm_params)
    weights = trained_weights(run.spec)
    optimizer = make_optimizer(run.spec.settings.rl.optim, weights)
    functions = make_functions(run.spec, optimizer)
    state = start_state(run.spec, policy_params, optimizer, prm_params)
    del policy_params, prm_params  # The state and the frozen copies remain.

    # ===== Iterations =====
    return run_iterations(run, functions, frozen, state, checkpoints)


def main(argv: list[str]) -> None:
  """Opens the run and trains."""
  del argv
  with cli.from_flags("sft", "prm", "rl") as run:
    summary = train_rl(run)
  if summary is None:
    return
  first, last = (
    "undefined" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
    for row in (summary["first"], summary["last"])
  )
  console.show(
    f"held-out accuracy {first} -> {last}; everything is in {run.folder.path}"
  )


if __name__ == "__main__":
  cli.run(main)
