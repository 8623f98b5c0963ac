"""How long an update takes with texts in rows of their own, and in packed rows.

  python experiments/time_packing.py --texts=64 --repeats=5

A random decoder is updated on responses of 20 to 200 tokens, of at most 256,
after prompts of 8 to 32: on the same batch in three ways that take turns, so
that what else the machine does falls on all. Medians are printed, and how much
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags

from pure_jax import steps
from pure_jax.models import policy
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import init_params
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.settings import CreditConfig, ScoreConfig
from pure_jax.training import packing, train
from pure_jax.training.score import ScoredBatch, Scores
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import Rollout, SeparatorTable

_TEXTS = flags.DEFINE_integer("texts", 64, "Responses of a batch.", 8)
_LONGEST = flags.DEFINE_integer("longest", 256, "Most tokens of one.", 16)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Updates in each way.", 1)
_WIDTH = flags.DEFINE_integer("width", 128, "Of the decoder.", 16)

GROUP, STEPS, VOCAB, PROMPT = 4, 16, 512, 32
PARTS = 16  # Micro-batches of the padded batch.
OPTIMIZER = optax.sgd(1e-6)


def draw_batch(texts: int, longest: int) -> tuple[Rollout, SeparatorTable]:
  """Responses of 8 to 78 percent of the longest, one id in 20 a separator."""
  rng = np.random.default_rng(0)
  low, high = longest * 20 // 256, longest * 200 // 256
  mask = np.arange(longest) < rng.integers(low, high + 1, (texts, 1))
  asked = np.arange(PROMPT)[::-1] < rng.integers(8, PROMPT + 1, (texts, 1))
  tokens = rng.integers(4, VOCAB, mask.shape)
  tokens[rng.random(mask.shape) < 0.05] = 3
  rollout = Rollout(
    prompt_tokens=rng.integers(4, VOCAB, asked.shape).astype(np.int32),
    prompt_mask=asked,
    tokens=np.where(mask, tokens, 0).astype(np.int32),
    completion_mask=mask,
    sampled_logp=np.where(mask, -np.log(VOCAB), 0).astype(np.float32),
    full_logp=np.where(mask, -np.log(VOCAB), 0).astype(np.float32),
    truncated=np.zeros(texts, bool),
  )
  ids, none = np.arange(VOCAB), np.zeros(VOCAB, bool)
  one, two, zero = np.int32(1), np.int32(2), np.int32(0)
  return rollout, SeparatorTable(ids == 3, none, ids, none, two, one, zero)


def make_updates(
  model: ModelConfig, table: SeparatorTable, texts: int, longest: int
) -> dict[str, Callable[..., Any]]:
  """The update in each way, by name; a part has as many tokens in each."""
  columns, rows = PROMPT + longest, texts // PARTS
  needed = PROMPT + longest * 200 // 256  # Of two row lengths, the shorter.

  spec = StepSpec(
    model,
    None,
    SamplingConfig(max_new_tokens=longest, pad_id=0, stop_ids=(1,)),
    ScoreConfig(STEPS),
    table,
    Layouts.same(sharding.make_layout()),
    CreditConfig(group_size=GROUP),
    micro_batch_rows=rows,
  )
  shorter = packing.RowShape(needed, rows, shared=False)
  return {
    "own rows": train.make_update(spec, OPTIMIZER),
    "shorter rows": train.make_update(spec, OPTIMIZER, shorter),
    "packed rows": train.make_update(
      spec, OPTIMIZER, packing.RowShape(columns, rows)
    ),
  }


def make_batch(rollout: Rollout, table: SeparatorTable) -> ScoredBatch:
  """What an update is given of responses, with random step rewards."""
  rng, texts = np.random.default_rng(1), len(rollout.tokens)
  mask, logp = rollout.completion_mask, rollout.sampled_logp
  cut = steps.split_steps(rollout.tokens, mask, table, max_steps=STEPS)
  rewards = rng.uniform(-1, 1, cut.mask.shape).astype(np.float32)
  scores = Scores(cut, rewards, logp, logp)
  correct, has_answer = np.ones(texts, np.float32), np.ones(texts, bool)
  return ScoredBatch(rollout, scores, correct, has_answer)


def main(argv: list[str]) -> None:
  """Times the three ways and prints a line for each."""
  del argv
  texts, longest, width = _TEXTS.value, _LONGEST.value, _WIDTH.value
  model = ModelConfig(VOCAB, width, 4, 4, 2, width // 4, 3 * width)
  rollout, table = draw_batch(texts, longest)
  batch = make_batch(rollout, table)
  tokens = rollout.prompt_mask.sum() + rollout.completion_mask.sum()
  updates = make_updates(model, table, texts, longest)
  layout, declared = sharding.make_layout(), policy.declare_policy(model)
  params = init_params(jax.random.key(0), declared)
  seconds = {name: [] for name in updates}
  found = {}
  for repeat in range(_REPEATS.value + 1):
    for name, update in updates.items():
      state = train.start_state(params, declared, OPTIMIZER, layout)
      jax.block_until_ready(state)
      start = time.perf_counter(), time.process_time()
      _, found[name] = jax.block_until_ready(update(state, batch, {}))
      if repeat:  # The first compiles.
        ends = time.perf_counter(), time.process_time()
        seconds[name].append(np.subtract(ends, start))
  for name, times in seconds.items():
    median, busy = np.median(times, axis=0)
    fill = tokens / (texts * (PROMPT + longest))
    print(
      f"{name:12}: {median:.3f} s ({busy:.3f} s of the processor), "
      f"{tokens / median:,.0f} tokens/s, row fill "
      f"{found[name].get('row_fill', fill):.2f}, |gradient| "
      f"{found[name]['grad_norm']:.5f}",
      flush=True,
    )


if __name__ == "__main__":
  app.run(main)
