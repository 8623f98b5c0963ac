"""Writes, scores, reads and grades the responses of an evaluation, by batch."""

import dataclasses
import functools

import jax
import numpy as np

from pure_jax.host import huggingface
from pure_jax.host.data import batches
from pure_jax.host.evaluation.responses import Response
from pure_jax.host.grading import verify
from pure_jax.host.grading.pool import GradingPool
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import separator_table, split_texts
from pure_jax.parallel import sharding
from pure_jax.runs.evaluation.data import Unit
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.training import rollouts, stages
from pure_jax.types import Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class Written:
  """A batch on its way.

  Attributes:
    units: what was asked, at most as many as rows.
    rollout: [B, ...], on the devices, not waited for.
    step_rewards: [B, S], likewise; None without a PRM.
  """

  units: list[Unit]
  rollout: Rollout
  step_rewards: jax.Array | None


class ResponseWriter:
  """Policy and PRM on the devices, ready to write responses and score them."""

  def __init__(
    self,
    settings: EvaluationSettings,
    tokenizer: HuggingFaceTokenizer,
    layout: sharding.Layout,
  ):
    """Loads the weights; functions are compiled when first called."""
    self._settings, self._tokenizer, self._layout = settings, tokenizer, layout
    dtypes = {
      "compute_dtype": settings.compute_dtype,
      "param_dtype": settings.param_dtype,
    }
    self._params, model = huggingface.load_policy(
      settings.policy, layout, **dtypes
    )
    self._groups = {
      greedy: settings.group_size(layout.row_shards, greedy=greedy)
      for greedy in (True, False)
    }
    self._generate = {
      greedy: rollouts.make_generate_rows(
        model,
        settings.sampler.config(
          pad_id=tokenizer.pad_id,
          stop_ids=(tokenizer.eos_id,),
          banned_ids=tokenizer.banned_ids,
          greedy=greedy,
        ),
        layout,
        group_size=group_size,
        continuous=settings.engine.config(),
      )
      for greedy, group_size in self._groups.items()
    }
    self._prm_params = None
    if settings.prm is not None:
      self._prm_params, prm_model = huggingface.load_prm(
        settings.prm, layout, **dtypes
      )
      self._score = stages.make_prm_evaluation(
        prm_model,
        settings.score,
        jax.device_put(separator_table(tokenizer), sharding.replicated(layout)),
        layout,
        settings.engine.rows,
      )

  def start(self, units: list[Unit], count: int) -> Written:
    """Sends a batch to the devices; short ones are filled up by repetition.

    Args:
      units: of one kind, greedy or samples.
      count: of rows, see `EvaluationSettings.rows_of_batches`.

    Returns:
      The batch. Where rows take turns, its responses are complete.
    """
    settings, greedy = self._settings, units[0].sample is None
    rows = [units[i % len(units)] for i in range(count)]
    prompts = [unit.prompt for unit in rows[:: self._groups[greedy]]]
    key = jax.random.key(settings.seed)
    numbers = np.asarray([unit.numbers() for unit in rows], np.uint32)
    rollout = self._generate[greedy](
      self._params,
      self._prompts(
        prompts,
        settings.prompt_tokens,
        everywhere=settings.engine.rows is not None,
      ),
      jax.vmap(lambda row: functools.reduce(jax.random.fold_in, row, key))(
        numbers
      ),
    )
    step_rewards = None
    if self._prm_params is not None:
      asked = self._prompts(
        [unit.prm_prompt for unit in rows], settings.prm_prompt_tokens
      )
      step_rewards = self._score(
        self._prm_params,
        rollout.replace(prompt_tokens=asked.tokens, prompt_mask=asked.mask),
      )
    return Written(units, rollout, step_rewards)

  def _prompts(
    self, ids: list[list[int]], length: int, *, everywhere: bool = False
  ) -> Prompts:
    """Rows of ids on the devices."""
    padded = batches.left_pad(ids, length, self._tokenizer.pad_id)
    place = sharding.replicated if everywhere else sharding.batch_sharding
    return jax.device_put(Prompts(*padded), place(self._layout))


def read(
  settings: EvaluationSettings,
  tokenizer: HuggingFaceTokenizer,
  pool: GradingPool,
  written: Written,
) -> list[Response]:
  """Waits for a batch, reads and grades it.

  Raises:
    FloatingPointError: if the policy or the PRM gives what is no number.
  """
  units, count = written.units, len(written.units)
  rollout, rewards = jax.device_get((written.rollout, written.step_rewards))
  if not np.isfinite(rollout.sampled_logp).all():
    raise FloatingPointError(
      f"The policy gives no probabilities for {units[0].key} or after: check "
      f"the weights in {settings.policy}, or set compute_dtype to 'float32'. "
      "What was written is intact."
    )
  lengths = rollout.completion_mask.sum(1).tolist()
  texts = [
    tokenizer.decode(ids[:length].tolist())
    for ids, length in zip(rollout.tokens[:count], lengths, strict=False)
  ]
  verdicts = verify.grade(
    pool,
    texts,
    [verify.reference_of(unit.problem) for unit in units],
    [verify.EXTRACTORS[name] for name in settings.grader.extractors],
  )
  scored: list[tuple[float, ...] | None] = [None] * count
  if rewards is not None:
    if not np.isfinite(rewards[:count]).all():
      raise FloatingPointError(
        f"The PRM gives no number for a response to {units[0].key} or after: "
        f"check the weights in {settings.prm}. What was written is intact."
      )
    steps = split_texts(tokenizer, rollout.tokens, rollout.completion_mask)
    for row in range(count):
      there = rewards[row, : len(steps[row])]  # No more than max_steps.
      scored[row] = tuple(round(float(reward), 6) for reward in there)
  return [
    Response(
      benchmark=unit.benchmark,
      problem=unit.problem.id,
      sample=unit.sample,
      text=texts[row],
      tokens=lengths[row],
      truncated=bool(rollout.truncated[row]),
      answer=verdicts[row].answer,
      correct=verdicts[row].correct,
      timed_out=verdicts[row].timed_out,
      failure=verdicts[row].failure,
      step_rewards=scored[row],
      level=unit.problem.level,
      subject=unit.problem.subject,
    )
    for row, unit in enumerate(units)
  ]
