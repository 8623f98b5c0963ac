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
from pure_jax.runs import rl_functions, rl_report
from pure_jax.runs.folder import MAY_DIFFER
from pure_jax.runs.run import Run
from pure_jax.runs.settings.run import ConfigError, RLSettings
from pure_jax.runs.spec import RandomStream
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
  run: Run,
  functions: rl_functions.Functions,
  frozen: rl_functions.Frozen,
  params: Any,
) -> dict[str, float]:
  """Held-out prompts: one sample at temperature 1, one greedy response."""
  problems = run.task.held_out[: run.spec.settings.rl.eval_prompts]
  prompts = run.batches.encode_prompts(problems)
  prm_prompts = run.batches.put_prm_prompts(problems)
  sampling = frozen.sampler(functions.for_rollout(params))
  key = run.spec.key(RandomStream.HELD_OUT_SAMPLES)
  rollout = functions.generate_held_out(sampling, prompts, key)
  scores = functions.score(
    frozen.policy(params), frozen.reference, frozen.prm, rollout, prm_prompts
  )
  texts, verdicts = rl_report.read_responses(run, problems, rollout)
  numbers = rl_report.describe(run, texts, verdicts, rollout, scores)
  greedy = functions.generate_greedy(sampling, prompts, key)
  _, verdicts = rl_report.read_responses(run, problems, greedy)
  return numbers | {"greedy_accuracy": float(np.mean(verdicts.correct))}


def iterate(
  run: Run,
  functions: rl_functions.Functions,
  frozen: rl_functions.Frozen,
  state: train.TrainState,
  step: int,
  problems: list[Problem],
) -> tuple[train.TrainState, rl_report.Iteration]:
  """One iteration: rollout, scores, verdicts, update.

  Args:
    run: the open run.
    functions: what is compiled.
    frozen: reference and PRM.
    state: before the update; donated.
    step: the iteration's number, from 1; its random key follows from it.
    problems: P problems.

  Returns:
    The next state, on its way, and what is to be reported.
  """
  rl, clock = run.spec.settings.rl, rl_report.Clock()
  prompts = run.batches.encode_prompts(problems)
  key = jax.random.fold_in(run.spec.key(RandomStream.ROLLOUTS), step - 1)
  sampling = frozen.sampler(functions.for_rollout(state.params))
  clock.wait("reshard", sampling)
  rollout = functions.generate(sampling, prompts, key)
  clock.wait("rollout", rollout.tokens)
  del sampling  # A copy: its memory is the next stages'.
  problems = [p for p in problems for _ in range(rl.samples_per_prompt)]
  prm_prompts = run.batches.put_prm_prompts(problems)
  scores = functions.score_at(step)(
    frozen.policy(state.params),
    frozen.reference,
    frozen.prm,
    rollout,
    prm_prompts,
  )
  texts, verdicts = rl_report.read_responses(run, problems, rollout)
  known = np.asarray([may_use_answer(problem, rl) for problem in problems])
  clock.wait("score", scores.step_rewards)
  correct, known = run.batches.put((verdicts.correct.astype(np.float32), known))
  batch = {"rollout": rollout, "scores": scores}
  batch |= {"correct": correct, "has_answer": known}
  rl_report.check_finite(run, step, problems, batch)
  rl_report.check_drift(run, step, scores)
  scores = scores.replace(drift_max=None)  # Not every iteration has it.
  state, found = functions.update(
    state, rollout, scores, correct, known, *frozen.base
  )
  return state, rl_report.Iteration(
    step, problems, texts, verdicts, batch, found, clock
  )


def run_iterations(
  run: Run,
  functions: rl_functions.Functions,
  frozen: rl_functions.Frozen,
  state: train.TrainState,
  kept: StageCheckpoints,
) -> None:
  """From the last checkpoint to the last iteration.

  Args:
    run: the open run.
    functions: what is compiled.
    frozen: reference and PRM.
    state: the state at step 0.
    kept: the checkpoints.

  Raises:
    FloatingPointError, Preempted: see `train_rl`.
  """
  rl, total = run.spec.settings.rl, run.spec.settings.rl.iterations
  problems = run.task.train
  state, first, cursor = kept.resume(state)
  rl_report.rewind(run, first)
  if first == 0:
    metrics = evaluate(run, functions, frozen, state.params)
    run.folder.metrics.write("rl_eval", 0, metrics)
  pending = None  # Reported while the next iteration is on its way.
  bar = Progress("rl", total, first, enabled=run.shows_progress)
  with bar, preemption.graceful_shutdown() as stop:
    for step in range(first + 1, total + 1):
      chosen, cursor = batches.next_batch(len(problems), rl.prompts, cursor)
      state, iteration = iterate(
        run, functions, frozen, state, step, [problems[i] for i in chosen]
      )
      if pending is not None:
        rl_report.write_iteration(run, bar, pending)
      iteration.clock.wait("update", iteration.found)
      pending = iteration
      failing, stopping = kept.is_failing(iteration.found), stop.asked()
      evaluates = step % rl.eval_every == 0 or step == total
      regular = evaluates or step % rl.checkpoint_every == 0
      if not regular and not failing and not stopping:
        continue
      rl_report.write_iteration(run, bar, pending)
      pending, metrics = None, None
      if evaluates:
        metrics = evaluate(run, functions, frozen, state.params)
        run.folder.metrics.write("rl_eval", step, metrics)
      kept.save(step, state, cursor, metrics, regular=regular)
      if failing:
        kept.fail(step, iteration.found, iteration.batch, iteration.facts)
      if stopping or stop.asked():
        kept.stop(step)


def train_rl(run: Run) -> dict[str, Any] | None:
  """Runs the stages that are missing, then RL.

  Args:
    run: the open run.

  Returns:
    The summary that summary.json holds as well, in process 0; else None.

  Raises:
    ConfigError: without problems.
    FloatingPointError: if step rewards are not finite, or too many updates
      in a row were not; the batch is saved, and in the second case the state.
    Preempted: after SIGTERM, once the iteration under way is saved.
  """
  if not run.task.train or not run.task.held_out:
    raise ConfigError(
      "RL needs problems to train on and others to evaluate on: name files "
      "with files.train and files.held_out."
    )
  policy_params, prm_params = train_prm.train_prm(run)
  frozen = rl_functions.freeze(run.spec, policy_params, prm_params)

  # ===== Functions and state =====
  rl = run.spec.settings.rl
  optimizer = make_optimizer(rl.optim)
  functions = rl_functions.compile_functions(run.spec, optimizer)
  state = rl_functions.start_state(run.spec, policy_params, optimizer)
  del policy_params, prm_params  # The state and the frozen copies remain.

  # ===== Iterations =====
  with StageCheckpoints(
    run,
    "rl",
    run.folder.path / "rl",
    rl.iterations,
    keep_latest=rl.checkpoints_kept,
    best_metric="accuracy",
    may_differ=MAY_DIFFER,
  ) as kept:
    run_iterations(run, functions, frozen, state, kept)

  # ===== What it came to =====
  run.folder.draw_curves()
  return processes.on_process_zero(lambda: rl_report.summarize(run))


def main(argv: list[str]) -> None:
  """Opens the run and trains."""
  del argv
  with cli.from_flags() as run:
    summary = train_rl(run)
  if summary is None:
    return
  print(
    f"held-out accuracy {summary['first']['accuracy']:.3f} -> "
    f"{summary['last']['accuracy']:.3f}; everything is in {run.folder.path}"
  )


if __name__ == "__main__":
  cli.run(main)
