"""RL of Qwen2.5-Coder-0.5B-Instruct on GSM8K, for two cores of a CPU.

  python experiments/train_pure.py --workdir=DIR \\
    --config=experiments/configs/qwen2p5_0p5b_gsm8k.py \\
    --config.rl.credit.process_coef=0                   # Outcome rewards only.

  python experiments/compare_credit.py --workdir=DIR --seeds=0 --jobs=1 \\
    --config_file=experiments/configs/qwen2p5_0p5b_gsm8k.py \\
    --arms=sum,min,min+vr,vr --set=files.prm=FOLDER

The first command trains on outcome rewards. The second compares them with step
rewards of a PRM: qwen2p5_0p5b_gsm8k_prm.py trains one, export.py writes its
folder. Model and problems are fetched from the Hugging Face hub. All sizes are
chosen for the CPU: few and short responses, problems of few words, and adapters
(LoRA) in place of all weights. There is no KL penalty: it would need a second
forward pass, of the reference policy.

About four fifths of the problems fit: 82 % of those to train on and 79 % of
those held out, of which 48 are answered. So accuracies in the run are not those
of GSM8K; evaluate.py answers all problems. The PRM was trained on solutions of
nine in ten of the held-out problems. It is not read for their accuracy, but its
scores there say little about reward hacking; those of rollouts do.

Measured on 2026-11-30 and 12-01, one seed: sum, min and min+vr hack the PRM;
with vr accuracy rises on training problems, not measurably on held-out ones.
docs/results.md has all numbers; the logs are rl_*_metrics.jsonl in
experiments/results/qwen2p5_0p5b_gsm8k.
`qwen2p5_0p5b_gsm8k.py:smoke` runs the same stages on a tiny random model and a
random PRM in under a minute.
"""

from configs import base, files, paper
from ml_collections import ConfigDict

from pure_jax.host.data.formats.public import PUBLIC

POLICY = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
SAMPLES = 8  # Of a prompt, as in the paper.


def get_config(variant: str = "full") -> ConfigDict:
  """The run, "full" or "smoke"."""
  base.check_variant(variant, "full", "smoke")
  config = files.get_config()
  config.files.update(
    {
      # Asked as in "pure", most responses have not ended after 192 tokens.
      "prompt_format": "two_examples",
      "prm_prompt_format": "plain",  # As the PRM was trained.
      # The examples take most of it.
      "prompt_tokens": 240,
      "prm_prompt_tokens": 80,
      "grader": {"extractors": ("boxed", "last_number")},
      "model": {
        # Fast on accelerators and on CPUs with AMX or AVX512-BF16; on other
        # CPUs float32 is faster.
        "compute_dtype": "bfloat16",
        # Keeps the products of a layer, which fit into memory.
        "remat": "dots",
        "attention_chunk": 64,
      },
    }
  )
  config.prm.score.max_steps = 12
  config.rl.update(
    {
      "iterations": 50,
      "prompts": 4,
      "samples_per_prompt": SAMPLES,
      "sampler": {"max_new_tokens": 128},
      # Without this, many responses go on with a question of their own.
      "rollout": {"stop_on_boxed": True},
      "loss": {"kl_in_loss": None},
      "old_logp": {"source": "update"},
      # A row has one prompt and its responses; one row at a time.
      "micro_batches": 4 * SAMPLES,
      "packed_tokens": 240 + SAMPLES * 128,
      "length_buckets": 8,  # Rows as wide as the responses of a batch need.
      "lora": {"rank": 8},
      "optim": base.optimizer(1e-4),
      "eval_every": 25,
      "eval_prompts": 48,
      "samples_every": 5,
      "checkpoint_every": 2,
    }
  )
  if variant == "smoke":
    config.files.random_files = ("train", "held_out", "prm")
    paper.tiny(config, "tied")
    # The tiny tokenizer needs more tokens for the examples.
    config.files.prompt_tokens = 768
    # As in the run, a row holds a prompt and its four responses of 32 tokens.
    config.rl.packed_tokens = 768 + 4 * 32
    return config
  config.files.policy = POLICY
  config.files.train_format = config.files.held_out_format = "gsm8k"
  config.files.train = config.files.held_out = PUBLIC["gsm8k"].repo_id
  return config
