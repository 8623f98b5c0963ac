"""Costs of compiled programs, checked against sums done by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pure_jax.runs.planning.hlo import text as hlo_text
from pure_jax.runs.planning.hlo.collectives import Collective, _group_size
from pure_jax.runs.planning.hlo.costs import Costs, count_costs
from pure_jax.runs.planning.hlo.loops import Loop, LoopEnd

P = PartitionSpec


@pytest.fixture(scope="module")
def mesh():
  devices = np.asarray(jax.devices()).reshape(2, 4)
  return Mesh(devices, ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def counted(function, *shapes, shardings=None, out=None, **options):
  """Costs of a function that is compiled for arguments of these shapes."""
  if shardings is not None:
    options |= {"in_shardings": shardings, "out_shardings": out}
  arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  compiled = jax.jit(function, **options).lower(*arrays).compile()
  return count_costs(compiled.as_text(), jax.device_count())


def test_every_trip_of_a_scan_is_counted():
  """XLA's own analysis counts one of the twelve trips, 2 * 32 * 64 * 64."""

  def chain(x, weights):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

  costs = counted(chain, (32, 64), (12, 64, 64))
  assert costs.flops == 12 * 2 * 32 * 64 * 64
  assert [(loop.trips, loop.ends) for loop in costs.loops] == [(12, "counted")]


def test_trip_counts_of_nested_loops_multiply():
  """The mistake would be their sum, 5 + 3."""

  def twice(x, w):
    def outer(x, _):
      return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[
        0
      ], None

    return jax.lax.scan(outer, x, None, length=5)[0]

  assert counted(twice, (8, 16), (16, 16)).flops == 15 * 2 * 8 * 16 * 16


def test_the_backward_pass_of_a_scan_has_twice_the_products():
  def loss(weights, x):
    layer = lambda x, w: (jnp.sin(x @ w), None)  # noqa: E731
    return jnp.sum(jax.lax.scan(layer, x, weights)[0])

  costs = counted(jax.value_and_grad(loss), (7, 16, 16), (4, 16))
  # The gradient of the first layer's input is not used, but the loop computes
  # it in every trip.
  assert costs.flops == 7 * 3 * 2 * 4 * 16 * 16


def test_a_contraction_over_two_axes_multiplies_both():
  """With one of the two sizes alone, the count would be a sixth."""
  product = functools.partial(jnp.einsum, "bij,ijk->bk")
  assert counted(product, (5, 6, 7), (6, 7, 8)).flops == 2 * 5 * 6 * 7 * 8


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_padding_of_a_convolution_costs_nothing(padding):
  """With padding, 2 * out * window * features would be too many."""

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  out = convolve(jnp.zeros((2, 9, 8, 3)), jnp.zeros((3, 4, 3, 5)))
  ones = jax.lax.conv_general_dilated(
    jnp.ones((1, 9, 8, 1)), jnp.ones((3, 4, 1, 1)), (2, 1), padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip
  # A convolution of ones counts the input elements that each output reads.
  costs = counted(convolve, (2, 9, 8, 3), (3, 4, 3, 5))
  assert out.shape[-1] == 5
  assert costs.flops == 2 * int(ones.sum()) * 2 * 3 * 5


def test_holes_of_a_dilated_input_cost_nothing():
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1,), [(2, 2)], lhs_dilation=(3,),
      dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip

  met = jax.lax.conv_general_dilated(
    jnp.ones((1, 6, 1)), jnp.ones((4, 1, 1)), (1,), [(2, 2)],
    lhs_dilation=(3,), dimension_numbers=("NWC", "WIO", "NWC"),
  )  # fmt: skip
  costs = counted(convolve, (1, 6, 2), (4, 2, 3))
  assert costs.flops == 2 * int(met.sum()) * 2 * 3


def test_a_loop_that_may_end_early_is_counted_up_to_its_limit():
  """The decode loop runs for at most C tokens, for fewer if all rows stop."""

  def decode(x, w):
    def unfinished(state):
      step, x = state
      return (step < 20) & ~jnp.all(x > 1)

    def body(state):
      step, x = state
      return step + 1, x @ w

    return jax.lax.while_loop(unfinished, body, (jnp.int32(3), x))

  costs = counted(decode, (4, 8), (8, 8))
  assert [(loop.trips, loop.ends) for loop in costs.loops] == [(17, "early")]
  assert costs.flops == 17 * 2 * 4 * 8 * 8


def test_a_loop_without_a_trip_count_is_reported():
  def search(x, w):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x @ w, x)

  costs = counted(search, (4, 8), (8, 8))
  assert [(loop.trips, loop.ends) for loop in costs.loops] == [(1, "unknown")]


