"""What is measured where nothing else is asked for, by the place it is for."""

import dataclasses

from benchmarks.cases import STOPS, Sizes
from benchmarks.programs import Options


@dataclasses.dataclass(frozen=True)
class Preset:
  """Sizes, and how the models run.

  Attributes:
    sizes: what the cases combine.
    options: of all cases; its dtype is a name or "auto".
  """

  sizes: Sizes
  options: Options


_SMALL = ("10m", "smollm2_135m")
_AUTO = Options(dtype="auto")
_ROWS, _SAMPLES = (1, 8, 32), (1, 8)

PRESETS = {
  # One length, for two cores.
  "small": Preset(Sizes(_SMALL, _ROWS, _SAMPLES, ((64, 128),), STOPS), _AUTO),
  # Short and long prompts, short and long responses: several times as long.
  "all_lengths": Preset(
    Sizes(
      _SMALL,
      _ROWS,
      _SAMPLES,
      ((64, 128), (512, 128), (64, 512), (512, 512)),
      STOPS,
    ),
    _AUTO,
  ),
  # A card of 80 GB. What does not fit is named in the table: of the 7B shape
  # that is everything with an optimizer.
  "accelerator": Preset(
    Sizes(
      ("qwen2p5_math_1p5b", "qwen2p5_7b"), (8, 64), (8,), ((512, 512),), STOPS
    ),
    Options(dtype="bfloat16", rows_at_a_time=4, remat="dots", logits_chunk=512),
  ),
}

# Next to nothing, to see that all of it works.
QUICK = Sizes(("tiny",), (4,), (2,), ((8, 6),), STOPS)
