"""Generates, scores and grades the responses of an evaluation, by batch."""

import dataclasses
import functools

import jax
import numpy as np

from pure_jax.host import huggingface
from pure_jax.host.data import batches
from pure_jax.host.evaluation.repetition import response_repetition
from pure_jax.host.evaluation.response_file import Response
from pure_jax.host.grading import verify
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.stop_texts import boxed_stops
from pure_jax.host.text.tokenization import separator_table, split_texts
from pure_jax.host.workers.pool import WorkerPool
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.engine import OnProgress
from pure_jax.rollout.sampling import SamplingConfig, StopTable
from pure_jax.runs.evaluation.requests import Request, prm_tokenizer
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.training import rollouts, supervised
from pure_jax.types import PRMInputs, Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class ResponseBatch:
  """A batch of responses on the devices.

  Attributes:
    requests: the requests of the batch, at most as many as it has rows.
    rollout: [B, ...] arrays.
    step_rewards: [B, S] array that may still be computed; None without a PRM.
  """

  requests: list[Request]
  rollout: Rollout
  step_rewards: jax.Array | None


def make_generate(
  settings: EvaluationSettings,
  model: ModelConfig,
  sampler: SamplingConfig,
  layout: sharding.Layout,
  group_size: int,
  stops: StopTable | None,
) -> rollouts.ReportingGenerate:
  """Makes the sampler of an evaluation.

  Args:
    settings: choose continuous batching or all rows of a batch together.
    model: the policy's architecture.
    sampler: temperature, filters, stop ids and lengths.
    layout: mesh and rules.
    group_size: rows of each prompt, 1 without continuous batching.
    stops: texts that end a response besides the stop ids, or None.

  Returns:
    A function (params, prompts, keys, on_progress) -> rollout.
  """
  config = settings.engine.config()
  if config is None:
    interval = settings.engine.sync_interval
    return rollouts.make_generate_together(
      model, sampler, layout, interval, stops=stops
    )
  return rollouts.make_engine(
    model, sampler, group_size, layout, config, stops=stops
  ).generate


class ResponseGenerator:
  """Policy and PRM on the devices, ready to generate and score responses."""

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
    self._group_sizes = {
      greedy: settings.group_size(layout.row_shards, greedy=greedy)
      for greedy in (True, False)
    }
    stops = boxed_stops(tokenizer.pieces) if settings.stop_on_boxed else None
    self._generate = {
      greedy: make_generate(
        settings,
        model,
        settings.sampler.config(
          pad_id=tokenizer.pad_id,
          stop_ids=tokenizer.eos_ids,
          banned_ids=tokenizer.banned_ids,
          greedy=greedy,
        ),
        layout,
        group_size,
        stops,
      )
      for greedy, group_size in self._group_sizes.items()
    }
    self._prm_params = None
    self._prm_tokenizer = prm_tokenizer(settings, tokenizer)
    if settings.prm is not None:
      self._prm_params, prm_model = huggingface.load_prm(
        settings.prm, layout, **dtypes
      )
      self._score = supervised.make_prm_evaluation(
        prm_model,
        settings.score,
        jax.device_put(separator_table(tokenizer), sharding.replicated(layout)),
        layout,
        settings.engine.slots,
      )

  def start(
    self,
    requests: list[Request],
    rows: int,
    on_progress: OnProgress | None = None,
  ) -> ResponseBatch:
    """Generates a batch of requests, all greedy or all samples; starts scoring.

    Requests are repeated to fill the rows, see
    `EvaluationSettings.rows_of_batches`. The returned responses are complete,
    their step rewards may still be computed. `on_progress` is called with
    arrays of the requests' rows, on the way and at the end.
    """
    settings, greedy = self._settings, requests[0].sample is None
    filled = [requests[i % len(requests)] for i in range(rows)]
    prompts = [r.prompt for r in filled[:: self._group_sizes[greedy]]]
    key = jax.random.key(settings.seed)
    key_data = np.asarray([r.key_data() for r in filled], np.uint32)
    keys = jax.vmap(lambda row: functools.reduce(jax.random.fold_in, row, key))(
      key_data
    )

    def report(lengths: np.ndarray, ended: np.ndarray) -> None:
      """Without the rows that fill up the batch."""
      on_progress(lengths[: len(requests)], ended[: len(requests)])

    rollout = self._generate[greedy](
      self._params,
      self._put_prompts(prompts, settings.prompt_tokens, replicated=True),
      keys,
      None if on_progress is None else report,
    )
    step_rewards = None
    if self._prm_params is not None:
      batch = self._prm_batch([r.prm_prompt for r in filled], rollout)
      step_rewards = self._score(self._prm_params, batch)
    return ResponseBatch(requests, rollout, step_rewards)

  def _prm_batch(
    self, prm_prompts: list[list[int]], rollout: Rollout
  ) -> Rollout | PRMInputs:
    """What the PRM reads. If steps are encoded one by one, this waits."""
    settings, config = self._settings, self._settings.score
    if config.separator == "each":
      tokens, mask = jax.device_get((rollout.tokens, rollout.completion_mask))
      inputs = batches.each_step_inputs(
        self._prm_tokenizer,
        prm_prompts,
        split_texts(self._tokenizer, tokens, mask),
        settings.prm_prompt_tokens
        + settings.sampler.max_new_tokens
        + config.inserted_tokens,
        config.max_steps,
      )
      return jax.device_put(inputs, sharding.batch_sharding(self._layout))
    prompts = self._put_prompts(prm_prompts, settings.prm_prompt_tokens)
    return rollout.replace(
      prompt_tokens=prompts.tokens, prompt_mask=prompts.mask
    )

  def _put_prompts(
    self, ids: list[list[int]], length: int, *, replicated: bool = False
  ) -> Prompts:
    """Pads prompts on the left and puts them on the devices."""
    padded = batches.left_pad(ids, length, self._tokenizer.pad_id)
    place = sharding.replicated if replicated else sharding.batch_sharding
    return jax.device_put(Prompts(*padded), place(self._layout))


