"""Costs of compiled programs against sums done by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pure_jax.runs.planning.hlo import text as hlo_text
from pure_jax.runs.planning.hlo.collectives import Collective, group_size
from pure_jax.runs.planning.hlo.costs import count_costs

P = PartitionSpec


@pytest.fixture(scope="module")
def mesh():
  devices = np.asarray(jax.devices()).reshape(2, 4)
  return Mesh(devices, ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def counted(function, *shapes, places=None, out=None, **options):
  """Costs of a function compiled for shapes."""
  if places is not None:
    options |= {"in_shardings": places, "out_shardings": out}
  arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  compiled = jax.jit(function, **options).lower(*arrays).compile()
  return count_costs(compiled.as_text(), jax.device_count())


def test_a_scan_of_products_counts_every_trip():
  """XLA's own analysis counts 2 * 32 * 64 * 64, one trip of twelve."""

  def chain(x, weights):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

  found = counted(chain, (32, 64), (12, 64, 64))
  assert found.flops == 12 * 2 * 32 * 64 * 64
  assert [(loop.trips, loop.ends) for loop in found.loops] == [(12, "counted")]


def test_loops_in_loops_multiply():
  """A sum of trip counts, 5 + 3, would be the mistake."""

  def twice(x, w):
    def outer(x, _):
      return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[
        0
      ], None

    return jax.lax.scan(outer, x, None, length=5)[0]

  assert counted(twice, (8, 16), (16, 16)).flops == 15 * 2 * 8 * 16 * 16


def test_the_backward_pass_of_a_scan_has_two_products_more():
  def loss(weights, x):
    layer = lambda x, w: (jnp.sin(x @ w), None)  # noqa: E731
    return jnp.sum(jax.lax.scan(layer, x, weights)[0])

  found = counted(jax.value_and_grad(loss), (7, 16, 16), (4, 16))
  # The gradient for x is asked for only through the layers: one trip's is dead
  # code, but it stands in the loop all the same.
  assert found.flops == 7 * 3 * 2 * 4 * 16 * 16


def test_a_contraction_over_two_axes():
  """Multiplying by one contracted size only would give a sixth."""
  product = functools.partial(jnp.einsum, "bij,ijk->bk")
  assert counted(product, (5, 6, 7), (6, 7, 8)).flops == 2 * 5 * 6 * 7 * 8


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_a_convolution_counts_what_meets_the_input(padding):
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
  # A convolution of ones counts the meetings of each output itself.
  found = counted(convolve, (2, 9, 8, 3), (3, 4, 3, 5))
  assert out.shape[-1] == 5
  assert found.flops == 2 * int(ones.sum()) * 2 * 3 * 5


def test_holes_of_a_dilated_input_are_free():
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1,), [(2, 2)], lhs_dilation=(3,),
      dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip

  met = jax.lax.conv_general_dilated(
    jnp.ones((1, 6, 1)), jnp.ones((4, 1, 1)), (1,), [(2, 2)],
    lhs_dilation=(3,), dimension_numbers=("NWC", "WIO", "NWC"),
  )  # fmt: skip
  found = counted(convolve, (1, 6, 2), (4, 2, 3))
  assert found.flops == 2 * int(met.sum()) * 2 * 3


def test_a_loop_that_may_end_early_is_counted_to_its_limit():
  """The decoding loop: at most so many tokens, fewer if all rows stop."""

  def decode(x, w):
    def unfinished(state):
      step, x = state
      return (step < 20) & ~jnp.all(x > 1)

    def body(state):
      step, x = state
      return step + 1, x @ w

    return jax.lax.while_loop(unfinished, body, (jnp.int32(3), x))

  found = counted(decode, (4, 8), (8, 8))
  assert [(loop.trips, loop.ends) for loop in found.loops] == [(17, "early")]
  assert found.flops == 17 * 2 * 4 * 8 * 8


def test_a_loop_without_a_count_is_named():
  def search(x, w):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x @ w, x)

  found = counted(search, (4, 8), (8, 8))
  assert [(loop.trips, loop.ends) for loop in found.loops] == [(1, "unknown")]


