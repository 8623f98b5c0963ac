"""Rules that fit are applied; rules that do not fit raise, and say where."""

import dataclasses

import jax
import pytest
from jax.sharding import PartitionSpec

from pure_jax.parallel import sharding

FSDP = sharding.RULE_SETS["fsdp"]
TWICE = {"a": ("fsdp",), "b": ("fsdp",)}


@dataclasses.dataclass
class Declared:
  shape: tuple
  logical_axes: tuple


@pytest.fixture
def layout():
  return sharding.make_layout(data=2, fsdp=4)


def test_the_default_rules_as_a_table(layout):
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
    actual = sharding.partition_spec(
      "w", shape, axes, layout.mesh, layout.table
    )
    assert actual == expected


@pytest.mark.parametrize(
  ("shape", "axes", "rules", "message"),
  [
    ((8, 6), ("vocab", "width"), FSDP, "6 is not divisible by"),
    ((8, 8), ("vocab", "widht"), FSDP, "no sharding rule.*widht"),
    ((8,), ("vocab", "width"), FSDP, "1 dimensions but 2 logical"),
    ((8, 8), ("a", "b"), TWICE, "two of its dimensions"),
    ((8,), ("a",), {"a": ("expert",)}, "does not have"),
  ],
)
def test_a_rule_that_does_not_fit_names_the_weight(
  layout, shape, axes, rules, message
):
  with pytest.raises(ValueError, match=message) as error:
    sharding.partition_spec("layers.q", shape, axes, layout.mesh, rules)
  assert "layers.q" in str(error.value)
  assert str(shape) in str(error.value)


def test_the_error_for_a_tree_names_the_path(layout):
  tree = {"layers": {"gate": Declared((3, 7), ("layers", "width"))}}
  with pytest.raises(ValueError, match=r"\['layers'\]\['gate'\]"):
    sharding.weight_shardings(tree, layout)


def test_a_mesh_larger_than_the_machine_raises():
  with pytest.raises(ValueError, match="lower mesh"):
    sharding.make_layout(data=jax.device_count() + 1)
  with pytest.raises(ValueError, match="at least 1"):
    sharding.make_layout(data=0)


def test_groups_of_one_prompt_stay_on_one_device(layout):
  group_size, prompts = 4, 16
  rows = jax.device_put(
    jax.numpy.repeat(jax.numpy.arange(prompts), group_size),
    sharding.batch_sharding(layout),
  )
  seen = [set(map(int, shard.data)) for shard in rows.addressable_shards]
  assert len(seen) == 8
  assert sum(map(len, seen)) == prompts  # No prompt on two devices.


@pytest.mark.parametrize(
  ("rules", "axes", "shape", "expected"),
  [
    ("tensor", ("width", "heads", "head_dim"), (64, 8, 16), (None, "tensor")),
    ("tensor", ("mlp", "width"), (96, 64), ("tensor",)),
    ("fsdp+tensor", ("vocab", "width"), (80, 64), ("tensor", "fsdp")),
    (
      "fsdp+tensor",
      ("rows", "tokens", "mlp"),
      (8, 5, 96),
      ("fsdp", None, "tensor"),
    ),
  ],
)
def test_the_other_rule_sets(rules, axes, shape, expected):
  layout = sharding.make_layout(
    fsdp=2 if "fsdp" in rules else 1, tensor=4, rules=rules
  )
  spec = sharding.partition_spec("w", shape, axes, layout.mesh, layout.table)
  assert tuple(spec)[: len(expected)] == expected
  assert not any(tuple(spec)[len(expected) :])


def test_sequence_shards_share_the_memory_of_parameters():
  layout = sharding.make_layout(fsdp=2, sequence=4, rules="fsdp+sequence")
  spec = sharding.partition_spec(
    "w", (64, 8), ("width", "mlp"), layout.mesh, layout.table
  )
  assert tuple(spec) == (("fsdp", "sequence"), None)
  assert layout.row_shards == 2
  assert layout.act_sharding.token_shards == 4
  assert layout.decoding_act_sharding.token_shards == 1


def test_fewer_key_heads_than_shards_are_copied_or_refused():
  layout = sharding.make_layout(tensor=4, rules="tensor")

  def spec(heads):
    return sharding.partition_spec(
      "k",
      (64, heads, 16),
      ("width", "kv_heads", "head_dim"),
      layout.mesh,
      layout.table,
    )

  assert tuple(spec(8)) == (None, "tensor", None)
  assert tuple(spec(2)) == (None, None, None)  # A copy on each shard.
  with pytest.raises(ValueError, match="3 is not divisible by the 4 shards"):
    spec(3)


def test_an_axis_that_no_rule_uses_raises():
  with pytest.raises(ValueError, match="'tensor' of 2: its devices would"):
    sharding.make_layout(tensor=2)
  with pytest.raises(ValueError, match="rules must be one of"):
    sharding.make_layout(rules="zero")
