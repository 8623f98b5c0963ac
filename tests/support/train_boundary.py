"""A tiny training step: models, configs and prompts that many tests share."""

import dataclasses

import numpy as np

from pure_jax.models import prm
from pure_jax.models.config import ModelConfig
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.settings import CreditConfig, LossConfig, ScoreConfig
from pure_jax.training.step_spec import Layouts, StepSpec
from pure_jax.types import Prompts, SeparatorTable

PAD, EOS, SCORE, SEPARATOR = 0, 1, 2, 3
MODEL = ModelConfig(
  vocab_size=16,
  width=16,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_width=24,
  attention_bias=True,
  tied_embeddings=True,
)
PRM_MODEL = prm.extend_config(MODEL, 1)
SAMPLER = SamplingConfig(max_new_tokens=10, pad_id=PAD, stop_ids=(EOS,))
CREDIT = CreditConfig(form="min", baseline="main", group_size=4)
LOSS = LossConfig(kl_in_loss="k3", kl_coef=0.1, entropy_coef=0.01)
TABLE = SeparatorTable(
  ends_step=np.arange(16) == SEPARATOR,
  half=np.zeros(16, bool),
  stem=np.zeros(16, np.int32),
  has_stem=np.zeros(16, bool),
  score_id=np.int32(SCORE),
  eos_ids=np.array([EOS], np.int32),
  pad_id=np.int32(PAD),
)


def prompts(count):
  """Left-padded prompts of 1 to 5 tokens."""
  rng = np.random.default_rng(0)
  mask = np.arange(5)[::-1] < rng.integers(1, 6, (count, 1))
  tokens = np.where(mask, rng.integers(4, 16, (count, 5)), PAD)
  return Prompts(tokens.astype(np.int32), mask)


def grown(params):
  """Scales embeddings to the size of a trained model's.

  At initialisation they are so small that RMSNorm magnifies the rounding of
  their gradients by 50, and rollouts are all but uniform.
  """
  return params | {"embedding": 15 * params["embedding"]}


def spec(layout, **changes):
  """The training step, its models all in one layout."""
  made = StepSpec(
    model=MODEL,
    prm_model=PRM_MODEL,
    sampler=SAMPLER,
    scoring=ScoreConfig(4),
    table=TABLE,
    layouts=Layouts.same(layout),
    credit=CREDIT,
    loss=LOSS,
  )
  return dataclasses.replace(made, **changes)