def test_an_all_gather_in_a_loop(mesh):
  """Each of 6 trips gathers one [64, 32] weight, split over 8 devices."""

  def chain(x, weights):
    def layer(x, w):
      return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, weights)[0]

  rows = NamedSharding(mesh, P(("x", "y")))
  found = counted(
    chain,
    (80, 64),
    (6, 64, 64),
    places=(rows, NamedSharding(mesh, P(None, ("x", "y")))),
    out=rows,
  )
  gathered = found.collectives["all-gather"]
  assert set(found.collectives) == {"all-gather"}
  assert gathered.payload_bytes == 6 * 64 * 64 * 4
  assert gathered.sent_bytes == 6 * 64 * 64 * 4 * 7 / 8
  assert found.flops == 6 * 2 * 10 * 64 * 64


def test_an_all_reduce_sends_everything_twice(mesh):
  def product(x, w):
    return x @ w

  found = counted(
    product,
    (16, 32),
    (32, 24),
    places=(NamedSharding(mesh, P(None, "y")), NamedSharding(mesh, P("y"))),
    out=NamedSharding(mesh, P()),
  )
  assert set(found.collectives) == {"all-reduce"}
  payload = 16 * 24 * 4
  assert found.collectives["all-reduce"] == Collective(
    1, payload, 2 * payload * 3 / 4
  )
  assert found.sent_bytes == 2 * payload * 3 / 4


def test_the_other_collectives(mesh):
  """Reduce-scatter, all-to-all and permute, written by hand."""

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
  found = count_costs(compiled.as_text(), 8).collectives
  local = 16 * 12 * 4
  assert found["reduce-scatter"].payload_bytes == local
  assert found["reduce-scatter"].sent_bytes == local * 3 / 4
  assert found["all-to-all"].sent_bytes == local * 3 / 4
  assert found["collective-permute"].sent_bytes == local


def test_bytes_of_a_product_are_its_arrays():
  found = counted(lambda x, w: x @ w, (128, 256), (256, 64))
  assert found.hbm_bytes == 4 * (128 * 256 + 256 * 64 + 128 * 64)


def test_a_loop_reads_its_slice_and_not_the_stack():
  """Counting the whole stack in each trip would give 50 times as many."""

  def chain(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

  found = counted(chain, (4, 64), (50, 64, 64))
  weights = 50 * 64 * 64 * 4
  # A weight is sliced out (read, written) and multiplied (read).
  assert weights <= found.hbm_bytes <= 3.5 * weights


def test_a_slice_in_a_fusion_in_a_fusion():
  """As a TPU reads one of 28 layers: the stack would be 28 times as much."""
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
  found = count_costs(text, 1)
  assert found.hbm_bytes == 4 * (8 * 64 + 64 * 64 + 8 * 64)
  assert found.flops == 2 * 8 * 64 * 64


def test_a_value_that_a_fusion_only_turns_around_is_read():
  """A conversion is the whole of the inner fusion, so nobody there slices."""
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


def test_an_update_in_place_moves_the_update():
  """The cache of the decoding loop: [1000, 512], a row written per trip."""

  def write(cache, row):
    def body(step, cache):
      return jax.lax.dynamic_update_slice(cache, row * 2, (step, 0))

    return jax.lax.fori_loop(0, 100, body, cache)

  compiled = jax.jit(write, donate_argnums=0).lower(
    jax.ShapeDtypeStruct((1000, 512), jnp.float32),
    jax.ShapeDtypeStruct((1, 512), jnp.float32),
  )
  found = count_costs(compiled.compile().as_text(), 1)
  assert found.hbm_bytes < 100 * 512 * 4 * 6


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
def test_group_sizes_in_every_way_they_are_written(groups, size):
  assert group_size(groups, 16) == size


def test_shapes_of_a_tpu_say_where_an_array_is():
  """On-chip memory, S(1), is not main memory."""
  text = """HloModule m

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, \
/*index=2*/u32[]{:S(2)}) copy-start(%a)
  %c = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%b)
  ROOT %d = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%c)
}
"""
  program = hlo_text.parse(text)
  main = program.computations[program.entry]
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
  ],
)
def test_what_cannot_be_read_is_refused(text, message):
  with pytest.raises(hlo_text.HLOError, match=message):
    count_costs(text, 1)
