"""Inputs of policy and PRM in an evaluation, and the responses made of outputs.

The models are stand-ins that record their inputs.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import evaluate as config_file
from overrides import with_changes

from pure_jax.host import huggingface
from pure_jax.host.grading import verify
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.stop_texts import boxed_stops
from pure_jax.parallel import sharding
from pure_jax.rollout.engine_programs import EngineConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs.evaluation import generation
from pure_jax.runs.evaluation.requests import (
  make_requests,
  with_columns_for,
  with_tiny_models,
)
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.types import Prompts, Rollout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def start(folder, tmp_path, monkeypatch):
  """Starts a batch with given settings: (inputs of the models, the batch)."""
  inputs = types.SimpleNamespace(batching=[], keys=None, scored=None)

  def make_generate(settings, model, sampler, layout, group_size, stops):
    inputs.stops = stops
    inputs.batching.append((group_size, settings.engine.config()))

    def generate(params, prompts, keys, on_progress):
      inputs.reports = on_progress
      inputs.prompts, inputs.keys, inputs.sampler = prompts, keys, sampler
      rows, columns = len(keys), inputs.settings.sampler.max_new_tokens
      return Rollout(
        prompt_tokens=prompts.tokens,
        prompt_mask=prompts.mask,
        tokens=jnp.full((rows, columns), 40, jnp.int32),
        completion_mask=jnp.ones((rows, columns), bool),
        sampled_logp=jnp.zeros((rows, columns)),
        full_logp=jnp.zeros((rows, columns)),
        truncated=jnp.ones(rows, bool),
      )

    return generate

  def make_prm_evaluation(model, config, table, layout, rows_at_a_time):
    inputs.score_config = config

    def score(params, batch):
      inputs.scored = batch
      return jnp.zeros((len(batch.tokens), inputs.settings.score.max_steps))

    return score

  monkeypatch.setattr(generation, "make_generate", make_generate)
  monkeypatch.setattr(
    generation.supervised, "make_prm_evaluation", make_prm_evaluation
  )

  def start(*, greedy=False, rows=slice(1, 4), on_progress=None, **changes):
    changes = {"batch_rows": 5, "sampler__max_new_tokens": 3} | changes
    fields = with_changes(config_file.get_config("smoke"), **changes)
    settings = conversion.settings_from_config(fields, EvaluationSettings)
    inputs.settings = settings = with_tiny_models(settings, folder)
    inputs.tokenizer = tokenizer = HuggingFaceTokenizer(settings.policy)
    requests = make_requests(settings, tokenizer, tmp_path).requests
    kind = [r for r in requests if (r.sample is None) == greedy]
    layout = sharding.make_layout(1, 1)
    generator = generation.ResponseGenerator(settings, tokenizer, layout)
    batch = generator.start(kind[rows], settings.batch_rows, on_progress)
    return inputs, batch

  return start


def ids(tokens, mask):
  rows = zip(np.asarray(tokens), np.asarray(mask), strict=True)
  return [row[row_mask].tolist() for row, row_mask in rows]


def filled(requests):
  """Three requests, repeated to fill five rows."""
  return [*requests, *requests[:2]]


def test_continuous_batching_follows_the_settings(start):
  """Samples of a problem share a prompt; each greedy response has its own."""
  inputs, batch = start(
    rows=slice(0, 8), batch_rows=8, engine__slots=8, engine__sync_interval=7
  )
  assert inputs.batching == [(1, EngineConfig(8, 7)), (4, EngineConfig(8, 7))]
  policy_ids = ids(inputs.prompts.tokens, inputs.prompts.mask)
  assert policy_ids == [request.prompt for request in batch.requests[::4]]
  assert len(inputs.keys) == 8


def test_without_slots_a_batch_is_generated_together(start):
  inputs, _ = start()
  assert inputs.batching == [(1, None), (1, None)]


@pytest.mark.parametrize("slots", [None, 2])
def test_a_text_ends_responses(folder, slots):
  """With every token a complete box, in both kinds of sampling."""
  fields = with_changes(config_file.get_config("smoke"), engine__slots=slots)
  settings = conversion.settings_from_config(fields, EvaluationSettings)
  settings = with_tiny_models(settings, folder)
  layout = sharding.make_layout(1, 1)
  params, model = huggingface.load_policy(settings.policy, layout)
  sampler = SamplingConfig(5, pad_id=0, stop_ids=(), temperature=1.0)
  prompts = Prompts(np.full((2, 3), 5, np.int32), np.ones((2, 3), bool))
  keys = jax.random.split(jax.random.key(0), 2)

  def lengths(stops):
    generate = generation.make_generate(
      settings, model, sampler, layout, 1, stops
    )
    rollout = generate(params, prompts, keys, None)
    return rollout.completion_mask.sum(1).tolist(), rollout.truncated.tolist()

  assert lengths(None) == ([5, 5], [True, True])
  boxes = boxed_stops([r"\boxed{4}"] * model.vocab_size)
  assert lengths(boxes) == ([1, 1], [False, False])


def test_prompts_have_the_columns_of_the_longest(start):
  inputs, batch = start()
  (request, *_), settings = batch.requests, inputs.settings
  long, short = [5] * 40, [5] * 3

  def columns(prompts, **changes):
    requests = [
      dataclasses.replace(request, prompt=ids, prm_prompt=[]) for ids in prompts
    ]
    changed = dataclasses.replace(settings, **changes)
    narrow = with_columns_for(changed, requests)
    return narrow.prompt_tokens, narrow.prm_prompt_tokens

  assert columns([short, long, short]) == (64, 32)
  assert columns([[5] * 32]) == (32, 32)
  # The limit of the config holds where it is no multiple.
  assert columns([long], prompt_tokens=41, prm_prompt_tokens=7) == (41, 7)


def test_boxes_end_responses_if_the_settings_say_so(start):
  assert start()[0].stops is None
  stops = start(stop_on_boxed=True)[0].stops
  assert stops.next_state.shape[0] == len(start()[0].tokenizer.pieces)


def test_rows_that_fill_up_a_batch_are_no_progress(start):
  """Three requests in five rows: two of them would count twice."""
  reports = []
  inputs, batch = start(on_progress=lambda *report: reports.append(report))
  ended = np.array([True, False, True, True, True])
  inputs.reports(np.arange(5), ended)
  ((lengths, shown),) = reports
  assert len(batch.requests) == 3
  assert lengths.tolist() == [0, 1, 2] and shown.tolist() == [True, False, True]
  assert start()[0].reports is None  # Nothing reads arrays for nobody.


def test_policy_and_prm_get_their_own_prompts(start):
  inputs, batch = start(
    prompt_format="qwen_boxed",
    prm_prompt_format="raw",
    response_prefix="So",
    # The PRM has room for the longer prompts of the policy, too.
    prm_prompt_tokens=128,
  )
  requests = filled(batch.requests)
  prompts, scored = inputs.prompts, inputs.scored
  policy_ids = ids(prompts.tokens, prompts.mask)
  prm_ids = ids(scored.prompt_tokens, scored.prompt_mask)
  assert policy_ids == [request.prompt for request in requests]
  assert prm_ids == [request.prm_prompt for request in requests]
  decode = inputs.tokenizer.decode
  assert decode(prm_ids[0]) == requests[0].problem.problem
  assert "boxed" in decode(policy_ids[0])
  assert decode(policy_ids[0]).endswith("assistant\nSo")
  # Both get the same responses.
  np.testing.assert_array_equal(scored.tokens, batch.rollout.tokens)


@pytest.mark.parametrize("separator", ["insert", "replace"])
def test_the_prm_scores_steps_as_the_config_says(start, separator):
  inputs, _ = start(score__separator=separator, score__max_steps=7)
  assert inputs.score_config.separator == separator
  assert inputs.score_config.max_steps == 7


def test_samples_are_drawn_as_the_config_says(start):
  options = {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
  changes = {f"sampler__{name}": value for name, value in options.items()}
  inputs, _ = start(**changes)
  sampler = inputs.sampler
  assert {name: getattr(sampler, name) for name in options} == options
  assert sampler.max_new_tokens == 3
  inputs, _ = start(greedy=True, **changes)
  assert inputs.sampler.temperature == 0


@pytest.mark.parametrize("seed", [0, 11])
def test_keys_depend_on_seed_benchmark_row_and_sample(start, seed):
  inputs, batch = start(seed=seed)
  keys = jax.random.key_data(inputs.keys).tolist()
  expected = [
    jax.random.key_data(
      functools.reduce(
        jax.random.fold_in,
        np.asarray(request.key_data(), np.uint32),
        jax.random.key(seed),
      )
    ).tolist()
    for request in filled(batch.requests)
  ]
  assert keys == expected
  assert len({*map(tuple, keys)}) == len(batch.requests)


def test_samples_in_continuous_batching_share_a_prompt_and_no_key(start):
  """Each of the four samples of a problem has a key and a PRM prompt."""
  inputs, batch = start(
    samples=4, rows=slice(4, 8), batch_rows=8, engine__slots=8
  )
  requests = batch.requests
  assert [request.sample for request in requests] == [0, 1, 2, 3]
  prompts = ids(inputs.prompts.tokens, inputs.prompts.mask)
  assert prompts == 2 * [requests[0].prompt]  # Repeated to fill the batch.
  keys = [*map(tuple, jax.random.key_data(inputs.keys).tolist())]
  assert keys[:4] == keys[4:] and len({*keys}) == 4
  scored = ids(inputs.scored.prompt_tokens, inputs.scored.prompt_mask)
  assert scored == 8 * [requests[0].prm_prompt]


def test_a_response_has_every_field_of_its_verdict(start, monkeypatch):
  """A comparison that did not finish differs from a wrong answer."""
  verdicts = [
    verify.Verdict(True, "7"),
    verify.Verdict(False, "8", timed_out=True),
    verify.Verdict(False, "9", failure="out of memory"),
  ]
  monkeypatch.setattr(generation.verify, "grade", lambda *unused: verdicts)
  inputs, batch = start()
  responses = generation.grade_batch(
    inputs.settings, inputs.tokenizer, None, batch
  )
  for response, request, verdict in zip(
    responses, batch.requests, verdicts, strict=True
  ):
    assert response.key == request.key
    for name in ("correct", "answer", "timed_out", "failure"):
      assert getattr(response, name) == getattr(verdict, name), name
