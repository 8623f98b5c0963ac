"""A PRM on Qwen2.5-Coder-0.5B-Instruct, from GSM8K solutions, on a CPU.

  python experiments/train_prm.py --workdir=DIR \\
    --config=experiments/configs/qwen2p5_0p5b_gsm8k_prm.py \\
    --config.files.labelled=example_model_solutions.jsonl

The trunk is that of the policy of qwen2p5_0p5b_gsm8k.py, from the Hugging Face
hub; the solutions are at github.com/openai/grade-school-math, in
grade_school_math/data.
A first run may take the first 500 solutions, `--config.files.labelled_rows=500`
with `--config.prm.head_steps=560`. The states of the trunk are cached. A run on
more solutions computes only the rest: name one folder for both runs with
--config.prm.trunk_states=FOLDER.

Data: four model solutions of each of GSM8K's 1,319 test problems, see
host/data/formats/gsm8k_steps.py. The split is that of `gsm8k_prm.py`: one
problem in ten is held out. Of the 5,276 solutions 5,248 fit: 4,704 to train on
and 544 held out. They have 816,117 tokens and 22,906 steps.

Labels come from `gsm8k_departures_and_answers`. A policy is rewarded for right
answers, so the PRM must know them. With `gsm8k_departures` 3,081 of the 5,276
last steps have no label and 1,998 of the others are good: a final answer is
nearly always good there. With `gsm8k_steps` nearly all other steps are good.
The texts have no calculator annotations, from which the labels are made.

The first stage computes the trunk once for each solution and trains the head
for five epochs on its states. The second trains adapters of all matrices, which
takes 52 minutes. Batches are small so that few solutions give many updates, and
so that a CPU has memory for remat="dots".

Measured on 2026-11-30 (seed 0, jax 0.10.2, two cores of an AMD EPYC, weights
from a GGUF file): the AUC of a held-out step is .710 after the head and .784
after the adapters, and the choice among four solutions by their minimum is
right for .511 of the held-out problems, where their mean is .385.
docs/results.md has all numbers; the log is
experiments/results/qwen2p5_0p5b_gsm8k/prm_metrics.jsonl. Nothing was tuned on
them.

Afterwards, for intervals, calibration and the choice of one in four, on the
labels of `gsm8k_prm.py`:

  python experiments/evaluate_prm.py --workdir=DIR2 --config.run=DIR \\
    --config=experiments/configs/evaluate_prm.py \\
    --config.prompt_format=plain \\
    --config.data="({'name': 'held out', 'format': 'gsm8k_departures', \\
      'file': 'example_model_solutions.jsonl', 'held_out_one_in': 10},)"

Does the PRM also rank what the policy writes? Take the responses.jsonl of an
evaluation of the policy on problems that the PRM has not been trained on: those
of GSM8K's train.jsonl, which RL uses too, or with 'held_out_one_in' a tenth of
those of test.jsonl.

    --config.data="({'name': 'own', 'format': 'responses', \\
      'file': 'EVALUATION/responses.jsonl', \\
      'problems': 'train.jsonl', 'problems_format': 'gsm8k'},)"

`qwen2p5_0p5b_gsm8k_prm.py:smoke` runs both stages on a tiny random model in
under a minute.
"""

from configs import base, files, paper, qwen2p5_0p5b_gsm8k
from ml_collections import ConfigDict

BATCH_SIZE = 4
HEAD_STEPS = 5 * 4_704 // BATCH_SIZE
FULL_STEPS = 400


def get_config(variant: str = "full") -> ConfigDict:
  """Both stages, "full" or "smoke"."""
  base.check_variant(variant, "full", "smoke")
  config = files.get_config()
  config.files.update(
    {
      "labelled_format": "gsm8k_departures_and_answers",
      "labelled_one_in": 10,
      "prm_prompt_format": "plain",  # The first step is a line of its own.
      # Room for 99 % of the rows.
      "prm_prompt_tokens": 192,
      "response_tokens": 256,
      # Fast on accelerators and on CPUs with AMX or AVX512-BF16; on other CPUs
      # float32 is faster.
      "model": {"compute_dtype": "bfloat16", "remat": "dots"},
    }
  )
  config.prm.score.max_steps = 12
  config.prm.update(
    {
      "trunk_states": "trunk_states",
      "batch_size": BATCH_SIZE,
      "head_steps": HEAD_STEPS,
      "full_steps": FULL_STEPS,
      "log_every": 50,
      "length_multiple": 32,
      # The paper's rate and weight decay; the decay to 0 is ours.
      "head_optim": base.optimizer(
        1e-4, weight_decay=0.1, decay_steps=HEAD_STEPS
      ),
      "full_optim": base.optimizer(
        1e-4, weight_decay=0.1, warmup_steps=20, decay_steps=FULL_STEPS
      ),
      "lora": {"rank": 8},
    }
  )
  if variant == "smoke":
    paper.tiny(config, "tied")
    config.files.labelled_format = "prm800k"  # The format of the tiny files.
    config.prm.full_optim.warmup_steps = 2
    return config
  config.files.policy = qwen2p5_0p5b_gsm8k.POLICY
  return config
