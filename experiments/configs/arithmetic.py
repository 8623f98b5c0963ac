"""The embedded world, small enough for two cores of a laptop.

  python experiments/train_pure.py \\
    --config=experiments/configs/arithmetic.py --workdir=DIR

Measured on 2026-11-30 (jax 0.10.2, two cores of an AMD EPYC): held-out accuracy
rose from .191 to .891 at temperature 1, and from .094 to .980 with greedy
decoding. The log is experiments/results/arithmetic/metrics.jsonl, without the
rows of single RL iterations. The version of 2026-11-25 took 8.5 minutes from a
fresh clone and environment to the end. Times vary between machines of one kind:
an earlier version took from 7.5 to 11.5 minutes.

`arithmetic.py:smoke` runs every stage in about a minute. It shows that the
machinery works; its models are too small to learn anything.
"""

from configs import base
from ml_collections import ConfigDict


def get_config(variant: str = "full") -> ConfigDict:
  """The "full" run of the embedded world, or a "smoke" run."""
  base.check_variant(variant, "full", "smoke")
  config = base.get_config()
  if variant == "full":
    return config
  config.model.update({"width": 32, "num_layers": 2, "head_dim": 8})
  config.model.mlp_width = 64
  config.sft.update({"demonstrations": 2_000, "steps": 60, "log_every": 20})
  config.sft.batch_size = 64
  config.prm.update(
    {
      "labelled": 2_000,
      "policy_prompts": 64,
      "policy_samples": 4,
      "extra_layers": 1,
      "batch_size": 64,
      "head_steps": 20,
      "full_steps": 40,
      "log_every": 20,
      "eval_prompts": 32,
    }
  )
  config.rl.update(
    {
      "iterations": 4,
      "prompts": 8,
      "samples_per_prompt": 4,
      "eval_every": 2,
      "eval_prompts": 32,
      "samples_every": 2,
      "checkpoint_every": 2,
    }
  )
  return config
