"""The suite of kernels: what it compiles where, and that its arms agree."""

import jax
import numpy as np
import pytest
from benchmarks import kernels
from benchmarks.cases import Case
from benchmarks.programs import Options

CASE = Case("kernels", "tiny", 4, 2, 8, 6)


@pytest.fixture(scope="module")
def made():
  return kernels.kernels(CASE, Options(rows_at_a_time=2))


def test_on_a_cpu_no_kernel_is_timed(made):
  """Interpreted, it would look a thousand times slower than it is."""
  assert list(made) == [
    "decode xla", "texts xla", "logp xla", "logp chunked"
  ]  # fmt: skip
  assert made["logp chunked"].instead_of == "logp xla"
  assert all(arm.arm.seconds() > 0 for arm in made.values())


def test_two_ways_give_the_same(made):
  value, gradients = made["logp xla"].answer
  other, others = made["logp chunked"].answer
  np.testing.assert_allclose(value, other, rtol=1e-5)
  for x, y in zip(gradients, others, strict=True):
    assert np.abs(x).max() > 0
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_bounds_are_below_what_is_compiled(made):
  """By counting: 2 prompts of 8, 4 rows of 3 slots, 4 heads of 8, 2 of keys."""
  (phase,) = made["decode xla"].phases
  assert phase.flops == 4 * 4 * (8 + 3) * (2 * 8 + 2 * 8)
  assert phase.bytes == 2 * (2 * 8 + 4 * 3) * (2 * 8) * 4
  (phase,) = made["texts xla"].phases
  # 2 rows of 14 tokens, 105 pairs each, two products and their gradients.
  assert phase.flops == 3 * 2 * 2 * (2 * 105) * (4 * 8)
  assert phase.bytes == 2 * (2 * 14) * (4 + 2 + 2) * 8 * 4
  (phase,) = made["logp xla"].phases
  assert phase.flops == 3 * 2 * (2 * 6) * 32 * 128
  for name, arm in made.items():
    (phase,), costs = arm.phases, arm.compilation.costs
    assert phase.flops <= costs.flops, name
    assert 0 < phase.bytes < costs.hbm_bytes, name


@pytest.mark.parametrize(
  ("backend", "dtype", "wanted"),
  [
    ("tpu", "float32", ["decode pallas", "texts splash", "logp pallas"]),
    ("gpu", "bfloat16", ["texts cudnn"]),
    ("gpu", "float32", []),
  ],
)  # fmt: skip
def test_where_kernels_compile_each_is_asked_for_by_name(
  monkeypatch, backend, dtype, wanted
):
  """A CPU refuses them all, so none can have fallen back to XLA."""

  def uncompiled(name, functions, arguments, *_):
    return {
      f"{name} {way}": (function, arguments)
      for way, function in functions.items()
    }

  monkeypatch.setattr(kernels, "_arms", uncompiled)
  with monkeypatch.context() as there:
    there.setattr(jax, "default_backend", lambda: backend)
    made = kernels.kernels(CASE, Options(dtype))
  others = ("xla", "chunked")
  found = [name for name in made if name.split()[1] not in others]
  assert found == wanted
  for name in wanted:
    function, arguments = made[name]
    with pytest.raises(ValueError, match=r"interpret mode|needs a GPU"):
      function(*arguments)
