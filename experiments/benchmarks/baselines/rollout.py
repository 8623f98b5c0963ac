"""Baselines that sample: transformers and tunix."""

from typing import Any

import jax
import numpy as np

from benchmarks import batches
from benchmarks.baselines.baseline import Baseline
from benchmarks.baselines.process import Process
from benchmarks.cases import BenchmarkError, Case
from benchmarks.models import Options, init_cast_policy
from benchmarks.programs import Program
from benchmarks.timing import Arm
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training import rollouts

# Tokens that are compared: enough to go through prefill and decoding.
COMPARED_TOKENS = 16


class RolloutBaseline(Baseline):
  """A program that reads a folder of weights and samples."""

  compared_with = "generate"

  def __init__(self, process: Process):
    """Takes a process that runs the baseline's script.

    Args:
      process: runs a script with the methods of `transformers_sampler.py`.
    """
    super().__init__(process)
    self._loaded: tuple[str, Options] | None = None

  def arm(self, case: Case, options: Options, ours: Program) -> Arm:
    """Prepares a case and compares greedy tokens.

    Sampling is timed. A row of the baseline ends where ours did, so that both
    draw the same number of tokens in the same number of steps. tunix cannot
    end a row at a given length: it takes as many steps as the longest response
    needs, and tokens after the end of a row do not count. Its own loop also
    goes on decoding ended rows until the last one ends.

    Args:
      case: the batch.
      options: how the model runs.
      ours: the arm of ours; its reference is the lengths of the responses.

    Returns:
      The arm.

    Raises:
      BenchmarkError: if a greedy token differs in float32, or later the number
        of sampled tokens.
    """
    if self._loaded != (case.model, options):
      self._load(case, options)
      self._loaded = case.model, options
    vocab_size = options.model(case.model).vocab_size
    prompts = batches.draw_prompts(case, vocab_size)
    request = {
      "tokens": np.asarray(prompts.tokens).tolist(),
      "pad_id": batches.PAD_ID,
    }
    self._compare_greedy_tokens(case, options, request)
    early = case.stops != "never"
    self._process.call(
      "prepare",
      **request,
      samples=case.samples,
      new_tokens=case.new_tokens,
      lengths=ours.reference.tolist() if early else None,
      greedy=False,
    )
    return self._timed_sampling(case, ours)

  def _compare_greedy_tokens(
    self, case: Case, options: Options, request: dict[str, Any]
  ) -> None:
    """Decodes greedily in both, and stores the share of equal tokens."""
    model = options.model(case.model)
    sampler = SamplingConfig(
      max_new_tokens=min(COMPARED_TOKENS, case.new_tokens),
      pad_id=batches.PAD_ID,
      stop_ids=(),
      temperature=0.0,
    )
    generate = rollouts.make_generate(model, sampler, 1, sharding.make_layout())
    ours = generate(
      init_cast_policy(case.model, options),
      batches.draw_prompts(case, model.vocab_size),
      jax.random.key(0),
    )
    self._process.call(
      "prepare",
      **request,
      samples=1,
      new_tokens=sampler.max_new_tokens,
      lengths=None,
      greedy=True,
    )
    self._process.call("run")
    theirs = np.array(self._process.call("answer")["tokens"])
    equal = np.asarray(ours.tokens) == theirs
    self.info["greedy_tokens_equal"] = float(equal.mean())
    if options.dtype == "float32" and not equal.all():
      row, token = np.argwhere(~equal)[0]
      raise BenchmarkError(
        f"{case}: greedy tokens differ, first in row {row} at token {token}: "
        "the models are not the same."
      )
