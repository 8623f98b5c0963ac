"""Faults put into the library one at a time: does a test see each of them?

  python tests/mutations.py [--jobs=N] [--only=WORD]

Every mutation replaces one piece of text in a copy of the tree and runs the
tests that are there to notice. It is caught if a test fails by an assertion:
a crash, a missing test or a green run is an error, and so is a text that no
longer occurs exactly once. The same tests must be green on the plain copy.
Exits with 0 if all are caught; `test_mutations.py` runs it.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import model_and_metric_faults
import rollout_faults
import survival_faults
from checkout import ROOT

COPIED = ("pure_jax", "tests", "kernels")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.egg-info")

# "FAILED tests/test_x.py::test_name[case] - AssertionError: ..."
_FAILED = re.compile(
  r"^FAILED tests/\S*?(test_\w+\.py\S*?)(?:\[.*?\])? - (.*)$", re.MULTILINE
)
_ASSERTIONS = ("AssertionError", "assert ", "Failed: DID NOT")


class MutationError(Exception):
  """A mutation or its tests are not what they were written for."""


@dataclasses.dataclass(frozen=True)
class Mutation:
  """A fault.

  Attributes:
    name: what is wrong, in words.
    file: path below the root.
    old: text that occurs in it exactly once.
    new: what stands there instead.
    tests: pytest node ids below tests/, those that should notice.
  """

  name: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]


def _mutation(name, file, old, new, *tests):
  return Mutation(name, f"pure_jax/{file}", old, new, tests)


MUTATIONS = (
  # ===== Credit =====
  _mutation(
    "an absent step counts as 0 in the minimum",
    "credit.py",
    "rewards = jnp.where(step_mask, step_rewards, jnp.inf)",
    "rewards = jnp.where(step_mask, step_rewards, 0.0)",
    "test_credit.py::test_zero_padding_would_erase_positive_returns",
  ),
  _mutation(
    "the minimum runs forwards",
    "credit.py",
    "_scan(jnp.minimum, rewards, segment_ids, reverse=True)",
    "_scan(jnp.minimum, rewards, segment_ids, reverse=False)",
    "test_credit.py::test_returns_table_of_the_method",
  ),
  _mutation(
    "the sum runs forwards",
    "credit.py",
    "_scan(jnp.add, rewards, segment_ids, reverse=True)",
    "_scan(jnp.add, rewards, segment_ids, reverse=False)",
    "test_credit.py::test_returns_table_of_the_method",
  ),
  _mutation(
    "softmin weighs the best step most",
    "credit.py",
    "jnp.exp(-shift / temperature)",
    "jnp.exp(shift / temperature)",
    "test_credit.py::test_returns_table_of_the_method",
  ),
  _mutation(
    "an absent step has weight in softmin",
    "credit.py",
    "weight = _zero_unless(step_mask, jnp.exp(-shift / temperature))",
    "weight = jnp.exp(-shift / temperature)",
    "test_credit.py::test_zero_padding_would_erase_positive_returns",
  ),
  _mutation(
    "credit crosses segment boundaries",
    "credit.py",
    "value = jnp.where(boundary_after, value_after, joined)",
    "value = joined",
    "test_credit.py::test_packed_equals_unpacked",
  ),
  # ===== Advantages =====
  _mutation(
    "gradients flow through credit",
    "advantages.py",
    "return jax.lax.stop_gradient((advantages, metrics))",
    "return advantages, metrics",
    "test_losses.py::test_gradient_through_advantages_alone_is_exactly_zero",
  ),
  _mutation(
    "padding takes part in whitening",
    "advantages.py",
    "advantages = masked.whiten(advantages, kept)",
    "advantages = masked.whiten(advantages, jnp.ones_like(kept))",
    "test_advantages.py::test_whitening_is_over_the_tokens_of_the_batch",
  ),
  _mutation(
    "a sample is its own baseline",
    "estimators.py",
    "(grouped.sum(axis=1, keepdims=True) - grouped)",
    "(grouped.sum(axis=1, keepdims=True) + 0 * grouped)",
    "test_estimators.py::test_rloo_is_the_outcome_less_the_mean_of_the_others",
  ),
  # ===== Means and losses =====
  _mutation(
    "a mean divides by the padded length",
    "masked.py",
    "return safe_divide(masked_sum(x, mask, axis), jnp.sum(mask, axis=axis))",
    "return jnp.mean(jnp.where(mask, x, jnp.zeros_like(x)), axis=axis)",
    "test_masked.py::test_mean_divides_by_what_it_kept",
  ),
  _mutation(
    "a micro-batch divides by its own count",
    "losses.py",
    "  if denominator is None:\n    denominator",
    "  if True:\n    denominator",
    "test_losses.py::test_micro_batches_sum_to_the_batch",
  ),
  _mutation(
    "the update forgets the batch's count",
    "training/gradients.py",
    "new_logp, entropy, advantages, experience, loss, denominator\n",
    "new_logp, entropy, advantages, experience, loss, None\n",
    "test_train.py::test_four_micro_batches_equal_one_batch",
  ),
  _mutation(
    "gradients flow through the old log-probs",
    "losses.py",
    "jnp.exp(new_logp - jax.lax.stop_gradient(old_logp))",
    "jnp.exp(new_logp - old_logp)",
    "test_losses.py::test_on_policy_gradient_is_minus_advantage_over_tokens",
  ),
  # ===== Process rewards and EOS =====
  _mutation(
    "the score is read one position early",
    "steps.py",
    "jnp.take_along_axis(margin, inputs.score_position, axis=-1)",
    "jnp.take_along_axis(margin, inputs.score_position - 1, axis=-1)",
    "test_steps.py::test_step_rewards_are_softmax_differences_at_the_scores",
  ),
  _mutation(
    "the inserted score is one position early",
    "steps.py",
    "score_at = start + content\n",
    "score_at = start\n",
    "test_steps.py::test_prm_inputs_agree_with_a_growing_list",
  ),
  _mutation(
    "good and bad are swapped where rewards are read",
    "steps.py",
    "margin = logits[..., 1] - logits[..., 0]",
    "margin = logits[..., 0] - logits[..., 1]",
    "test_steps.py::test_step_rewards_are_softmax_differences_at_the_scores",
  ),
  _mutation(
    "good and bad are swapped where the PRM is trained",
    "losses.py",
    "-jnp.where(good, logp[..., 1], logp[..., 0])",
    "-jnp.where(good, logp[..., 0], logp[..., 1])",
    "test_losses.py::test_prm_loss_agrees_with_a_loop",
  ),
  _mutation(
    "EOS is no terminal token",
    "steps.py",
    "return ends | (completion_mask & (tokens == table.eos_id))",
    "return ends",
    "test_steps.py::test_terminal_mask_holds_separators_and_eos_only",
  ),
  _mutation(
    "the PRM reads EOS as content",
    "steps.py",
    "return whole | jnp.asarray(table.half)[tokens] | (tokens == table.eos_id)",
    "return whole | jnp.asarray(table.half)[tokens]",
    "test_steps.py::test_prm_inputs_agree_with_a_growing_list",
  ),
  # ===== Log-probs: the shift, padding, positions, segments =====
  _mutation(
    "log-probs are read from the token's own position",
    "models/policy.py",
    "hidden = hidden[:, start:-1]",
    "hidden = hidden[:, start + 1 :]",
    "test_policy.py::test_log_probs_are_those_of_growing_prefixes",
  ),
  _mutation(
    "the sampler may draw padding",
    "rollout/sampling.py",
    "  scores = token_logp.ban_tokens(scores, config.banned_ids)\n",
    "",
    "test_generation.py::test_padding_is_never_sampled_and_the_trainer_knows",
  ),
  _mutation(
    "padding is not among the banned ids",
    "rollout/sampling.py",
    "{*self.banned_ids, self.pad_id}",
    "{*self.banned_ids}",
    "test_generation.py::test_padding_is_never_sampled_and_the_trainer_knows",
  ),
  _mutation(
    "the trainer gives padding a probability",
    "models/policy.py",
    "ban_tokens(scores / temperature, banned_ids)",
    "ban_tokens(scores / temperature, ())",
    "test_policy.py::"
    "test_banned_ids_take_no_probability_however_large_their_logit",
  ),
  _mutation(
    "the update forgets the banned ids",
    "training/score.py",
    "banned_ids=sampler.banned_ids,",
    "banned_ids=(),",
    "test_train.py::test_at_the_first_iteration_ratios_are_1_and_kl_is_0",
  ),
  _mutation(
    "the update forgets the temperature",
    "training/score.py",
    "temperature=sampler.temperature or 1.0,",
    "temperature=1.0,",
    "test_train.py::test_the_update_reads_the_sampled_distribution",
  ),
  _mutation(
    "positions count the left padding",
    "models/transformer.py",
    "jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)",
    "jnp.cumsum(mask | True, axis=-1, dtype=jnp.int32) - 1, 0)",
    "test_transformer.py::test_positions_count_the_kept_tokens",
  ),
  _mutation(
    "the sampler's positions count the left padding",
    "rollout/generation.py",
    "lengths = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)",
    "lengths = jnp.sum(prompts.mask | True, axis=1, dtype=jnp.int32)",
    "test_generation.py::test_left_padding_changes_nothing",
  ),
  _mutation(
    "attention crosses segment boundaries",
    "models/transformer.py",
    "same = segment_ids[:, :, None] == segment_ids[:, None, :]",
    "same = (segment_ids[:, :, None] > 0) == (segment_ids[:, None, :] > 0)",
    "test_transformer.py::test_packed_segments_are_separate_rows",
  ),
  *(_mutation(*fault) for fault in model_and_metric_faults.FAULTS),
  *(_mutation(*fault) for fault in rollout_faults.FAULTS),
  *(_mutation(*fault) for fault in survival_faults.FAULTS),
)


def mutated(text: str, mutation: Mutation) -> str:
  """The file's text with the fault in it."""
  count = text.count(mutation.old)
  if count != 1:
    raise MutationError(
      f"{mutation.name!r}: its text occurs {count} times in {mutation.file}: "
      f"{mutation.old!r}"
    )
  return text.replace(mutation.old, mutation.new)


