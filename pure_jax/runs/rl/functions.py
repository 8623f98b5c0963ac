"""The compiled functions of RL."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from pure_jax.rollout.engine import Engine
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs.rl.online_prm import OnlinePRM
from pure_jax.runs.rl.weights import (
  FrozenWeights,
  RLState,
  critic_optimizer,
  make_rollout_copy,
  trained_weights,
)
from pure_jax.runs.spec import RunSpec
from pure_jax.training import (
  critic,
  packing,
  rollouts,
  row_choice,
  score,
  supervised,
  train,
)
from pure_jax.training.packing import RowShape, ScoreRows
from pure_jax.training.score import (
  PRMTexts,
  ScoredBatch,
  Scores,
  StepScores,
)
from pure_jax.training.supervised import Demonstrations
from pure_jax.types import Rollout


@dataclasses.dataclass(frozen=True)
class RLFunctions:
  """The compiled functions of RL.

  Scores and update have one compiled function for each shape of rows that
  texts are packed into. The longest text of a batch chooses among them. Without
  `rl.length_buckets` and `rl.packed_tokens` the only key is None.

  Attributes:
    spec: the run's specification.
    for_rollout: trained weights -> their copy in the rollout layout.
    generate: (weights, prompts, key) -> rollout, G samples of each prompt.
    generate_held_out: one sample of each prompt at temperature 1.
    generate_greedy: one greedy response to each prompt.
    generate_benchmarks: the same with the length limit of benchmarks.
    sample_benchmarks: `rl.benchmark_samples` samples of each prompt at
      temperature 1, with that limit; None if there are none.
    score_steps: (PRM weights, responses) -> the PRM's scores [B, S], for a few
      rows of any length; None without a PRM.
    text_lengths: `row_choice.make_measure`, whose lengths choose the rows.
    scores: `score.make_score`, by rows.
    step_scores: `score.make_step_scores`, by rows, for held-out responses.
    checked_scores: `score.make_checked_score`, by rows. Empty if
      `rl.old_logp.source` is "score".
    sampled_scores: `score.make_sampled_score`, by rows. Empty if
      `rl.old_logp.source` is "score".
    updates: `train.make_update`, by rows.
    critic_values: `critic.make_values`, by rows. Empty without a critic.
    critic_updates: `critic.make_critic_update`, by rows. Empty without a
      critic.
    online_prm: updates the PRM; None if RL does not.
  """

  spec: RunSpec
  for_rollout: Callable[[Any], Any]
  generate: rollouts.Generate
  generate_held_out: rollouts.Generate
  generate_greedy: rollouts.Generate
  generate_benchmarks: rollouts.Generate
  sample_benchmarks: rollouts.Generate | None
  score_steps: Callable[[Any, Demonstrations], jax.Array] | None
  text_lengths: Callable[..., jax.Array]
  scores: Mapping[ScoreRows | None, Callable[..., Any]]
  step_scores: Mapping[ScoreRows | None, Callable[..., Any]]
  checked_scores: Mapping[ScoreRows | None, Callable[..., Any]]
  sampled_scores: Mapping[ScoreRows | None, Callable[..., Any]]
  updates: Mapping[RowShape | None, Callable[..., Any]]
  critic_values: Mapping[RowShape | None, Callable[..., Any]]
  critic_updates: Mapping[RowShape | None, Callable[..., Any]]
  online_prm: OnlinePRM | None

  def sampling_weights(self, trained: Any, frozen: FrozenWeights) -> Any:
    """The policy's weights in the layout and the precision of rollouts."""
    return frozen.sampler(self.for_rollout(trained))

  def score_held_out(
    self, frozen: FrozenWeights, rollout: Rollout, prm_texts: PRMTexts
  ) -> StepScores:
    """Scores the steps of responses that train nothing; no policy is read.

    ``prm_texts`` are what the PRM reads, see `score.make_score` and
    `responses.put_prm_texts`.
    """
    batch = (rollout, prm_texts)
    function = _choose(self.step_scores, self.text_lengths, *batch, samples=1)
    return function(frozen.prm, *batch)

  def score_iteration(
    self,
    iteration: int,
    trained: Any,
    frozen: FrozenWeights,
    rollout: Rollout,
    prm_texts: PRMTexts,
  ) -> tuple[Scores, jax.Array | None]:
    """Scores the rollout of an iteration, as `rl.old_logp.source` says.

    With "sampled" the sampler's log-probs are checked in the first iteration
    and then once in `rl.old_logp.check_every`. With "update" the policy is
    never run here. The drift is None if it was not run.
    """
    old_logp, batch = self.spec.settings.rl.old_logp, (rollout, prm_texts)
    compiled = self.scores
    if old_logp.source != "score":
      if (iteration - 1) % old_logp.check_every or old_logp.source == "update":
        function = _choose(self.sampled_scores, self.text_lengths, *batch)
        return function(frozen.reference, frozen.prm, *batch), None
      compiled = self.checked_scores
    function = _choose(compiled, self.text_lengths, *batch)
    models = (frozen.policy(trained), frozen.reference, frozen.prm)
    return function(*models, *batch)

  def values(
    self, state: RLState, frozen: FrozenWeights, rollout: Rollout
  ) -> jax.Array | None:
    """The critic's values of a rollout [B, C]; None without a critic."""
    if state.critic is None:
      return None
    function = _choose(self.critic_values, self.text_lengths, rollout, None)
    return function(state.critic.params, frozen.critic_base, rollout)

  def update(
    self,
    iteration: int,
    state: RLState,
    batch: ScoredBatch,
    frozen: FrozenWeights,
  ) -> tuple[RLState, train.Metrics]:
    """The updates of an iteration: (the next states, metrics).

    The states are donated. In the first `rl.critic.warmup_iterations` only the
    critic is updated, if there is one.
    """
    rows = batch.rollout, None
    policy, value, metrics = state.policy, state.critic, {}
    if value is not None:
      function = _choose(self.critic_updates, self.text_lengths, *rows)
      value, metrics = function(
        value, batch, frozen.critic_base, policy.kl_coef
      )
    warmup = self.spec.settings.rl.critic.warmup_iterations
    if value is None or iteration > warmup:
      function = _choose(self.updates, self.text_lengths, *rows)
      policy, of_policy = function(policy, batch, frozen.base)
      metrics = metrics | of_policy
    return state.replace(policy=policy, critic=value), metrics


