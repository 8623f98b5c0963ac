"""The paper's PRM, PURE-PRM-7B: Qwen2.5-Math-7B in two stages on PRM800K.

  python experiments/train_prm.py \\
    --config=experiments/configs/pure_prm_7b.py --workdir=DIR

It fetches Qwen2.5-Math-7B and the original lines of PRM800K (the second phase)
from the Hugging Face hub. `pure_prm_7b.py:smoke` runs both stages on a tiny
random model in under a minute.

Data: the model card of PURE-PRM-7B names HuggingFaceH4/prm800k-trl-dedup, which
is PRM800K in the stepwise format without the problems of MATH's test set. This
config reads the original lines, by the rules of host/data/formats/prm800k.py,
and removes no problem. Before an evaluation on MATH, remove its problems from
the file, or use that data set, whose labels decide about neutral steps, with
--config.files.labelled=HuggingFaceH4/prm800k-trl-dedup/PATH (its files could
not be looked up) and --config.files.labelled_format=stepwise.

Steps: the paper states 369k rows, 3 epochs of the head and then 1 epoch of all
weights, in batches of 128: 3 x 369,000 / 128 = 8,648 updates (rounded down) and
369,000 / 128 = 2,883 updates (rounded up). The config counts updates, not
epochs: a file with more rows is read less often. One problem in a hundred is
held out, so the same number of updates covers 1 % more epochs.

This config is not yet run. docs/scaling.md says how to use more devices.
"""

from configs import base, files, paper
from ml_collections import ConfigDict

from pure_jax.host.data.formats.public import PUBLIC

ROWS = 369_000
BATCH_SIZE = 128


def get_config(variant: str = "full") -> ConfigDict:
  """Both stages, "full" or "smoke"."""
  base.check_variant(variant, "full", "smoke")
  config = files.get_config()
  config.files.labelled_one_in = 100
  config.files.labelled_held_out_rows = 2_000  # Ours, like the share above.
  # The model card says that the ratings 1 and 0 are the positive labels. TRL's
  # script for PRM800K calls a step good only if its rating is 1.
  config.files.neutral_labels = "good"
  config.prm.score.separator = "each"  # As TRL's PRMTrainer encodes steps.
  # Ours: rows with more steps are left out.
  config.prm.score.max_steps = 128
  head_steps, full_steps = 3 * ROWS // BATCH_SIZE, -(-ROWS // BATCH_SIZE)
  config.prm.update(
    {
      "batch_size": BATCH_SIZE,
      "head_steps": head_steps,
      "full_steps": full_steps,
      "length_multiple": 256,  # Ours.
      "head_optim": optimizer(1e-4, head_steps),
      # Weights stay in float32: steps of 1e-6 would vanish in bfloat16.
      "full_optim": optimizer(1e-6, full_steps),
    }
  )
  if variant == "smoke":
    return paper.tiny(config, "untied")
  config.files.policy = "Qwen/Qwen2.5-Math-7B"
  config.files.labelled = PUBLIC[config.files.labelled_format].repo_id
  return config


def optimizer(learning_rate: float, steps: int) -> dict:
  """AdamW of a stage. The decay is the default of the authors' trainer."""
  return base.optimizer(
    learning_rate, weight_decay=0.1, decay_steps=steps, decay="linear"
  )