def copy_tree(folder: pathlib.Path) -> None:
  """The library and its tests, importable from `folder`."""
  for name in COPIED:
    shutil.copytree(ROOT / name, folder / name, ignore=NOT_SOURCE)
  # Installed as a part of the package; never taken from the checkout.
  shutil.copytree(
    ROOT / "kernels", folder / "pure_jax" / "kernels", ignore=NOT_SOURCE
  )
  for name in ("pyproject.toml", "setup.py"):
    shutil.copy(ROOT / name, folder / name)


def run(folder: pathlib.Path, *command: str) -> tuple[int, str]:
  """Exit status and output of Python in the copy."""
  environment = os.environ | {
    "PYTHONPATH": str(folder),
    "PYTHONDONTWRITEBYTECODE": "1",
    "COLUMNS": "240",  # Failures in full.
  }
  done = subprocess.run(
    [sys.executable, *command],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout + done.stderr


def run_tests(folder: pathlib.Path, tests: list[str]) -> tuple[int, str]:
  """Runs tests of the copy until one fails."""
  ids = []
  for test in tests:
    name, _, case = test.partition("::")
    (file,) = (folder / "tests").rglob(name)
    ids.append(f"{file}::{case}" if case else str(file))
  return run(
    folder, "-m", "pytest", "-x", "--tb=line", "-p", "no:cacheprovider", *ids
  )


def check_green(mutations: list[Mutation]) -> None:
  """The tests on the plain copy: a red one would "catch" anything."""
  tests = sorted({test for mutation in mutations for test in mutation.tests})
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name).resolve()
    copy_tree(folder)
    code, output = run(folder, "-c", "import pure_jax; print(pure_jax)")
    if code or str(folder) not in output:
      raise MutationError(f"The copy is not what is imported:\n{output}")
    code, output = run_tests(folder, tests)
    if code:
      raise MutationError(f"Red without a mutation:\n{output}")


