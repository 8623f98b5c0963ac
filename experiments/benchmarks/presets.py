"""What is measured where nothing else is asked for, by the place it is for."""

import dataclasses
from collections.abc import Sequence

from benchmarks.cases import STOPS, SUITES, Block, Sizes
from benchmarks.programs import Options


@dataclasses.dataclass(frozen=True)
class Preset:
  """Sizes, and how the models run.

  Attributes:
    blocks: what the cases combine.
    options: of all cases; its dtype is a name or "auto".
  """

  blocks: Sequence[Block]
  options: Options


# Of 32 to 256 queries at a time none took less time by more than noise, at 192
# and at 1,024 tokens a row (docs/speed.md).
_CPU = Options(dtype="auto", attention_chunk=64)
_10M, _135M = ("10m",), ("smollm2_135m",)
_NEVER, _EARLY = STOPS[:1], STOPS[1:]
_SHORT, _LONG = ((64, 128),), ((512, 512),)
_ITERATION = ("iteration",)
_ROLLOUT = ("rollout",)
_NO_STOPS = tuple(name for name, suite in SUITES.items() if not suite.stops)

PRESETS = {
  # One length, for two cores.
  "small": Preset(
    (
      Block(
        tuple(SUITES),
        Sizes((*_10M, *_135M), (1, 8, 32), (1, 8), _SHORT, STOPS),
      ),
    ),
    _CPU,
  ),
  # Short and long prompts, short and long responses, in about an hour of two
  # cores with all peers: of the larger model no product of all sizes, since 32
  # responses of 512 tokens take minutes in each arm of each repeat.
  "all_lengths": Preset(
    (
      Block(_ROLLOUT, Sizes(_135M, (32,), (1,), _SHORT, _NEVER)),
      Block(_ROLLOUT, Sizes(_135M, (32,), (8,), _SHORT, _EARLY)),
      Block(_ROLLOUT, Sizes(_135M, (8,), (8,), _SHORT, _NEVER)),
      Block(_ROLLOUT, Sizes(_135M, (1,), (1,), ((512, 128),), _NEVER)),
      Block(_ROLLOUT, Sizes(_135M, (8,), (8,), ((64, 512),), _EARLY)),
      Block(_ROLLOUT, Sizes(_10M, (1,), (1,), _SHORT, _NEVER)),
      Block(_ROLLOUT, Sizes(_10M, (8,), (8,), _SHORT, _NEVER)),
      Block(_ROLLOUT, Sizes(_10M, (32,), (8,), _SHORT, _EARLY)),
      Block(_ROLLOUT, Sizes(_10M, (32,), (8,), ((512, 128),), _EARLY)),
      Block(_ROLLOUT, Sizes(_10M, (8,), (8,), _LONG, _EARLY)),
      Block(_ITERATION, Sizes(_135M, (8,), (8,), _SHORT, _NEVER)),
      Block(_ITERATION, Sizes(_10M, (32,), (8,), _SHORT, _EARLY)),
      Block(_NO_STOPS, Sizes(_135M, (8,), (8,), _SHORT, _NEVER)),
      Block(_NO_STOPS, Sizes(_10M, (8,), (8,), _SHORT, _NEVER)),
      Block(("score", "update"), Sizes(_10M, (8,), (8,), _LONG, _NEVER)),
    ),
    _CPU,
  ),
  # A card of 80 GB. What does not fit is named in the table: of the 7B shape
  # that is everything with an optimizer.
  "accelerator": Preset(
    (
      Block(
        tuple(SUITES),
        Sizes(
          ("qwen2p5_math_1p5b", "qwen2p5_7b"),
          (8, 64),
          (8,),
          ((512, 512),),
          STOPS,
        ),
      ),
    ),
    Options(dtype="bfloat16", rows_at_a_time=4, logits_chunk=512),
  ),
}

# Next to nothing, to see that all of it works: in the engine that is refilled
# half of the prompts wait.
QUICK = (Block(tuple(SUITES), Sizes(("tiny",), (4,), (2,), ((8, 6),), STOPS)),)
QUICK_ENGINE_ROWS = 2
