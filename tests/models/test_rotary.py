"""Rotary frequencies; the rotation itself is held to torch with the decoder."""

import math

import numpy as np

from pure_jax.models import rotary
from pure_jax.models.config import RopeScaling


def test_scaled_frequencies_by_their_wavelengths():
  """Llama 3's rule in wavelengths, pair by pair, in double precision."""
  factor, low, high, length = 8.0, 1.0, 4.0, 8192
  expected, kinds = [], set()
  for pair in range(64):
    frequency = 5e5 ** (-pair / 64)
    wavelength = 2 * math.pi / frequency
    if wavelength < length / high:
      kinds.add("fast")
    elif wavelength > length / low:
      kinds.add("slow")
      frequency /= factor
    else:
      kinds.add("between")
      smooth = (length / wavelength - low) / (high - low)
      frequency *= (1 - smooth) / factor + smooth
    expected.append(frequency)
  assert kinds == {"fast", "between", "slow"}
  found = rotary.rotary_frequencies(
    128, 5e5, RopeScaling(factor, low, high, length)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6)
