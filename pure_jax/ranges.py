"""The ranges of numbers in settings, and the check that all settings share.

A range includes both its ends. It is wider than any sensible value, and narrow
enough for float32 to hold what is computed from the number: beyond it, a run
would skip all its updates or round the number away.
"""

from typing import Any

# ===== Of credit and loss =====
PROBABILITY = (0, 1)
# Of a reward, a penalty or a bonus.
WEIGHT = (0, 1e6)
# Of softmin, in units of reward. Step rewards are in -1..1: below this range
# softmin is their minimum, and above it their mean.
SOFTMIN_TEMPERATURE = (1e-6, 1e6)
# Of a KL penalty, in nats per token.
KL = (1e-9, 1e6)
# Of log(policy / old policy), in nats: float32 holds no ratio above e^88, and
# sums over a batch have to stay finite, too.
LOG_RATIO = (1e-6, 60)
# Of ratios, and of weights of tokens.
CAP = (1e-6, 1e9)
# Of ratios, if 1 must be below it: the ratio of an unchanged policy.
CAP_ABOVE_1 = (1.0001, 1e9)
# Of a value of the critic, in units of reward.
VALUE = (1e-6, 1e9)

# ===== Of the sampler =====
# Logits differ by a few to a hundred: below this range the likeliest token has
# all of the probability, and above it all tokens have the same.
TEMPERATURE = (1e-4, 1e4)
TOP_P = (1e-6, 1)
MIN_P = (0, 0.999999)
# By how much the sampler's log-probs may differ from the policy's, in nats.
LOG_PROB = (1e-12, 1e3)

# ===== Of the optimizer and of models =====
# AdamW moves a weight by about this much: float32 rounds less to 0, and more
# destroys every weight in one update.
LEARNING_RATE = (1e-15, 1e4)
WEIGHT_DECAY = (0, 1e4)
# A moment averages about 1 / (1 - beta) updates; float32 rounds a beta above
# this range to 1.
BETA = (0, 0.999999)
# The second moment holds the square of a gradient of this norm.
GRAD_NORM = (1e-12, 1e12)
# LoRA's alpha, which scales the product of two factors.
ALPHA = (1e-6, 1e6)
# Published models have 1e4 to 1e8.
ROPE_THETA = (1, 1e12)


def within(
  low: float, high: float, settings: Any, names: str, otherwise: str = ""
) -> None:
  """Raises ValueError for a number outside low..high; None is accepted.

  >>> import types
  >>> within(*PROBABILITY, types.SimpleNamespace(rate=2.0), "rate")
  Traceback (most recent call last):
  ValueError: rate must be between 0 and 1, got 2.0.

  Args:
    low: the smallest number.
    high: the largest number.
    settings: a dataclass.
    names: names of its numbers, separated by spaces.
    otherwise: what else is accepted, for the message, such as "None for no
      limit".

  Raises:
    ValueError: naming the field, its range and the number; also for NaN.
  """
  for name in names.split():
    value = getattr(settings, name)
    if value is not None and not low <= value <= high:
      choice = f", or {otherwise}" if otherwise else ""
      raise ValueError(
        f"{name} must be between {low:g} and {high:g}{choice}, got {value}."
      )