def _choose(compiled, measure, *batch, samples=None):
  """The function with the narrowest rows that hold a batch's texts.

  `samples` of a batch share a prompt; None takes the number of the rows, which
  is the same in all widths.
  """
  if None in compiled:
    return compiled[None]
  if samples is None:
    samples = next(iter(compiled)).samples
  lengths = measure(*batch, samples=samples)
  return row_choice.choose(compiled, np.asarray(jax.device_get(lengths)))


def make_functions(
  spec: RunSpec, optimizer: optax.GradientTransformation
) -> RLFunctions:
  """Makes the functions of RL. Each is compiled when it is first called.

  Args:
    spec: the run's specification.
    optimizer: the optax transformation.
  """
  rl, step, sampler = spec.settings.rl, spec.step, spec.sampler
  greedy = dataclasses.replace(
    sampler, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0
  )
  plain = dataclasses.replace(greedy, temperature=1.0)
  limit = rl.benchmark_sampler.max_new_tokens
  benchmark = dataclasses.replace(greedy, max_new_tokens=limit)
  sample_benchmarks = score_steps = None
  if rl.benchmark_samples:
    sample_benchmarks = _make_generate(
      spec,
      dataclasses.replace(plain, max_new_tokens=limit),
      rl.benchmark_samples,
    )
  if spec.prm_model is not None:
    score_steps = supervised.make_prm_evaluation(
      spec.prm_model, spec.prm_score_config, spec.table, spec.layouts.prm
    )
  all_rows, policy_rows = score_rows(spec), update_rows(spec)
  sampled_rows = () if rl.old_logp.source == "score" else all_rows
  return RLFunctions(
    spec=spec,
    for_rollout=make_rollout_copy(spec, trained_weights(spec)),
    generate=_make_generate(spec, sampler, rl.samples_per_prompt),
    generate_held_out=_make_generate(spec, plain, 1),
    generate_greedy=_make_generate(spec, greedy, 1),
    generate_benchmarks=_make_generate(spec, benchmark, 1),
    sample_benchmarks=sample_benchmarks,
    score_steps=score_steps,
    text_lengths=row_choice.make_measure(step),
    scores={rows: score.make_score(step, rows) for rows in all_rows},
    step_scores={rows: score.make_step_scores(step, rows) for rows in all_rows},
    checked_scores={
      rows: score.make_checked_score(step, rows) for rows in sampled_rows
    },
    sampled_scores={
      rows: score.make_sampled_score(step, rows) for rows in sampled_rows
    },
    updates={
      rows: train.make_update(step, optimizer, rows) for rows in policy_rows
    },
    critic_values={
      rows: critic.make_values(step, rows)
      for rows in (value_rows(spec) if rl.trains_critic else ())
    },
    # A critic reads each text with its own prompt.
    critic_updates={
      rows: critic.make_critic_update(
        step,
        critic_optimizer(spec),
        rl.critic.value_clip,
        rows and dataclasses.replace(rows, samples=1),
      )
      for rows in (policy_rows if rl.trains_critic else ())
    },
    online_prm=OnlinePRM(spec) if rl.trains_prm else None,
  )