def test_an_all_gather_in_a_loop_is_counted_in_every_trip(mesh):
  """Each of 6 trips gathers a [64, 64] weight from 8 devices."""

  def chain(x, weights):
    def layer(x, w):
      return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, weights)[0]

  rows = NamedSharding(mesh, P(("x", "y")))
  costs = counted(
    chain,
    (80, 64),
    (6, 64, 64),
    shardings=(rows, NamedSharding(mesh, P(None, ("x", "y")))),
    out=rows,
  )
  gathered = costs.collectives["all-gather"]
  assert set(costs.collectives) == {"all-gather"}
  assert gathered.payload_bytes == 6 * 64 * 64 * 4
  assert gathered.sent_bytes == 6 * 64 * 64 * 4 * 7 / 8
  assert costs.flops == 6 * 2 * 10 * 64 * 64


def test_an_all_reduce_sends_its_payload_twice(mesh):
  def product(x, w):
    return x @ w

  costs = counted(
    product,
    (16, 32),
    (32, 24),
    shardings=(NamedSharding(mesh, P(None, "y")), NamedSharding(mesh, P("y"))),
    out=NamedSharding(mesh, P()),
  )
  assert set(costs.collectives) == {"all-reduce"}
  payload = 16 * 24 * 4
  assert costs.collectives["all-reduce"] == Collective(
    1, payload, 2 * payload * 3 / 4
  )
  assert costs.sent_bytes == 2 * payload * 3 / 4


def test_bytes_of_the_other_collectives(mesh):
  """Reduce-scatter, all-to-all and collective-permute."""

  def exchange(x):
    y = jax.lax.psum_scatter(x, "y", tiled=True)
    z = jax.lax.all_to_all(x, "y", 0, 1, tiled=True)
    w = jax.lax.ppermute(x, "y", [(i, (i + 1) % 4) for i in range(4)])
    return y, z, w

  mapped = jax.shard_map(
    exchange,
    mesh=mesh,
    in_specs=P("x", "y"),
    out_specs=(P("x", "y"), P("x", "y"), P("x", "y")),
    check_vma=False,
  )
  compiled = (
    jax.jit(mapped).lower(jax.ShapeDtypeStruct((32, 48), jnp.float32)).compile()
  )
  collectives = count_costs(compiled.as_text(), 8).collectives
  local = 16 * 12 * 4
  assert collectives["reduce-scatter"].payload_bytes == local
  assert collectives["reduce-scatter"].sent_bytes == local * 3 / 4
  assert collectives["all-to-all"].sent_bytes == local * 3 / 4
  assert collectives["collective-permute"].sent_bytes == local


def test_a_product_moves_its_three_arrays():
  costs = counted(lambda x, w: x @ w, (128, 256), (256, 64))
  assert costs.hbm_bytes == 4 * (128 * 256 + 256 * 64 + 128 * 64)


