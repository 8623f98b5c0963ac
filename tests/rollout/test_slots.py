"""Slots: which row of the batch they hold, and where its tokens are written."""

import jax
import numpy as np
from small_models import PAD, TINY, random_policy, random_prompts

from pure_jax.rollout import generation, slots
from pure_jax.rollout.generation import (
  DecodeState,
  GenerationSpec,
  SampledTokens,
)
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.types import Prompts

CONFIG = SamplingConfig(max_new_tokens=4, pad_id=PAD, stop_ids=())


def test_a_slot_without_a_prompt_is_done():
  """Otherwise the batch would wait for it, and no prompt could get it."""
  tokens, mask = random_prompts(np.random.default_rng(0), [3, 1, 2], 3)
  start = jax.jit(
    slots.start_prompts,
    static_argnames=("spec", "group_size", "ring_length", "share_prompts"),
  )
  started, first = start(
    random_policy(),
    spec=GenerationSpec(TINY, CONFIG),
    prompts=Prompts(tokens, mask),
    key=jax.random.key(1),
    prompt_ids=np.array([2, 3, 0], np.int32),
    group_size=2,
    ring_length=1,
    share_prompts=False,
  )
  assert started.row_ids.tolist() == [4, 5, 6, 6, 0, 1]
  assert started.state.done.tolist() == [False, False, True, True, False, False]
  assert started.state.prompt_lengths.tolist()[:2] == [2, 2]
  assert started.state.prompt_lengths.tolist()[4:] == [3, 3]
  assert first.tokens.shape == (1, 6)


def test_tokens_are_written_after_those_of_the_same_row():
  """By hand: row 2 goes on, row 0 ends after one token, one slot is empty."""
  completions = jax.device_get(generation.empty_completions(3, CONFIG))
  tokens = np.array(completions.sampled.tokens)
  tokens[2, 0] = 7
  completions = completions.replace(
    sampled=completions.sampled.replace(tokens=tokens)
  )
  state = DecodeState(
    keys=None,
    prompt_lengths=None,
    num_generated=np.array([3, 1, 2]),
    last_tokens=None,
    done=np.array([False, True, True]),
    stopped=np.array([False, True, True]),
    stop_state=None,
    cache=None,
  )
  new = np.array([[8, 5, 1], [9, PAD, 2]], np.int32)
  logp = -new.astype(np.float32)
  written = jax.jit(slots.write_completions)(
    completions,
    slots.Slots(np.array([2, 0, 3]), state),
    num_before=np.array([1, 0, 0]),
    sampled=SampledTokens(new, logp, 2 * logp),
  )
  tokens = [[5, PAD, PAD, PAD], [PAD] * 4, [7, 8, 9, PAD]]
  assert written.sampled.tokens.tolist() == tokens
  logp = [[-5, 0, 0, 0], [0] * 4, [0, -8, -9, 0]]
  assert written.sampled.sampled_logp.tolist() == logp
  full_logp = np.asarray(written.sampled.full_logp)
  assert (full_logp == 2 * np.asarray(written.sampled.sampled_logp)).all()
  assert written.lengths.tolist() == [1, 0, 3]
  assert written.stopped.tolist() == [True, False, False]
