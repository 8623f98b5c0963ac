r"""A sequence ends with the token that completes a stop text, and no other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boxes import end_of_box
from small_models import PAD, TINY, random_policy, random_prompts

from pure_jax.host.text.stop_texts import boxed_stops
from pure_jax.rollout import generation, sampling
from pure_jax.rollout.engine import Engine
from pure_jax.rollout.engine_programs import EngineConfig, EngineSpec
from pure_jax.rollout.sampling import SamplingConfig, StopTable
from pure_jax.types import Prompts

ROWS, L, C, EOS = 32, 4, 12, 22
# A policy that samples ids at random often spells boxes with these.
PIECES = [
  *("", r"\boxed{", r"so \boxed", "{4", "}", "} is it", r"}\boxed{"),
  *(r"\boxed{7}", "{", "x", "}", "{", r"\boxed{", "2", "}", "{{", "}}"),
  *(r"}. \boxed{5} }", r"\}", r"\boxed{}", r"\bo", "xed{", ""),
]


def test_every_row_has_a_state_of_its_own():
  """The same id leads to another state from another state."""
  next_state = np.array([[1, 0, 2], [0, 2, 2], [0, 0, 2]], np.int32)
  table = StopTable(jnp.asarray(next_state))
  states, tokens = jnp.array([0, 1, 1, 2, 0]), jnp.array([0, 1, 0, 2, 2])
  states, complete = table.read(states, tokens)
  assert states.tolist() == [1, 2, 0, 2, 0]
  assert complete.tolist() == [False, True, False, True, False]


@pytest.fixture(scope="module")
def rollouts():
  """The same rows without stop texts, with them, and from the engine."""
  tokens, mask = random_prompts(np.random.default_rng(4), [3] * ROWS, L)
  prompts = Prompts(jnp.asarray(tokens), jnp.asarray(mask))
  keys = sampling.row_keys(jax.random.key(1), jnp.arange(ROWS))
  config = SamplingConfig(max_new_tokens=C, pad_id=PAD, stop_ids=(EOS,))
  assert len(PIECES) == TINY.vocab_size

  def generate(stops):
    spec = generation.GenerationSpec(TINY, config, stops)
    return jax.jit(functools.partial(generation.generate, spec=spec))(
      random_policy(), prompts=prompts, keys=keys
    )

  stops = boxed_stops(PIECES)
  engine = Engine(
    EngineSpec(
      generation.GenerationSpec(TINY, config, stops), 1, EngineConfig(8, 7)
    )
  )
  by_engine = engine.generate(random_policy(), prompts, keys)
  return generate(None), generate(stops), by_engine


def test_a_row_ends_with_the_token_that_completes_its_box(rollouts):
  """That token is in the mask, whatever text it holds after the brace."""
  free, *both = jax.device_get(rollouts)
  for stopped in both:
    check_ends(free, stopped)


def check_ends(free, stopped):
  """Compares rows that end with a box with rows that go on."""
  ended_by_box = ended_by_id = 0
  for row in range(ROWS):
    text, length, by_box = "", 0, False
    for token in free.tokens[row][free.completion_mask[row]]:
      text, length = text + PIECES[token], length + 1
      by_box = end_of_box(text) is not None
      if by_box:
        break
    mask = np.arange(C) < length
    ends = by_box or free.tokens[row, length - 1] == EOS
    np.testing.assert_array_equal(stopped.completion_mask[row], mask)
    np.testing.assert_array_equal(
      stopped.tokens[row], np.where(mask, free.tokens[row], PAD)
    )
    assert stopped.truncated[row] == (not ends)
    assert (stopped.sampled_logp[row][~mask] == 0).all()
    ended_by_box += by_box
    ended_by_id += ends and not by_box
  assert ended_by_box > 5 and ended_by_id > 2
  assert 2 < stopped.truncated.sum() < free.truncated.sum()