def _make_generate(
  spec: RunSpec, sampler: SamplingConfig, group_size: int
) -> rollouts.Generate:
  """Makes `generate` of a run: one compiled loop, or that of an engine."""
  rl, engine = spec.settings.rl, make_engine(spec, sampler, group_size)
  if engine is not None:
    return engine.generate
  return rollouts.make_generate(
    spec.rollout_model,
    sampler,
    group_size,
    spec.layouts.rollout,
    spec.layouts.training,
    spec.responses // rl.rollout.batches,
    stops=spec.stops,
  )


def make_engine(
  spec: RunSpec, sampler: SamplingConfig, group_size: int
) -> Engine | None:
  """Makes the engine of a run; None if the run samples in one loop.

  Args:
    spec: the run's specification.
    sampler: how responses are sampled.
    group_size: samples of each prompt (G).
  """
  config = spec.settings.rl.engine.config()
  if config is None:
    return None
  return rollouts.make_engine(
    spec.rollout_model,
    sampler,
    group_size,
    spec.layouts.rollout,
    config,
    spec.layouts.training,
    stops=spec.stops,
  )


def score_rows(spec: RunSpec) -> tuple[ScoreRows | None, ...]:
  """The shapes of the rows that scoring packs texts into.

  Args:
    spec: the run's specification.

  Returns:
    Shapes from the narrowest to the widest; (None,) if each text has a row of
    its own as long as the batch is wide.
  """
  if not _packs(spec):
    return (None,)
  layouts = spec.layouts.training, spec.layouts.reference
  policy_shapes = _policy_shapes(
    spec,
    spec.responses,
    spec.settings.rl.samples_per_prompt,
    math.lcm(*(layout.row_shards for layout in layouts)),
  )
  prm_shapes = [None] * len(policy_shapes)
  if spec.prm_model is not None:
    inserted = spec.step.scoring.inserted_tokens
    prm_shapes = _row_shapes(
      spec, spec.prm_prompt_tokens + inserted, spec.responses
    )
  shapes = map(ScoreRows, policy_shapes, prm_shapes)
  return tuple(sorted(set(shapes), key=lambda rows: rows.columns))


def update_rows(spec: RunSpec) -> tuple[RowShape | None, ...]:
  """The shapes of the rows that updates pack texts into, as in `score_rows`.

  Args:
    spec: the run's specification.
  """
  if not _packs(spec):
    return (None,)
  texts = spec.responses // spec.settings.rl.updates.mini_batches
  samples = math.gcd(texts, spec.settings.rl.samples_per_prompt)
  if spec.mini_batch_order(1) is not None:
    samples = 1  # Their neighbours have other prompts.
  shards = spec.layouts.training.row_shards
  shapes = _policy_shapes(spec, texts, samples, shards)
  return tuple(sorted(set(shapes), key=lambda rows: rows.columns))


def value_rows(spec: RunSpec) -> tuple[RowShape | None, ...]:
  """The shapes of the rows that a critic reads, as in `score_rows`.

  Args:
    spec: the run's specification.
  """
  if not _packs(spec):
    return (None,)
  shapes = _row_shapes(spec, spec.prompt_tokens, spec.responses)
  return tuple(sorted(set(shapes), key=lambda rows: rows.columns))


def _packs(spec: RunSpec) -> bool:
  """Whether rows have other lengths than the rollout's."""
  rl = spec.settings.rl
  return rl.length_buckets > 1 or rl.packed_tokens is not None


def _policy_shapes(
  spec: RunSpec, texts: int, samples: int, shards: int
) -> list[RowShape]:
  """Shapes of rows for the policy, in which samples share their prompt.

  `shards` says over how many the rows are split.
  """
  shapes = _row_shapes(spec, spec.prompt_tokens, texts)
  kernels = spec.layouts.training.kernels, spec.layouts.reference.kernels
  if any(kernel.attention != "xla" for kernel in kernels):
    return list(shapes)  # These kernels cannot share a prompt.
  limit = spec.settings.rl.sampler.max_new_tokens
  widest = row_choice.share_prompts(
    shapes[0], spec.prompt_tokens, limit, samples, texts, shards
  )
  if widest.samples == 1:
    return list(shapes)
  return list(row_choice.narrower(widest, len(shapes)))


def _row_shapes(
  spec: RunSpec, prompt_tokens: int, texts: int
) -> tuple[RowShape, ...]:
  """Shapes of rows for prompts of a length and their completions.

  `texts` says how many are packed together.
  """
  rl = spec.settings.rl
  return packing.row_shapes(
    prompt_tokens + rl.sampler.max_new_tokens,
    texts,
    min(texts, spec.responses // rl.micro_batches),
    rl.length_buckets,
    rl.packed_tokens,
  )
