"""Peers that generate: the same weights and prompts, as many tokens."""

from typing import Any

import jax
import numpy as np

from benchmarks import batches
from benchmarks.cases import BenchmarkError, Case
from benchmarks.environments import Peer
from benchmarks.programs import Compiled, Options, init_policy
from benchmarks.rival import Rival
from benchmarks.timing import Arm
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import rollouts

# Tokens that are compared: enough to go through prefill and decoding.
COMPARED_TOKENS = 16


class Generating(Rival):
  """A peer that reads a folder of weights and generates."""

  suite, beside = "rollout", "generate"

  def __init__(self, peer: Peer):
    """Takes a running peer.

    Args:
      peer: of a script that answers as
        `peers/transformers_generate.py` does.
    """
    super().__init__(peer)
    self._loaded: tuple[str, Options] | None = None

  def arm(self, case: Case, options: Options, ours: Compiled) -> Arm:
    """Makes ready for a case, and checks the greedy tokens.

    What is timed is sampling; a row of the peer ends where ours did, so both
    draw as many tokens in as many steps. Where a peer cannot end a row at a
    given length (tunix), it is asked for as many steps as the longest response
    has, and what it draws after the end of a row does not count: its loop
    decodes rows that have ended until the last one does.

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
      self._facts |= self._peer.load(case, options)
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
    return self._drawing(case, ours)

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
    generate = rollouts.make_generate(model, sampler, 1, sharding.make_layout())
    prompts = batches.draw_prompts(case, model.vocab_size)
    ours = generate(
      init_policy(case.model, options, True), prompts, jax.random.key(0)
    )
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
