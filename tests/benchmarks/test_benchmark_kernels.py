"""The suite "kernels": its arms by device, and that they agree."""

import jax
import numpy as np
import pytest
from benchmarks.cases import Case
from benchmarks.models import Options
from benchmarks.suites import kernels

CASE = Case("kernels", "tiny", 4, 2, 8, 6)


@pytest.fixture(scope="module")
def arms():
  return kernels.kernel_arms(CASE, Options(rows_at_a_time=2))


def test_a_cpu_times_no_kernel(arms):
  """An interpreted kernel would look a thousand times slower than it is."""
  assert list(arms) == [
    "decode xla", "texts xla", "logp xla", "logp chunked"
  ]  # fmt: skip
  assert arms["logp chunked"].variant_of == "logp xla"
  assert all(program.arm.seconds() > 0 for program in arms.values())


def test_two_implementations_agree(arms):
  value, gradients = arms["logp xla"].reference
  other, others = arms["logp chunked"].reference
  np.testing.assert_allclose(value, other, rtol=1e-5)
  for x, y in zip(gradients, others, strict=True):
    assert np.abs(x).max() > 0
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_the_needed_work_is_below_the_compiled_work(arms):
  """Counted by hand: 2 prompts of 8, 4 rows of 3 slots, 4 query heads of size
  8, 2 key heads."""
  (phase,) = arms["decode xla"].phases
  assert phase.flops == 4 * 4 * (8 + 3) * (2 * 8 + 2 * 8)
  assert phase.bytes == 2 * (2 * 8 + 4 * 3) * (2 * 8) * 4
  (phase,) = arms["texts xla"].phases
  # 2 rows of 14 tokens, 105 pairs each, two products and their gradients.
  assert phase.flops == 3 * 2 * 2 * (2 * 105) * (4 * 8)
  assert phase.bytes == 2 * (2 * 14) * (4 + 2 + 2) * 8 * 4
  (phase,) = arms["logp xla"].phases
  assert phase.flops == 3 * 2 * (2 * 6) * 32 * 128
  for name, program in arms.items():
    (phase,), costs = program.phases, program.compilation.costs
    assert phase.flops <= costs.flops, name
    assert 0 < phase.bytes < costs.hbm_bytes, name


@pytest.mark.parametrize(
  ("backend", "dtype", "expected"),
  [
    ("tpu", "float32", ["decode pallas", "texts splash", "logp pallas"]),
    ("gpu", "bfloat16", ["texts cudnn"]),
    ("gpu", "float32", []),
  ],
)  # fmt: skip
def test_an_accelerator_times_its_kernels_by_name(
  monkeypatch, backend, dtype, expected
):
  """Every named kernel raises on this CPU, so none falls back to XLA."""

  def uncompiled(name, functions, arguments, *_):
    return {
      f"{name} {implementation}": (function, arguments)
      for implementation, function in functions.items()
    }

  monkeypatch.setattr(kernels, "_arms", uncompiled)
  with monkeypatch.context() as accelerator:
    accelerator.setattr(jax, "default_backend", lambda: backend)
    arms = kernels.kernel_arms(CASE, Options(dtype))
  xla = ("xla", "chunked")
  assert [name for name in arms if name.split()[1] not in xla] == expected
  for name in expected:
    function, arguments = arms[name]
    with pytest.raises(ValueError, match=r"interpret mode|needs a GPU"):
      function(*arguments)
