"""Bounds from peak rates, computed by hand."""

import pytest

from pure_jax.runs.planning import roofline
from pure_jax.runs.planning.hlo.collectives import Collective
from pure_jax.runs.planning.hlo.costs import Costs

CHIP = roofline.Chip(
  flops_per_second=100.0,
  hbm_bytes_per_second=10.0,
  link_bytes_per_second=1.0,
  hbm_bytes=1000.0,
)


def costs(flops, hbm_bytes, sent):
  kinds = {"all-gather": Collective(1, 8 * sent, sent)}
  return Costs(flops, hbm_bytes, kinds, ())


@pytest.mark.parametrize(
  ("flops", "hbm_bytes", "sent", "name", "seconds"),
  [
    (500, 20, 1, "compute", 5),
    (100, 30, 2, "memory", 3),
    (0, 0, 4, "network", 4),
  ],
)
def test_the_resource_that_takes_longest_bounds_a_program(
  flops, hbm_bytes, sent, name, seconds
):
  """Of a collective, the sent bytes count, not the payload."""
  bound = roofline.bound(costs(flops, hbm_bytes, sent), CHIP)
  assert (bound.name, bound.seconds) == (name, seconds)
  assert bound.serial_seconds == flops / 100 + hbm_bytes / 10 + sent


def test_devices_that_share_a_chip_share_its_rates():
  one = roofline.bound(costs(100, 10, 1), CHIP)
  two = roofline.bound(costs(100, 10, 1), CHIP, devices_per_chip=2)
  assert two.serial_seconds == 2 * one.serial_seconds
