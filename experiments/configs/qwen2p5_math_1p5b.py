"""The paper's run of Qwen2.5-Math-1.5B: 500 iterations on PURE's MATH prompts.

  python experiments/train_pure.py \\
    --config=experiments/configs/qwen2p5_math_1p5b.py:prm_vr --workdir=DIR \\
    --config.files.policy=Qwen2.5-Math-1.5B --config.files.prm=PURE-PRM-7B \\
    --config.files.train=prompts.json --config.files.held_out=math500.jsonl

The first two are folders as transformers saves them, the others the files of
PURE's repository. Variants: `prm_vr` (the default), `prm` and `vr` are the
paper's three reward modes; `vr` reads no PRM, leave --config.files.prm out.
`smoke_prm_vr` (or `smoke`), `smoke_prm` and `smoke_vr` run the same on a tiny
random policy and PRM, in under a minute each. `_one_loop` behind any of them
samples without continuous batching, as --config.rl.rollout.batches needs it.
Devices: --config.mesh.fsdp=... and others; docs/planning.md has the smallest
TPU slices that it compiles for and fits, with their flags.

Not yet run.
"""

from configs import paper
from ml_collections import ConfigDict


def get_config(variant: str = "prm_vr") -> ConfigDict:
  """The run.

  Args:
    variant: "prm_vr", "prm" or "vr", each also after "smoke_"; or "smoke";
      each also followed by "_one_loop".

  Returns:
    The config.

  Raises:
    ValueError: for another variant.
  """
  return paper.policy_run(
    variant,
    iterations=500,
    embeddings="tied",
    architecture="qwen2p5_math_1p5b",
  )
