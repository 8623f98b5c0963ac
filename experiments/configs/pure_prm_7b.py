"""The paper's PRM, PURE-PRM-7B: Qwen2.5-Math-7B in two stages on PRM800K.

  python experiments/train_prm.py \\
    --config=experiments/configs/pure_prm_7b.py --workdir=DIR \\
    --config.files.policy=Qwen2.5-Math-7B --config.files.labelled=prm800k.jsonl

The first is a folder as transformers saves it, the second the original lines
of PRM800K in one file. `pure_prm_7b.py:smoke` runs both stages on a tiny
random model in under a minute.

Data: the model card of PURE-PRM-7B names HuggingFaceH4/prm800k-trl-dedup, which
is PRM800K in the stepwise format with the problems of MATH's test set removed.
This config reads the original lines, by the rules of
`host/data/formats/prm800k.py`,
and removes nothing: leave such problems out of the file before an evaluation on
them, or name rows of that data set with
--config.files.labelled_format=stepwise.

Steps: the paper states 369k rows, 3 epochs of the head and then 1 of all
weights, in batches of 128: 3 x 369,000 / 128 = 8,648 (rounded down) and
369,000 / 128 = 2,883 (rounded up). They are numbers of updates, not of epochs:
a file with more or fewer rows is read less or more often. One problem in a
hundred is held out to evaluate on, so as many steps are 1 % more of an epoch.

Not yet run; docs/scaling.md says how to give it more devices.
"""

from configs import base, files, paper
from ml_collections import ConfigDict

ROWS = 369_000
BATCH_SIZE = 128


def get_config(variant: str = "full") -> ConfigDict:
  """Both stages.

  Args:
    variant: "full" or "smoke".

  Returns:
    The config.

  Raises:
    ValueError: for another variant.
  """
  if variant not in ("full", "smoke"):
    raise ValueError(f"Variants are 'full' and 'smoke', not {variant!r}.")
  config = files.get_config()
  config.files.labelled_one_in = 100
  config.files.labelled_held_out_rows = 2_000  # Ours, as is the share.
  config.prm.score.max_steps = 128  # Ours: rows with more steps are left out.
  config.prm.update(
    {
      "batch_size": BATCH_SIZE,
      "head_steps": 3 * ROWS // BATCH_SIZE,
      "full_steps": -(-ROWS // BATCH_SIZE),
      "length_multiple": 256,  # Ours.
      "head_optim": base.optimizer(1e-4, weight_decay=0.1),
      # Weights stay in float32, for steps of 1e-6 vanish in bfloat16.
      "full_optim": base.optimizer(1e-6, weight_decay=0.1),
    }
  )
  return paper.tiny(config, "untied") if variant == "smoke" else config