def test_a_scan_reads_the_slice_of_each_trip():
  """Reading the whole stack in each trip would be 50 times as much."""

  def chain(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

  costs = counted(chain, (4, 64), (50, 64, 64))
  weights = 50 * 64 * 64 * 4
  # A weight is read and written when it is sliced, and read by the product.
  assert weights <= costs.hbm_bytes <= 3.5 * weights


def test_a_slice_in_a_nested_fusion_reads_the_slice():
  """A TPU reads one of 28 layers so. The stack would be 28 times as much."""
  text = """HloModule m

%inner (p: f32[28,64,64]) -> f32[64,64] {
  %p = f32[28,64,64]{2,1,0} parameter(0)
  %s = f32[1,64,64]{2,1,0} slice(%p), slice={[3:4], [0:64], [0:64]}
  ROOT %b = f32[64,64]{1,0} bitcast(%s)
}

%outer (x: f32[8,64], w: f32[28,64,64]) -> f32[8,64] {
  %x = f32[8,64]{1,0} parameter(0)
  %w = f32[28,64,64]{2,1,0} parameter(1)
  %f = f32[64,64]{1,0} fusion(%w), kind=kLoop, calls=%inner
  ROOT %d = f32[8,64]{1,0} convolution(%x, %f), dim_labels=bf_io->bf
}

ENTRY %main (a: f32[8,64], w: f32[28,64,64]) -> f32[8,64] {
  %a = f32[8,64]{1,0} parameter(0)
  %w.1 = f32[28,64,64]{2,1,0} parameter(1)
  ROOT %r = f32[8,64]{1,0} fusion(%a, %w.1), kind=kOutput, calls=%outer
}
"""
  costs = count_costs(text, 1)
  assert costs.hbm_bytes == 4 * (8 * 64 + 64 * 64 + 8 * 64)
  assert costs.flops == 2 * 8 * 64 * 64


def test_a_conversion_in_a_nested_fusion_reads_its_operand():
  """The inner fusion is a conversion, and nothing slices its operand."""
  text = """HloModule m

%inner (p: bf16[64,64]) -> f32[64,64] {
  %p = bf16[64,64]{1,0} parameter(0)
  ROOT %c = f32[64,64]{1,0} convert(%p)
}

%outer (x: f32[8,64], w: bf16[64,64]) -> f32[8,64] {
  %x = f32[8,64]{1,0} parameter(0)
  %w = bf16[64,64]{1,0} parameter(1)
  %f = f32[64,64]{1,0} fusion(%w), kind=kLoop, calls=%inner
  ROOT %d = f32[8,64]{1,0} convolution(%x, %f), dim_labels=bf_io->bf
}

ENTRY %main (a: f32[8,64], w: bf16[64,64]) -> f32[8,64] {
  %a = f32[8,64]{1,0} parameter(0)
  %w.1 = bf16[64,64]{1,0} parameter(1)
  ROOT %r = f32[8,64]{1,0} fusion(%a, %w.1), kind=kOutput, calls=%outer
}
"""
  assert count_costs(text, 1).hbm_bytes == (
    4 * 8 * 64 + 2 * 64 * 64 + 4 * 8 * 64
  )


def test_an_update_in_place_moves_only_the_update():
  """The decode loop writes one row of a [1000, 512] cache per trip."""

  def write(cache, row):
    def body(step, cache):
      return jax.lax.dynamic_update_slice(cache, row * 2, (step, 0))

    return jax.lax.fori_loop(0, 100, body, cache)

  compiled = jax.jit(write, donate_argnums=0).lower(
    jax.ShapeDtypeStruct((1000, 512), jnp.float32),
    jax.ShapeDtypeStruct((1, 512), jnp.float32),
  )
  costs = count_costs(compiled.compile().as_text(), 1)
  assert costs.hbm_bytes < 100 * 512 * 4 * 6


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("{{0,1,2,3}}", 4),
    ("{{0,2},{1,3}}", 2),
    ("{{0},{1}}", 1),
    ("{}", 16),
    (None, 16),
    ("[4,2]<=[8]", 2),
    ("[2,4]<=[2,2,2]T(1,0,2)", 4),
    ("mesh['axis_0'=1,'axis_1'=1,'axis_2'=4] {'axis_2'}", 4),
    ("mesh['a'=2,'b'=8] {'a','b'}", 16),
    ("mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a'}", 2),
    ("mesh['a'=2,'b'=8] {'b':(2)4}", 4),
  ],
)
def test_group_sizes_in_all_notations(groups, size):
  assert _group_size(groups, 16) == size


def test_memory_spaces_of_a_tpu_are_read_from_layouts():
  """S(1) is on-chip memory. Moves within it are not counted."""
  text = """HloModule m

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, \
/*index=2*/u32[]{:S(2)}) copy-start(%a)
  %c = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%b)
  ROOT %d = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%c)
}
"""
  main = hlo_text.parse(text)
  assert [s.in_hbm for s in main.instructions["b"].shapes] == [
    False,
    True,
    False,
  ]
  # Once into the chip, once out of it.
  assert count_costs(text, 1).hbm_bytes == 2 * 8 * 128 * 2


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "no entry"),
    ("ENTRY %m () -> f32[] {\n  %x = f32[] constant(1)\n}", "no root"),
    ("ENTRY %m () -> f32[] {\n  ROOT %x = f32[ what\n}", "%?x|type"),
    ("ENTRY %m () -> q7[] {\n  ROOT %x = q7[3] rng()\n}", "q7"),
    ("ENTRY %m () -> f32[] {\n  ROOT %x = f32 rng()\n}", "No type begins"),
  ],
)
def test_a_text_that_cannot_be_parsed_is_an_error(text, message):
  with pytest.raises(hlo_text.HLOError, match=message):
    count_costs(text, 1)


def test_costs_of_a_program_that_runs_several_times_are_multiplied():
  loop = Loop("while", 3, LoopEnd.COUNTED)
  one = Costs(2.0, 3.0, {"all-reduce": Collective(1, 8, 16)}, (loop,))
  two = Costs(5.0, 7.0, {"all-gather": Collective(1, 1, 1)}, ())
  total = one.plus(two, 1.5)
  assert (total.flops, total.hbm_bytes) == (9.5, 13.5)
  assert total.collectives["all-gather"] == Collective(1.5, 1.5, 1.5)
  total = total.plus(one, 2)
  assert total.collectives["all-reduce"] == Collective(3, 24, 48)
  assert total.loops == (loop, loop)
