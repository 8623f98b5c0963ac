"""Peers beside our arms: the same weights and prompts, and the same answers."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import benchmark_batches as batches
import jax
import numpy as np
from benchmark_cases import MODELS, BenchmarkError, Case
from benchmark_environments import Peer, python_of
from benchmark_programs import Compiled, Options, init_policy
from benchmark_suites import credit_settings, draw_experience
from benchmark_timing import Arm

from pure_jax.host import huggingface
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import train

# Tokens that are compared: enough to go through prefill and decoding.
COMPARED_TOKENS = 16
MAX_POSITIONS = 2**15
# Peers that end a row where they are told to.
ENDS_ROWS = ("transformers",)


class Rival(Protocol):
  """A peer that can stand beside an arm of ours.

  Attributes:
    name: of its arm.
    beside: the arm of ours that does the same.
  """

  name: str
  beside: str

  def takes(self, case: Case) -> bool:
    """Whether it can do what the case asks."""

  def arm(self, case: Case, options: Options, ours: Compiled) -> Arm:
    """Makes ready for a case, and checks that both do the same."""

  def facts(self) -> dict[str, Any]:
    """Versions and peak memory so far, and how the check came out."""


class Generating:
  """A peer that reads a folder of weights and generates."""

  beside = "generate"

  def __init__(self, peer: Peer):
    """Takes a running peer.

    Args:
      peer: of a script that answers as
        `benchmark_peers/transformers_generate.py` does.
    """
    self.name, self._peer = peer.name, peer
    self._loaded: tuple[str, Options] | None = None
    self._facts: dict[str, Any] = {}

  def takes(self, case: Case) -> bool:
    """Whether it can do what the case asks.

    Args:
      case: of any suite.

    Returns:
      False for another suite, and for early stops where rows cannot be ended
      after given lengths.
    """
    return case.suite == "rollout" and (
      case.stops == "never" or self.name in ENDS_ROWS
    )

  def arm(self, case: Case, options: Options, ours: Compiled) -> Arm:
    """Makes ready for a case, and checks the greedy tokens.

    What is timed is sampling; a row of the peer ends where ours did, so both
    draw as many tokens in as many steps.

    Args:
      case: what to generate.
      options: how the model runs.
      ours: the arm beside it; its answer is the lengths of its rows.

    Returns:
      The arm.

    Raises:
      BenchmarkError: if a token differs in float32, or later their number.
    """
    model = options.model(case.model)
    prompts = batches.draw_prompts(case, model.vocab_size)
    if self._loaded != (case.model, options):
      with tempfile.TemporaryDirectory() as folder:
        weights = pathlib.Path(folder) / "weights"
        huggingface.export_policy(
          weights, init_policy(model), model, max_positions=MAX_POSITIONS
        )
        self._facts |= self._peer.ask(
          "load", folder=str(weights), dtype=options.dtype
        )
      self._loaded = case.model, options
    asked = {
      "tokens": np.asarray(prompts.tokens).tolist(),
      "pad_id": batches.PAD_ID,
    }
    self._compare(case, options, asked)
    early = case.stops != "never"
    self._peer.ask(
      "prepare",
      **asked,
      samples=case.samples,
      new_tokens=case.new_tokens,
      lengths=ours.answer.tolist() if early else None,
      greedy=False,
    )

    def seconds() -> float:
      found = self._peer.ask("run")
      self._facts["peak_bytes"] = found["peak_bytes"]
      if found["tokens"] != ours.arm.work:
        raise BenchmarkError(
          f"{case}: {self.name} drew {found['tokens']} tokens, not "
          f"{ours.arm.work}: the times cannot be compared."
        )
      return found["seconds"]

    return Arm(seconds, ours.arm.work)

  def _compare(
    self, case: Case, options: Options, asked: dict[str, Any]
  ) -> None:
    """Takes the likeliest tokens in both, and counts how many agree."""
    model, tokens = options.model(case.model), case.new_tokens
    sampler = SamplingConfig(
      max_new_tokens=min(COMPARED_TOKENS, tokens),
      pad_id=batches.PAD_ID,
      stop_ids=(),
      temperature=0.0,
    )
    generate = train.make_generate(model, sampler, 1, sharding.make_layout())
    prompts = batches.draw_prompts(case, model.vocab_size)
    ours = generate(init_policy(model, True), prompts, jax.random.key(0))
    self._peer.ask(
      "prepare",
      **asked,
      samples=1,
      new_tokens=sampler.max_new_tokens,
      lengths=None,
      greedy=True,
    )
    self._peer.ask("run")
    theirs = np.array(self._peer.ask("answer")["tokens"])
    equal = np.asarray(ours.tokens) == theirs
    self._facts["greedy_tokens_equal"] = float(equal.mean())
    if options.dtype == "float32" and not equal.all():
      row, token = np.argwhere(~equal)[0]
      raise BenchmarkError(
        f"{case}: greedy tokens differ, first in row {row} at token {token}: "
        "the models are not the same."
      )

  def facts(self) -> dict[str, Any]:
    """What a line tells of it.

    Returns:
      ``versions``, ``peak_bytes`` of its process and ``greedy_tokens_equal``,
      a share.
    """
    return dict(self._facts)


class TorchCredit:
  """Credit and advantages as the obvious torch loop."""

  name, beside = "torch_credit", "credit"

  def __init__(self, peer: Peer):
    """Takes a running peer.

    Args:
      peer: of `benchmark_peers/torch_credit.py`.
    """
    self._peer = peer
    self._facts: dict[str, Any] = {}

  def takes(self, case: Case) -> bool:
    """Whether it can do what the case asks.

    Args:
      case: of any suite.

    Returns:
      False for another suite.
    """
    return case.suite == "credit"

  def arm(self, case: Case, options: Options, ours: Compiled) -> Arm:
    """Makes ready for a case, and checks the advantages.

    Args:
      case: the batch.
      options: not used: credit has no model.
      ours: the arm beside it; its answer is the advantages.

    Returns:
      The arm.

    Raises:
      BenchmarkError: if an advantage differs by more than 1e-4; they have a
        variance of 1.
    """
    del options
    batch = draw_experience(case, MODELS[case.model].vocab_size)
    settings = credit_settings(case)
    arrays = {
      "step_rewards": batch.step_rewards,
      "step_counts": batch.steps.mask.sum(axis=1),
      "step_index": batch.steps.index,
      "lengths": batch.completion_mask.sum(axis=1),
      "correct": batch.correct,
    }
    self._facts |= self._peer.ask(
      "prepare",
      **{name: np.asarray(x).tolist() for name, x in arrays.items()},
      samples=case.samples,
      temperature=settings.temperature,
    )
    self._peer.ask("run")
    theirs = np.array(self._peer.ask("answer")["advantages"])
    differ = float(np.abs(theirs - np.asarray(ours.answer)).max())
    self._facts["largest_difference"] = differ
    if not differ < 1e-4:
      raise BenchmarkError(
        f"{case}: advantages differ by {differ:.2g}: the formulas are not the "
        "same."
      )

    def seconds() -> float:
      found = self._peer.ask("run")
      self._facts["peak_bytes"] = found["peak_bytes"]
      return found["seconds"]

    return Arm(seconds, ours.arm.work)

  def facts(self) -> dict[str, Any]:
    """What a line tells of it.

    Returns:
      ``versions``, ``peak_bytes`` of its process and ``largest_difference`` of
      an advantage.
    """
    return dict(self._facts)


RIVALS = {
  "transformers": Generating,
  "tunix": Generating,
  "torch_credit": TorchCredit,
}


@contextlib.contextmanager
def running(
  names: Sequence[str], folder: pathlib.Path | None
) -> Iterator[list[Rival]]:
  """Starts peers and ends them.

  Args:
    names: keys of `RIVALS`.
    folder: where their environments are; None only without names.

  Yields:
    The rivals.

  Raises:
    BenchmarkError: if a name is unknown or an environment is not there.
  """
  for name in names:
    if name not in RIVALS:
      raise BenchmarkError(
        f"--peer: {name!r} must be one of {', '.join(RIVALS)}."
      )
  if names and folder is None:
    raise BenchmarkError("--peer needs --peers, the folder of environments.")
  with contextlib.ExitStack() as opened:
    yield [
      RIVALS[name](opened.enter_context(Peer(name, python_of(folder, name))))
      for name in names
    ]
