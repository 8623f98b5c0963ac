"""Presets: the sizes and options of a benchmark, by the machine it runs on."""

import dataclasses
from collections.abc import Sequence

from benchmarks.cases import STOPS, Block, Options


@dataclasses.dataclass(frozen=True)
class Preset:
  """Sizes, and how the models run.

  Attributes:
    blocks: the sizes of each suite.
    options: options of all cases; the dtype is a name or "auto".
  """

  blocks: Sequence[Block]
  options: Options


# In chunks of 32 to 256 queries the times differ by no more than noise, with
# 192 and with 1,024 tokens a row (docs/speed.md).
_CPU = Options(dtype="auto", attention_chunk=64)
_10M, _135M = ("10m",), ("smollm2_135m",)
_NEVER, _EARLY = STOPS[:1], STOPS[1:]
_SHORT, _LONG = ((64, 128),), ((512, 512),)
_ROLLOUT, _ITERATION = ("rollout",), ("iteration",)
_ONE_BATCH = ("score", "update", "packing", "prm")
_ALL = (*_ROLLOUT, *_ONE_BATCH, *_ITERATION)

PRESETS = {
  # One length, for two cores.
  "small": Preset(
    (Block(_ALL, (*_10M, *_135M), (1, 8, 32), (1, 8), _SHORT, STOPS),), _CPU
  ),
  # Short and long prompts, short and long responses, in about an hour on two
  # cores with all baselines. The larger model does not get all combinations:
  # each repeat of 32 responses of 512 tokens takes minutes in each arm.
  "all_lengths": Preset(
    (
      Block(_ROLLOUT, _135M, (32,), (1,), _SHORT, _NEVER),
      Block(_ROLLOUT, _135M, (32,), (8,), _SHORT, _EARLY),
      Block(_ROLLOUT, _135M, (8,), (8,), _SHORT, _NEVER),
      Block(_ROLLOUT, _135M, (1,), (1,), ((512, 128),), _NEVER),
      Block(_ROLLOUT, _135M, (8,), (8,), ((64, 512),), _EARLY),
      Block(_ROLLOUT, _10M, (1,), (1,), _SHORT, _NEVER),
      Block(_ROLLOUT, _10M, (8,), (8,), _SHORT, _NEVER),
      Block(_ROLLOUT, _10M, (32,), (8,), _SHORT, _EARLY),
      Block(_ROLLOUT, _10M, (32,), (8,), ((512, 128),), _EARLY),
      Block(_ROLLOUT, _10M, (8,), (8,), _LONG, _EARLY),
      Block(_ITERATION, _135M, (8,), (8,), _SHORT, _NEVER),
      Block(_ITERATION, _10M, (32,), (8,), _SHORT, _EARLY),
      Block(_ONE_BATCH, _135M, (8,), (8,), _SHORT, _NEVER),
      Block(_ONE_BATCH, _10M, (8,), (8,), _SHORT, _NEVER),
      Block(("score", "update"), _10M, (8,), (8,), _LONG, _NEVER),
    ),
    _CPU,
  ),
  # For a card of 80 GB. The table names what does not fit, which is every
  # suite with an optimizer for the 7B shape.
  "accelerator": Preset(
    (
      Block(
        _ALL,
        ("qwen2p5_math_1p5b", "qwen2p5_7b"),
        (8, 64),
        (8,),
        ((512, 512),),
        STOPS,
      ),
    ),
    Options(dtype="bfloat16", rows_at_a_time=4, logits_chunk=512),
  ),
}

# A check that everything works, in minutes. The smaller engine has slots for
# half of the prompts only.
QUICK = (Block(_ALL, ("tiny",), (4,), (2,), ((8, 6),), STOPS),)
QUICK_ENGINE_SLOTS = 2
