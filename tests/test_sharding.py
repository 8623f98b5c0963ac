"""Rules that fit are applied; rules that do not fit raise, and say where."""

import dataclasses

import jax
import pytest
from jax.sharding import PartitionSpec

from pure_jax.parallel import sharding


@dataclasses.dataclass
class Declared:
  shape: tuple
  logical_axes: tuple


@pytest.fixture
def mesh():
  return sharding.make_mesh(data=2, fsdp=4)


def test_the_default_rules_as_a_table(mesh):
  cases = {
    ("vocab", "width"): ((80, 64), PartitionSpec(None, "fsdp")),
    ("layers", "width", "heads", "head_dim"): (
      (3, 64, 4, 16),
      PartitionSpec(None, "fsdp", None, None),
    ),
    ("layers", "mlp", "width"): (
      (3, 192, 64),
      PartitionSpec(None, None, "fsdp"),
    ),
    ("classes",): ((2,), PartitionSpec(None)),
  }
  for axes, (shape, expected) in cases.items():
    assert sharding.partition_spec("w", shape, axes, mesh) == expected


@pytest.mark.parametrize(
  ("shape", "axes", "rules", "message"),
  [
    ((8, 6), ("vocab", "width"), sharding.RULES, "6 is not divisible by"),
    ((8, 8), ("vocab", "widht"), sharding.RULES, "no sharding rule.*widht"),
    ((8,), ("vocab", "width"), sharding.RULES, "1 dimensions but 2 logical"),
    ((8, 8), ("a", "b"), {"a": "fsdp", "b": "fsdp"}, "two of its dimensions"),
    ((8,), ("a",), {"a": "tensor"}, "does not have"),
  ],
)
def test_a_rule_that_does_not_fit_names_the_weight(
  mesh, shape, axes, rules, message
):
  with pytest.raises(ValueError, match=message) as error:
    sharding.partition_spec("layers.q", shape, axes, mesh, rules)
  assert "layers.q" in str(error.value)
  assert str(shape) in str(error.value)


def test_the_error_for_a_tree_names_the_path(mesh):
  tree = {"layers": {"gate": Declared((3, 7), ("layers", "width"))}}
  with pytest.raises(ValueError, match=r"\['layers'\]\['gate'\]"):
    sharding.weight_shardings(tree, mesh)


def test_a_mesh_larger_than_the_machine_is_refused():
  with pytest.raises(ValueError, match="lower mesh"):
    sharding.make_mesh(data=jax.device_count() + 1)
  with pytest.raises(ValueError, match="at least 1"):
    sharding.make_mesh(data=0)


def test_groups_of_one_prompt_stay_on_one_device(mesh):
  group_size, prompts = 4, 16
  rows = jax.device_put(
    jax.numpy.repeat(jax.numpy.arange(prompts), group_size),
    sharding.batch_sharding(mesh),
  )
  seen = [set(map(int, shard.data)) for shard in rows.addressable_shards]
  assert len(seen) == 8
  assert sum(map(len, seen)) == prompts  # No prompt on two devices.


def test_rows_the_mesh_does_not_divide_are_refused(mesh):
  sharding.check_rows("batch", 16, mesh)
  with pytest.raises(ValueError, match="batch has 12 rows"):
    sharding.check_rows("batch", 12, mesh)
