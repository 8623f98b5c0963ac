"""Prepares a baseline for a case, and checks that it computes the same as ours.

Each program gets our weights as a folder and our batch as lists, and times
itself. A result that differs from ours in float32 raises `BenchmarkError`.
"""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks import batches
from benchmarks.baselines.process import Process
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import init_cast_policy, init_policy, init_prm
from benchmarks.suites.iteration import IterationReference
from benchmarks.suites.training import OPTIMIZER, SCORING, step_spec
from benchmarks.timing import Arm
from pure_jax.advantages import pure_advantages
from pure_jax.host import huggingface
from pure_jax.parallel import sharding
from pure_jax.training import rollouts
from pure_jax.training.micro_batches import count_micro_batches
from pure_jax.training.score import prm_inputs
from pure_jax.training.train import experience_from
from pure_jax.types import Experience

# Tokens of the longest text, as the config of an exported model states them.
MAX_POSITIONS = 2**15
# Tokens that are compared: enough to go through prefill and decoding.
COMPARED_TOKENS = 16
# In float32: of log-probs in nats, rewards and the loss of an iteration, and of
# the gradient's norm as a share; of loss and norm of an update as a share.
MOST_DIFFERENT = 1e-3
# Label of a token that transformers' losses leave out.
UNLABELLED = -100
# The fields of our optimizer under the names of transformers.
TRAINING_ARGUMENTS = {
  "learning_rate": OPTIMIZER.learning_rate,
  "weight_decay": OPTIMIZER.weight_decay,
  "adam_beta1": OPTIMIZER.beta1,
  "adam_beta2": OPTIMIZER.beta2,
  "max_grad_norm": OPTIMIZER.max_grad_norm,
}


def _load(process: Process, case: Case, *kinds: str) -> dict[str, Any]:
  """Exports our weights, "policy" or "prm", and has the process read them.

  Returns the versions of its packages.
  """
  model = case.model_config
  writers = {
    "policy": (huggingface.export_policy, init_policy),
    "prm": (huggingface.export_prm, init_prm),
  }
  with tempfile.TemporaryDirectory() as folder:
    paths = {kind: str(pathlib.Path(folder) / kind) for kind in kinds}
    for kind, path in paths.items():
      export, init = writers[kind]
      export(path, init(case), model, max_positions=MAX_POSITIONS)
    return process.call("load", **paths, dtype=case.options.dtype)


def _arm(
  process: Process,
  case: Case,
  ours: Arm,
  info: Mapping[str, Any],
  ran: bool = False,
) -> Arm:
  """The arm of the process's `run`.

  A run that samples must draw as many tokens as ours. `info` has the versions
  and the agreement with ours; the peak memory is added by each run.
  """
  baseline = dict(info)

  def run() -> float:
    answer = process.call("run")
    baseline["peak_bytes"] = answer["peak_bytes"]
    if answer.get("tokens", ours.work) != ours.work:
      raise BenchmarkError(
        f"{case}: {process.name} drew {answer['tokens']} tokens, not "
        f"{ours.work}: the times cannot be compared."
      )
    return answer["seconds"]

  return Arm(run, ours.work, baseline=baseline, ran=ran)


def prepare_sampler(process: Process, case: Case, ours: Arm) -> Arm:
  """Prepares a sampler and compares greedy tokens.

  Sampling is timed. A row of the baseline ends where ours did, so that both
  draw the same number of tokens in the same number of steps. tunix cannot end
  a row at a given length: it takes as many steps as the longest response
  needs, and tokens after the end of a row do not count. Its own loop also goes
  on decoding ended rows until the last one ends.
  """
  weights = case.model_config, case.options.weights
  if process.loaded is None or process.loaded[0] != weights:
    process.loaded = weights, _load(process, case, "policy")
  _, info = process.loaded
  equal = _compare_greedy_tokens(process, case)
  process.call(
    "prepare",
    tokens=batches.draw_prompts(case).tokens,
    samples=case.samples,
    new_tokens=case.new_tokens,
    pad_id=batches.PAD_ID,
    lengths=ours.reference if case.stops != "never" else None,
    greedy=False,
  )
  return _arm(process, case, ours, {**info, "greedy_tokens_equal": equal})


def _compare_greedy_tokens(process: Process, case: Case) -> float:
  """Decodes greedily in both; returns the share of equal tokens."""
  new_tokens = min(COMPARED_TOKENS, case.new_tokens)
  prompts, layout = batches.draw_prompts(case), sharding.make_layout()
  sampler = batches.plain_sampler(new_tokens, temperature=0.0)
  generate = rollouts.make_generate(case.model_config, sampler, 1, layout)
  ours = generate(init_cast_policy(case), prompts, jax.random.key(0))
  process.call(
    "prepare",
    tokens=prompts.tokens,
    samples=1,
    new_tokens=new_tokens,
    pad_id=batches.PAD_ID,
    lengths=None,
    greedy=True,
  )
  process.call("run")
  equal = np.asarray(ours.tokens) == np.array(process.call("answer")["tokens"])
  if case.options.dtype == "float32" and not equal.all():
    row, token = np.argwhere(~equal)[0]
    raise BenchmarkError(
      f"{case}: greedy tokens differ, first in row {row} at token {token}: "
      "the models are not the same."
    )
  return float(equal.mean())


