"""A PRM on a real Qwen2.5 of 0.5B parameters: solutions of GSM8K, on a CPU.

  python experiments/train_prm.py --workdir=DIR \\
    --config=experiments/configs/qwen2p5_0p5b_gsm8k_prm.py \\
    --config.files.policy=FOLDER \\
    --config.files.labelled=example_model_solutions.jsonl

This config is not yet run.
"""

from configs import base, files, paper
from ml_collections import ConfigDict


def get_config(variant: str = "full") -> ConfigDict:
  """Both stages, "full" or "smoke"."""
  base.check_variant(variant, "full", "smoke")
  config = files.get_config()
  config.files.update(
    {
      "labelled_format": "gsm8k_departures",
      "labelled_one_in": 10,
      "prm_prompt_format": "plain",
      # Room for 99 % of the rows.
      "prm_prompt_tokens": 192,
      "response_tokens": 256,
      # Faster than bfloat16 on a CPU.
      "model": {"compute_dtype": "float32", "remat": "layer"},
    }
  )
  config.prm.score.max_steps = 12
  config.prm.update(
    {
      "batch_size": 16,
      "trunk_states": "trunk_states",
      "head_steps": 3_000,
      "full_steps": 100,
      "log_every": 50,
      "length_multiple": 32,
      "head_optim": base.optimizer(
        1e-3, weight_decay=0.1, decay_steps=3_000, decay="cosine"
      ),
      "full_optim": base.optimizer(2e-4, weight_decay=0.1, warmup_steps=10),
      "lora": {"rank": 8},
    }
  )
  if variant == "smoke":
    paper.tiny(config, "untied")
    config.files.labelled_format = "prm800k"  # The format of the tiny files.
  return config
