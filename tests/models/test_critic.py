"""The critic is the policy's trunk with a head of one number."""

import dataclasses

import jax
import numpy as np
import pytest
from small_models import TINY, random_params, random_policy, random_prompts

from pure_jax.models import critic, lora, policy, transformer
from pure_jax.models import params as weights
from pure_jax.models.config import LoraConfig
from pure_jax.parallel import sharding

forward = jax.jit(transformer.forward, static_argnums=1)
token_values = jax.jit(critic.token_values, static_argnums=1)
packed_values = jax.jit(critic.packed_values, static_argnums=1)

C = 6


def texts(seed=0):
  """Prompts of 5, 1 and 3 tokens with completions of 6, 2 and 0."""
  rng = np.random.default_rng(seed)
  prompts = random_prompts(rng, [5, 1, 3], 5)
  mask = np.arange(C) < np.array([6, 2, 0])[:, None]
  tokens = rng.integers(1, TINY.vocab_size, (3, C)).astype(np.int32)
  return *prompts, tokens, mask


def test_a_value_is_the_head_at_the_token_before():
  """Read one token late, the value would know the action it is to judge."""
  params = random_params(critic.declare_critic(TINY))
  prompt_tokens, prompt_mask, tokens, mask = texts()
  actual = np.asarray(token_values(params, TINY, *texts()))
  for row in range(3):
    # Without padding on either side.
    text = [*prompt_tokens[row][prompt_mask[row]], *tokens[row][mask[row]]]
    positions = np.arange(len(text))[None]
    hidden, _ = forward(
      params, TINY, np.array([text]), positions, np.ones_like(positions)
    )
    head = params["value"]
    values = np.asarray(hidden)[0] @ np.asarray(head["kernel"])[:, 0]
    values = values + np.asarray(head["bias"])[0]
    start = prompt_mask[row].sum() - 1
    expected = np.zeros(C)
    expected[: mask[row].sum()] = values[start : len(text) - 1]
    np.testing.assert_allclose(actual[row], expected, rtol=1e-5, atol=1e-5)


def test_a_value_does_not_depend_on_its_token_or_later_ones():
  params = random_params(critic.declare_critic(TINY))
  prompt_tokens, prompt_mask, tokens, mask = texts()
  before = np.asarray(
    token_values(params, TINY, prompt_tokens, prompt_mask, tokens, mask)
  )
  changed = tokens.copy()
  changed[0, 3] = (changed[0, 3] + 5) % TINY.vocab_size
  after = np.asarray(
    token_values(params, TINY, prompt_tokens, prompt_mask, changed, mask)
  )
  np.testing.assert_allclose(after[0, :4], before[0, :4], atol=1e-6)
  assert (np.abs(after - before)[0, 4:] > 1e-3).all()


def test_packed_values_equal_those_of_texts_with_their_own_rows():
  params = random_params(critic.declare_critic(TINY))
  prompt_tokens, prompt_mask, tokens, mask = texts(1)
  expected = np.asarray(
    token_values(params, TINY, prompt_tokens, prompt_mask, tokens, mask)
  )
  row = {"tokens": [], "positions": [], "ids": [], "completion": []}
  for text in (1, 0):  # The second one first, then a padding column.
    ids = [
      *prompt_tokens[text][prompt_mask[text]],
      *tokens[text][mask[text]],
    ]
    row["tokens"] += ids
    row["positions"] += range(len(ids))
    row["ids"] += [text + 1] * len(ids)
    prompt = prompt_mask[text].sum()
    row["completion"] += [i >= prompt for i in range(len(ids))]
  arrays = [np.array([[*x, 0]]) for x in row.values()]
  arrays[-1] = arrays[-1].astype(bool)
  actual = np.asarray(packed_values(params, TINY, *arrays))[0]
  unpacked = [*expected[1][mask[1]], *expected[0][mask[0]]]
  np.testing.assert_allclose(actual[arrays[-1][0]], unpacked, atol=1e-5)
  assert not actual[~arrays[-1][0]].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_critic_from_a_policy_has_its_trunk_and_values_of_0(dtype):
  config = dataclasses.replace(TINY, param_dtype=dtype, compute_dtype=dtype)
  policy_params = random_policy(config)
  params = critic.init_critic_from_policy(policy_params, config)
  declared = critic.declare_critic(config)
  weights.check_params(params, declared)
  assert params["layers"] is policy_params["layers"]
  assert {"head", "value"} & {*params} == {"value"}
  assert params["value"]["kernel"].dtype == np.float32
  values = token_values(params, config, *texts())
  assert values.dtype == np.float32 and not np.asarray(values).any()
  count = weights.count_params(declared)
  trunk = weights.count_params(weights.declare_decoder(config))
  assert count == trunk + config.width + 1


def test_the_head_of_a_bfloat16_trunk_is_multiplied_in_float32():
  """In bfloat16, values of 0.01 apart would often be equal."""
  config = dataclasses.replace(
    TINY, param_dtype="bfloat16", compute_dtype="bfloat16"
  )
  params = random_params(critic.declare_critic(config))
  prompt_tokens, prompt_mask, tokens, mask = texts()
  actual = token_values(
    params, config, prompt_tokens, prompt_mask, tokens, mask
  )
  both = np.concatenate([prompt_mask, mask], axis=1)
  hidden, _ = forward(
    params,
    config,
    np.concatenate([prompt_tokens, tokens], axis=1),
    transformer.positions_from_mask(both),
    both.astype(np.int32),
  )
  head = params["value"]
  values = np.float32(hidden) @ np.asarray(head["kernel"])
  values = values + np.asarray(head["bias"])
  np.testing.assert_allclose(
    np.asarray(actual)[mask], values[:, 4:-1, 0][mask], rtol=1e-5, atol=1e-5
  )


def test_adapters_and_head_are_trained_and_the_base_is_the_policys():
  config = dataclasses.replace(TINY, lora=LoraConfig(rank=2, alpha=4.0))
  declared = critic.declare_critic(config)
  trained, frozen = critic.trained_and_frozen(declared, config)
  assert {*trained} == {"layers", "value"}
  assert {*trained["layers"]} <= lora.ADAPTER_NAMES
  policy_base = lora.split_adapters(policy.declare_policy(config))[1]
  assert frozen["layers"] == policy_base["layers"]
  assert {*frozen} == {"embedding", "layers", "final_norm"}
  assert lora.join_params(frozen, trained) == declared
  everything, nothing = critic.trained_and_frozen(declared, TINY)
  assert everything == declared and nothing == {}


def test_a_critic_has_the_sharding_of_its_axes():
  layout = sharding.make_layout(1, 8)
  shardings = sharding.weight_shardings(critic.declare_critic(TINY), layout)
  assert shardings["value"]["kernel"].spec[0] == "fsdp"
  assert not any(shardings["value"]["bias"].spec)