def caught_by(mutation: Mutation) -> str:
  """The test that notices the fault.

  Raises:
    MutationError: if none does, or not by an assertion.
  """
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name).resolve()
    copy_tree(folder)
    file = folder / mutation.file
    file.write_text(mutated(file.read_text(), mutation))
    code, output = run_tests(folder, list(mutation.tests))
  failed = _FAILED.search(output)
  if code == 0:
    raise MutationError(f"{mutation.name!r} survives {mutation.tests}.")
  if code != 1 or not failed or not failed[2].startswith(_ASSERTIONS):
    raise MutationError(f"{mutation.name!r} breaks the tests:\n{output}")
  return failed[1].split("::")[1]


def main() -> int:
  """Runs all mutations and prints what caught them."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
  parser.add_argument("--only", default="", help="part of the names to run")
  arguments = parser.parse_args()
  chosen = [m for m in MUTATIONS if arguments.only in m.name]
  errors = 0
  with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
    green = pool.submit(check_green, chosen)
    results = [pool.submit(caught_by, mutation) for mutation in chosen]
    try:
      green.result()
    except MutationError as error:
      pool.shutdown(cancel_futures=True)
      print(error, file=sys.stderr)
      return 1
    print("| mutation | file | test that went red |\n|---|---|---|")
    for mutation, result in zip(chosen, results, strict=True):
      try:
        verdict = f"`{result.result()}`"
      except MutationError as error:
        verdict, errors = "**NONE**", errors + 1
        print(error, file=sys.stderr)
      file = mutation.file.removeprefix("pure_jax/")
      print(f"| {mutation.name} | {file} | {verdict} |", flush=True)
  print(f"{len(chosen) - errors} of {len(chosen)} caught")
  return 1 if errors else 0


if __name__ == "__main__":
  sys.exit(main())
