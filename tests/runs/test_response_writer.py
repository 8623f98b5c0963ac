"""What policy, PRM and grader are asked, and what becomes of their answers.

The models are stand-ins that keep what they are given.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import evaluate as config_file
from overrides import with_changes

from pure_jax.host.grading import verify
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.parallel import sharding
from pure_jax.rollout.engine import EngineConfig
from pure_jax.runs.evaluation import data, response_writer
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.types import Rollout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def start(folder, tmp_path, monkeypatch):
  """Starts a batch of given settings: (what was asked of whom, the batch)."""
  asked = types.SimpleNamespace(samplers=[], ways=[], keys=None, scored=None)

  def make_generate_rows(model, sampler, layout, *, group_size, continuous):
    asked.samplers.append(sampler)
    asked.ways.append((group_size, continuous))

    def generate(params, prompts, keys):
      asked.prompts, asked.keys, asked.sampler = prompts, keys, sampler
      rows, columns = len(keys), asked.settings.sampler.max_new_tokens
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
    asked.score_config = config

    def score(params, batch):
      asked.scored = batch
      return jnp.zeros((len(batch.tokens), asked.settings.score.max_steps))

    return score

  monkeypatch.setattr(
    response_writer.rollouts, "make_generate_rows", make_generate_rows
  )
  monkeypatch.setattr(
    response_writer.stages, "make_prm_evaluation", make_prm_evaluation
  )

  def started(*, greedy=False, units=slice(1, 4), **changes):
    changes = {"batch_rows": 5, "sampler__max_new_tokens": 3} | changes
    fields = with_changes(config_file.get_config("smoke"), **changes)
    given = conversion.settings_from_config(fields, EvaluationSettings)
    asked.settings = settings = data.tiny(given, folder)
    tokenizer = HuggingFaceTokenizer(settings.policy)
    questions = data.ask(settings, tokenizer, tmp_path)
    kind = [u for u in questions.units if (u.sample is None) == greedy]
    layout = sharding.make_layout(1, 1)
    writer = response_writer.ResponseWriter(settings, tokenizer, layout)
    asked.tokenizer = tokenizer
    return asked, writer.start(kind[units], settings.batch_rows)

  return started


def ids(tokens, mask):
  rows = zip(np.asarray(tokens), np.asarray(mask), strict=True)
  return [row[kept].tolist() for row, kept in rows]


def filled(units):
  return [*units, *units[:2]]


def test_responses_take_turns_as_the_settings_say(start):
  """A prompt of each greedy response, one of all samples of a problem."""
  turns = {"batch_rows": 8, "engine__rows": 8, "engine__chunk": 7}
  asked, written = start(units=slice(0, 8), **turns)
  assert asked.ways == [(1, EngineConfig(8, 7)), (4, EngineConfig(8, 7))]
  policy_ids = ids(asked.prompts.tokens, asked.prompts.mask)
  assert policy_ids == [unit.prompt for unit in written.units[::4]]
  assert len(asked.keys) == 8


def test_responses_are_written_in_one_loop_where_none_take_turns(start):
  asked, _ = start()
  assert asked.ways == [(1, None), (1, None)]


def test_policy_and_prm_read_their_own_prompts(start):
  asked, written = start(
    prompt_format="qwen_boxed", prm_prompt_format="raw", response_prefix="So"
  )
  rows = filled(written.units)
  prompts, scored = asked.prompts, asked.scored
  policy_ids = ids(prompts.tokens, prompts.mask)
  prm_ids = ids(scored.prompt_tokens, scored.prompt_mask)
  assert policy_ids == [unit.prompt for unit in rows]
  assert prm_ids == [unit.prm_prompt for unit in rows]
  decode = asked.tokenizer.decode
  assert decode(prm_ids[0]) == rows[0].problem.problem
  assert "boxed" in decode(policy_ids[0])
  assert decode(policy_ids[0]).endswith("assistant\nSo")
  # And the same responses.
  np.testing.assert_array_equal(scored.tokens, written.rollout.tokens)


@pytest.mark.parametrize("separator", ["insert", "replace"])
def test_the_prm_is_asked_as_the_config_says(start, separator):
  asked, _ = start(score__separator=separator, score__max_steps=7)
  assert asked.score_config.separator == separator
  assert asked.score_config.max_steps == 7


def test_samples_are_drawn_as_the_config_says(start):
  wanted = {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
  changes = {f"sampler__{name}": value for name, value in wanted.items()}
  asked, _ = start(**changes)
  drawn = asked.sampler
  assert {name: getattr(drawn, name) for name in wanted} == wanted
  assert drawn.max_new_tokens == 3
  asked, _ = start(greedy=True, **changes)
  assert asked.sampler.temperature == 0


@pytest.mark.parametrize("seed", [0, 11])
def test_keys_follow_from_seed_benchmark_row_and_number(start, seed):
  asked, written = start(seed=seed)
  found = jax.random.key_data(asked.keys).tolist()
  expected = [
    jax.random.key_data(
      functools.reduce(
        jax.random.fold_in,
        np.asarray(unit.numbers(), np.uint32),
        jax.random.key(seed),
      )
    ).tolist()
    for unit in filled(written.units)
  ]
  assert found == expected
  assert len({*map(tuple, found)}) == len(written.units)


def test_samples_that_take_turns_share_a_prompt_and_no_key(start):
  """Four samples of a problem each have their key, and their PRM's prompt."""
  asked, written = start(
    samples=4, units=slice(4, 8), batch_rows=8, engine__rows=8
  )
  units = written.units
  assert [unit.sample for unit in units] == [0, 1, 2, 3]
  prompts = ids(asked.prompts.tokens, asked.prompts.mask)
  assert prompts == 2 * [units[0].prompt]  # Once more, to fill up.
  keys = [*map(tuple, jax.random.key_data(asked.keys).tolist())]
  assert keys[:4] == keys[4:] and len({*keys}) == 4
  scored = ids(asked.scored.prompt_tokens, asked.scored.prompt_mask)
  assert scored == 8 * [units[0].prm_prompt]


def test_nothing_of_a_verdict_is_lost(start, monkeypatch):
  """An answer nobody could judge is not one that is wrong."""
  verdicts = [
    verify.Verdict(True, "7"),
    verify.Verdict(False, "8", timed_out=True),
    verify.Verdict(False, "9", failure="out of memory"),
  ]
  monkeypatch.setattr(response_writer.verify, "grade", lambda *unused: verdicts)
  asked, written = start()
  found = response_writer.read(asked.settings, asked.tokenizer, None, written)
  for response, unit, verdict in zip(
    found, written.units, verdicts, strict=True
  ):
    assert response.key == unit.key
    for name in ("correct", "answer", "timed_out", "failure"):
      assert getattr(response, name) == getattr(verdict, name), name
