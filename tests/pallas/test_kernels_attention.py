"""What jax ships for attention gives what the model's own attention gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_jax.kernels.segment_attention import segment_attention
from pure_jax.models.transformer import attend, attention_mask

SPLASH = {"implementation": "splash", "interpret": True}
# B, T, N, K, H: no size divides a block, and some texts cross one.
SIZES = (2, 150, 6, 2, 10)


def draw(B, T, N, K, H, dtype=jnp.float32):
  """Rows of padding and three texts, one of them with padding after it."""
  rng = np.random.default_rng(9)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  ids = np.sort(rng.integers(0, 4, (B, T)), axis=1)
  ids[0, -T // 4 :] = 0
  return (
    *(normal(B, T, N, H), normal(B, K, T, H), normal(B, K, T, H)),
    jnp.asarray(ids, jnp.int32),
  )


def of_the_model(q, k, v, ids):
  return attend(q, k, v, attention_mask(ids))


def value_and_gradients(function, q, k, v, ids):
  weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), q.dtype)

  @jax.jit
  def run(q, k, v, ids):
    out, back = jax.vjp(lambda *three: function(*three, ids), q, k, v)
    return out, *back(weights)

  return run(q, k, v, ids)


@pytest.mark.parametrize("options", [{}, SPLASH], ids=["xla", "splash"])
def test_values_and_gradients_are_those_of_the_models_attention(options):
  """A text that sees another, or padding, is off by 0.1 and more."""
  given = draw(*SIZES)
  expected = value_and_gradients(of_the_model, *given)
  found = value_and_gradients(
    functools.partial(segment_attention, **options), *given
  )
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6)


def test_splash_in_bfloat16():
  """Sums and softmax stay in float32: off by the rounding of the result."""
  given = draw(1, 40, 2, 1, 16, dtype=jnp.bfloat16)
  found = segment_attention(*given, **SPLASH)
  assert found.dtype == jnp.bfloat16
  exact = of_the_model(*(x.astype(jnp.float32) for x in given[:3]), given[3])
  np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=2**-6)


def test_the_named_implementation_runs_or_says_why_not():
  given = draw(1, 20, 2, 1, 8)
  run = functools.partial(segment_attention, *given)

  def operations(**options):
    return str(jax.make_jaxpr(lambda: run(**options))())

  assert "pallas_call" in operations(**SPLASH)
  for name in (None, "xla"):
    assert "pallas_call" not in operations(implementation=name)
  with pytest.raises(ValueError, match="interpret mode"):
    run(implementation="splash")
  with pytest.raises(ValueError, match="'cudnn' cannot run: it needs a GPU"):
    run(implementation="cudnn")
  with pytest.raises(ValueError, match="must be None or one of"):
    run(implementation="flash")


def test_on_a_gpu_tpu_kernels_refuse(monkeypatch):
  """As far as it can be seen here: before anything is compiled."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  given = draw(1, 20, 2, 1, 8)
  with pytest.raises(ValueError, match="written for a TPU and this is a GPU"):
    segment_attention(*given, implementation="splash")
  with pytest.raises(ValueError, match="bfloat16 or float16, not float32"):
    segment_attention(*given, implementation="cudnn")


def test_shapes_that_do_not_fit_are_named():
  q, k, v, ids = draw(1, 20, 6, 2, 8)
  with pytest.raises(ValueError, match=r"k_BKTH has shape \(1, 2, 19, 8\)"):
    segment_attention(q, k[:, :, 1:], v, ids)
  with pytest.raises(ValueError, match="5 query heads are no multiple of 2"):
    segment_attention(q[:, :, 1:], k, v, ids)
