"""The attention kernels of jax, compared with the attention of the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_inputs import draw_texts, model_attention, value_and_gradients

from pure_jax.kernels.segment_attention import segment_attention

SPLASH = {"implementation": "splash", "interpret": True}
# B, T, N, K, H: no size is a multiple of a block, and some texts cross one.
SIZES = (2, 150, 6, 2, 10)


@pytest.mark.parametrize("options", [{}, SPLASH], ids=["xla", "splash"])
def test_values_and_gradients_equal_those_of_the_transformer(options):
  """If a text attended to another or to padding, the error would be 0.1."""
  inputs = draw_texts(*SIZES)
  expected = value_and_gradients(model_attention, *inputs)
  out = value_and_gradients(
    functools.partial(segment_attention, **options), *inputs
  )
  for x, y in zip(out, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6)


def test_splash_in_bfloat16():
  """Sums and softmax stay in float32: only the result is rounded."""
  inputs = draw_texts(1, 40, 2, 1, 16, dtype=jnp.bfloat16)
  out = segment_attention(*inputs, **SPLASH)
  assert out.dtype == jnp.bfloat16
  exact = jax.jit(model_attention)(
    *(x.astype(np.float32) for x in inputs[:3]), inputs[3]
  )
  np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=2**-6)


def test_a_named_implementation_runs_or_raises():
  inputs = draw_texts(1, 20, 2, 1, 8)
  run = functools.partial(segment_attention, *inputs)

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


def test_tpu_kernels_raise_on_a_gpu(monkeypatch):
  """The check comes before anything is compiled, so a CPU can test it."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  inputs = draw_texts(1, 20, 2, 1, 8)
  with pytest.raises(ValueError, match="written for a TPU and this is a GPU"):
    segment_attention(*inputs, implementation="splash")
  with pytest.raises(ValueError, match="bfloat16 or float16, not float32"):
    segment_attention(*inputs, implementation="cudnn")


def test_cudnn_gets_an_even_number_of_tokens(monkeypatch):
  """With a mask, jax raises for the gradient of an odd number on a GPU."""
  attention, lengths = jax.nn.dot_product_attention, []

  def attend(q, *inputs, implementation, **options):
    lengths.append((implementation, q.shape[1]))
    return attention(q, *inputs, **options)

  inputs = draw_texts(1, 21, 2, 1, 8, dtype=jnp.bfloat16)
  expected = segment_attention(*inputs)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
  out = segment_attention(*inputs, implementation="cudnn")
  assert lengths == [("cudnn", 22)]
  np.testing.assert_allclose(
    np.float32(out), np.float32(expected), rtol=0, atol=2**-7
  )


def test_shapes_that_do_not_match_are_named():
  q, k, v, ids = draw_texts(1, 20, 6, 2, 8)
  with pytest.raises(ValueError, match=r"k_BKTH has shape \(1, 2, 19, 8\)"):
    segment_attention(q, k[:, :, 1:], v, ids)
  with pytest.raises(ValueError, match="5 query heads are no multiple of 2"):
    segment_attention(q[:, :, 1:], k, v, ids)
