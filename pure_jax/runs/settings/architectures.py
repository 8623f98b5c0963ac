"""Shapes of published models, to plan a run without their folders.

What the models' own config.json say (huggingface.co/Qwen and, of SmolLM2,
huggingface.co/HuggingFaceTB), the PRM's that of the policy it was trained from.
`plan.py` takes the names where a config takes the folder of a model,
`benchmark.py` gives the shapes random weights.
"""

import dataclasses

from pure_jax.models.config import ModelConfig

_7B = ModelConfig(
  vocab_size=152_064,
  width=3584,
  num_layers=28,
  num_heads=28,
  num_kv_heads=4,
  head_dim=128,
  mlp_width=18_944,
  rope_theta=1e6,
  tied_embeddings=False,
)
_MATH_7B = dataclasses.replace(_7B, rope_theta=1e4)
_MATH_1P5B = ModelConfig(
  vocab_size=151_936,
  width=1536,
  num_layers=28,
  num_heads=12,
  num_kv_heads=2,
  head_dim=128,
  mlp_width=8960,
  rope_theta=1e4,
)
_SMOLLM2_135M = ModelConfig(
  vocab_size=49_152,
  width=576,
  num_layers=30,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
  mlp_width=1536,
  rope_theta=1e5,
  norm_eps=1e-5,
  attention_bias=False,
)

ARCHITECTURES = {
  "qwen2p5_7b": _7B,
  "qwen2p5_math_7b": _MATH_7B,
  "qwen2p5_math_1p5b": _MATH_1P5B,
  "pure_prm_7b": _MATH_7B,
  "smollm2_135m": _SMOLLM2_135M,
}
