"""The paper's run of Qwen2.5-7B: 1,000 iterations on PURE's MATH prompts.

  python experiments/train_pure.py \\
    --config=experiments/configs/qwen2p5_7b.py --workdir=DIR

It fetches models and data from the Hugging Face hub. paper.py lists the other
variants and describes the data. Not yet run.
"""

from configs import paper
from ml_collections import ConfigDict


def get_config(variant: str = "prm_vr") -> ConfigDict:
  """The run, in a variant that `paper` lists."""
  return paper.policy_run(
    variant,
    policy="Qwen/Qwen2.5-7B",
    architecture="qwen2p5_7b",
    iterations=1000,
  )