def _trainer_fields(case: Case) -> dict[str, Any]:
  """The fields of `TrainerConfig` in `scripts/trl_step.py`."""
  return {
    "rows": case.rows,
    "samples": case.samples,
    "new_tokens": case.new_tokens,
    "micro_batches": count_micro_batches(
      case.rows, case.options.rows_at_a_time
    ),
    "pad_id": batches.PAD_ID,
    "remat": case.options.remat in ("layer", "offload"),
    "optimizer": TRAINING_ARGUMENTS,
  }


def draw_experience(case: Case) -> Experience:
  """Draws a random batch [B, C] in the form in which credit reads it."""
  table = batches.separator_table(case)
  batch = batches.draw_scored_batch(case, batches.draw_rollout(case))
  return jax.jit(experience_from)(batch, table)


def prepare_grpo(process: Process, case: Case, ours: Arm) -> Arm:
  """Prepares the step of TRL's GRPOTrainer, given our advantages."""
  info = _load(process, case, "policy")
  rollout, experience = batches.draw_rollout(case), draw_experience(case)
  credit = step_spec(case).credit
  advantages, _ = jax.jit(pure_advantages, static_argnums=1)(experience, credit)
  process.call(
    "prepare",
    trainer=_trainer_fields(case),
    prompts=rollout.prompt_tokens,
    completions=rollout.tokens,
    advantages=advantages,
    old_logp=experience.old_logp,
  )
  # Only ours gives padding no probability.
  tolerance = MOST_DIFFERENT + 2 / case.vocab_size
  return _compare_step(process, case, ours, info, tolerance)


def prepare_prm(process: Process, case: Case, ours: Arm) -> Arm:
  """Prepares the step of TRL's PRMTrainer on texts with score tokens."""
  info = _load(process, case, "prm")
  inputs = jax.device_get(
    jax.jit(prm_inputs, static_argnums=0)(
      SCORING, batches.separator_table(case), batches.draw_rollout(case)
    )
  )
  rows = []
  for row, labels in enumerate(batches.draw_labels(case)):
    mask, scored = inputs.mask[row], inputs.score_mask[row]
    token_labels = np.full(mask.shape, UNLABELLED)
    token_labels[inputs.score_position[row][scored]] = labels[scored]
    rows.append(
      {"input_ids": inputs.tokens[row][mask], "labels": token_labels[mask]}
    )
  process.call("prepare", trainer=_trainer_fields(case), rows=rows)
  return _compare_step(process, case, ours, info, MOST_DIFFERENT)


def _compare_step(
  process: Process,
  case: Case,
  ours: Arm,
  info: Mapping[str, Any],
  tolerance: float,
) -> Arm:
  """Takes a step; loss and gradient norm must be ours up to `tolerance`.

  The difference is relative, and matters in float32 only.
  """
  process.call("run")
  answer = process.call("answer")
  theirs = np.array([answer["loss"], answer["grad_norm"]])
  difference = float(np.abs(theirs / ours.reference - 1).max())
  if case.options.dtype == "float32" and not difference < tolerance:
    raise BenchmarkError(
      f"{case}: loss and gradient norm of {process.name} are {theirs}, ours "
      f"{ours.reference}: the steps are not the same."
    )
  info = {**info, "largest_relative_difference": difference}
  return _arm(process, case, ours, info, ran=True)


def prepare_iteration(process: Process, case: Case, ours: Arm) -> Arm:
  """Prepares transformers' generate, a PRM, and the step of TRL's GRPOTrainer.

  An iteration on given responses is compared. The arm's responses are as long
  as the first ones of ours.
  """
  # Loaded for each case: the weights of the last one have been trained.
  info = _load(process, case, "policy", "prm")
  process.call(
    "prepare",
    trainer=_trainer_fields(case),
    rules={
      "temperature": step_spec(case).credit.temperature,
      "separator_id": batches.SEPARATOR_ID,
      "eos_id": batches.EOS_ID,
      "score_id": batches.SCORE_ID,
      "max_steps": batches.MAX_STEPS,
    },
    tokens=batches.draw_prompts(case).tokens,
    lengths=ours.reference.lengths,
    correct=ours.reference.correct,
  )
  completions = batches.draw_rollout(case).tokens
  answer = process.call("learn_from", completions=completions)
  differences = largest_differences(answer, ours.reference)
  # Only ours gives padding no probability.
  allowed = MOST_DIFFERENT + 2 / case.vocab_size
  if (
    case.options.dtype == "float32" and not max(differences.values()) < allowed
  ):
    raise BenchmarkError(
      f"{case}: {process.name} differs in {differences}, more than "
      f"{allowed:.2g}: the iterations are not the same."
    )
  info = {**info, "largest_differences": differences}
  return _arm(process, case, ours, info)


def largest_differences(
  answer: Mapping[str, Any], ours: IterationReference
) -> dict[str, float]:
  """Returns the largest differences of two iterations on the same responses.

  The answer has log-probs ``old_logp`` and ``ref_logp`` [B, C],
  ``step_rewards`` [B, S'] with at most as many columns as ours, ``loss`` and
  ``grad_norm``. Only the norm is compared by the relative difference.
  """
  differences = {}
  for name in ("old_logp", "ref_logp", "step_rewards"):
    expected, theirs = getattr(ours.scores, name), np.array(answer[name])
    missing = expected.shape[1] - theirs.shape[1]
    theirs = np.pad(theirs, ((0, 0), (0, missing)))
    differences[name] = float(np.abs(theirs - np.asarray(expected)).max())
  return differences | {
    "loss": abs(answer["loss"] - ours.loss),
    "grad_norm": abs(answer["grad_norm"] / ours.grad_norm - 1),
  }
