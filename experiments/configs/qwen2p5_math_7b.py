"""The paper's run of Qwen2.5-Math-7B: 500 iterations on PURE's MATH prompts.

  python experiments/train_pure.py \\
    --config=experiments/configs/qwen2p5_math_7b.py:prm_vr --workdir=DIR \\
    --config.files.policy=Qwen2.5-Math-7B --config.files.prm=PURE-PRM-7B \\
    --config.files.train=prompts.json --config.files.held_out=math500.jsonl

paper.py lists the other variants and describes the files. Not yet run.
"""

from configs import paper
from ml_collections import ConfigDict


def get_config(variant: str = "prm_vr") -> ConfigDict:
  """The run, in a variant that `paper` lists."""
  return paper.policy_run(
    variant, architecture="qwen2p5_math_7b", iterations=500
  )