def grade_batch(
  settings: EvaluationSettings,
  tokenizer: HuggingFaceTokenizer,
  pool: WorkerPool,
  batch: ResponseBatch,
) -> list[Response]:
  """Waits for a batch, decodes and grades it: a response to each request.

  Args:
    settings: settings of the evaluation.
    tokenizer: the policy's.
    pool: from `verify.open_pool`.
    batch: from `ResponseGenerator.start`.

  Raises:
    FloatingPointError: if the policy or the PRM computes NaN or infinity.
  """
  requests, count = batch.requests, len(batch.requests)
  rollout, rewards = jax.device_get((batch.rollout, batch.step_rewards))
  if not np.isfinite(rollout.sampled_logp).all():
    raise FloatingPointError(
      f"The policy gives no probabilities for {requests[0].key} or after: "
      f"check the weights in {settings.policy}, or set compute_dtype to "
      "'float32'. The responses written so far are intact."
    )
  lengths = rollout.completion_mask.sum(1).tolist()
  texts = [
    tokenizer.decode(ids[:length].tolist())
    for ids, length in zip(rollout.tokens[:count], lengths, strict=False)
  ]
  verdicts = verify.grade(
    pool,
    texts,
    [verify.reference_of(request.problem) for request in requests],
    [verify.EXTRACTORS[name] for name in settings.grader.extractors],
  )
  step_rewards = _rounded_rewards(settings, tokenizer, batch, rollout, rewards)
  return [
    Response(
      benchmark=request.benchmark,
      problem=request.problem.id,
      sample=request.sample,
      text=texts[row],
      tokens=lengths[row],
      truncated=bool(rollout.truncated[row]),
      repetition=response_repetition(
        texts[row],
        rollout.tokens[row, : lengths[row]],
        settings.repetition_unit,
      ),
      answer=verdicts[row].answer,
      correct=verdicts[row].correct,
      timed_out=verdicts[row].timed_out,
      failure=verdicts[row].failure,
      step_rewards=step_rewards[row],
      level=request.problem.level,
      subject=request.problem.subject,
    )
    for row, request in enumerate(requests)
  ]


def _rounded_rewards(
  settings: EvaluationSettings,
  tokenizer: HuggingFaceTokenizer,
  batch: ResponseBatch,
  rollout: Rollout,
  rewards: np.ndarray | None,
) -> list[tuple[float, ...] | None]:
  """The step rewards of each response; raises if they are not finite.

  The rollout and the rewards are those of the batch, on the host.
  """
  requests = batch.requests
  if rewards is None:
    return [None] * len(requests)
  rewards = rewards[: len(requests)]
  if not np.isfinite(rewards).all():
    raise FloatingPointError(
      f"The PRM gives no number for a response to {requests[0].key} or "
      f"after: check the weights in {settings.prm}. The responses written "
      "so far are intact."
    )
  steps = split_texts(tokenizer, rollout.tokens, rollout.completion_mask)
  return [
    # The PRM scores at most max_steps of them.
    tuple(round(float(reward), 6) for reward in row[: len(texts)])
    for row, texts in zip(rewards, steps, strict=False)
  ]
