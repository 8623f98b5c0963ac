"""A PRM on real language: SmolLM2-135M-Instruct on solutions of GSM8K.

  python experiments/unpack_gguf.py --gguf=FILE --output=smollm2
  python experiments/train_prm.py --workdir=DIR \\
    --config=experiments/configs/gsm8k_prm.py --config.files.policy=smollm2 \\
    --config.files.labelled=example_model_solutions.jsonl

Model: the docstring of unpack_gguf.py says where the file comes from.

Data: four model solutions of each of GSM8K's 1,319 test problems, see
host/data/formats/gsm8k_steps.py. One problem in ten is held out: 137 problems
with 548 solutions, of which 544 fit. Of the 4,690 other solutions that fit, the
head is trained on 640 and all weights on 560, drawn by seed 0 without
repetition.

Labels come from `gsm8k_departures`. With `gsm8k_steps`, 98 % of the bad steps
are final answers, so that an AUC says little about a PRM: the rule "not the
last line" has an AUC of .89 over all 13,789 labels, and "an early line" has
.86. With `gsm8k_departures` the two rules have .44 and .40. The disadvantage
is that some departures are only another way to the answer.

Learning rates: the paper trains all weights of a 7B model at 1e-6 for 2,883
steps; 140 such steps move no weight by more than about 1e-4. This config takes
3e-5 after ten steps of warm-up. Without warm-up, after two steps of 5e-5, the
PRM called every step of eight held-out rows bad. The head's rate, weight decay
and beta2 are the paper's.

Measured on 2026-11-25 (seed 0, jax 0.10.2, two otherwise idle cores of an AMD
EPYC): 30.5 minutes, of which 5 for the head, 18 for all weights and 3.5 for
each evaluation. 1,398 labels are held out; 133 of the held-out problems have
all four solutions.

  after                 head   all weights   to beat
  AUC of a step         .532      .606       .5
  balanced accuracy     .503      .500       .5
  best of 4, minimum    .357      .353       .385, the mean of the four
  best of 4, softmin    .368      .376       .385
  best of 4, last       .368      .383       .385
  best of 4, product    .368      .368       .385
  best of 4, mean       .353      .368       .385

The majority of the four is right for .489 of the problems. So the PRM ranks
steps better than chance, but hardly better than a ranking by position ("a late
line" has an AUC of .60 over all labels). At the threshold it predicts every
step as good, and its choice among solutions is no better than a random one.
The log, with the losses of single batches of four, is
experiments/results/gsm8k_prm/metrics.jsonl. Nothing was tuned on it, and the
full data set has not been tried.

`gsm8k_prm.py:smoke` runs both stages in under a minute on a tiny random Llama,
the architecture of SmolLM2.
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
      "prm_prompt_format": "plain",  # As measured; the paper's is "raw".
      # Room for 99 % of the rows.
      "prm_prompt_tokens": 160,
      "response_tokens": 256,
      # Faster than bfloat16 on a CPU without AVX512-BF16.
      "model": {"compute_dtype": "float32"},
    }
  )
  config.prm.score.max_steps = 12
  config.prm.update(
    {
      "batch_size": 4,  # Small, so that few rows give many updates.
      "head_steps": 160,
      "full_steps": 140,
      "log_every": 10,
      "length_multiple": 32,
      "head_optim": base.optimizer(1e-4, weight_decay=0.1),
      "full_optim": base.optimizer(3e-5, weight_decay=0.1, warmup_steps=10),
    }
  )
  if variant == "smoke":
    paper.tiny(config, "llama")
    config.files.labelled_format = "prm800k"  # The format of the tiny files.
  return config
