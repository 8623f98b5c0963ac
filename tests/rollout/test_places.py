"""Places of rows: which row of the batch, and where its tokens are written."""

import jax
import jax.numpy as jnp
import numpy as np
from small_models import PAD, TINY, random_policy, random_prompts

from pure_jax.rollout import slots
from pure_jax.rollout.generation import (
  DecodeState,
  GenerationSpec,
  SampledTokens,
)
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.types import Prompts

CONFIG = SamplingConfig(max_new_tokens=4, pad_id=PAD, stop_ids=())


def test_a_place_without_a_prompt_has_ended():
  """Or the batch would wait for it, and no prompt could begin there."""
  tokens, mask = random_prompts(np.random.default_rng(0), [3, 1, 2], 3)
  begin = jax.jit(slots.start_prompts, static_argnums=(1, 5, 6, 7))
  found, drawn = begin(
    random_policy(),
    GenerationSpec(TINY, CONFIG),
    Prompts(tokens, mask),
    jax.random.key(1),
    np.array([2, 3, 0], np.int32),
    2,
    1,
    False,
  )
  assert found.row_ids.tolist() == [4, 5, 6, 6, 0, 1]
  assert found.state.done.tolist() == [False, False, True, True, False, False]
  assert found.state.prompt_lengths.tolist()[:2] == [2, 2]
  assert found.state.prompt_lengths.tolist()[4:] == [3, 3]
  assert drawn.tokens.shape == (1, 6)


def test_tokens_are_written_after_those_of_the_same_row():
  """By hand: row 2 goes on, row 0 ends after one, one place holds no row."""
  results = slots.empty_completions(3, CONFIG)
  results = results.replace(
    sampled=results.sampled.replace(
      tokens=results.sampled.tokens.at[2, 0].set(7)
    )
  )
  state = DecodeState(
    keys=None,
    prompt_lengths=None,
    num_generated=jnp.array([3, 1, 2]),
    last_tokens=None,
    done=jnp.array([False, True, True]),
    stopped=jnp.array([False, True, True]),
    stop_state=None,
    cache=None,
  )
  new = jnp.array([[8, 5, 1], [9, PAD, 2]])
  drawn = SampledTokens(new, -1.0 * new, -2.0 * new)
  found = slots.write_completions(
    results,
    slots.Slots(jnp.array([2, 0, 3]), state),
    jnp.array([1, 0, 0]),
    drawn,
  )
  tokens = [[5, PAD, PAD, PAD], [PAD] * 4, [7, 8, 9, PAD]]
  assert found.sampled.tokens.tolist() == tokens
  logp = [[-5, 0, 0, 0], [0] * 4, [0, -8, -9, 0]]
  assert found.sampled.sampled_logp.tolist() == logp
  assert (found.sampled.full_logp == 2 * found.sampled.sampled_logp).all()
  assert found.lengths.tolist() == [1, 0, 3]
  assert found.stopped.tolist() == [True, False, False]
