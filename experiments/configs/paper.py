"""What the paper's runs have in common (arXiv 2504.15275); no config itself.

Everything the paper states is as it states it; the credit is that of
`pure_jax.settings.paper`. What it does not state, or leaves to the machine, has
a comment that says so.
"""

from configs import base, files
from ml_collections import ConfigDict

# Reward mode and constant learning rate of each way to train.
VARIANTS = {
  "prm": ("prm", 5e-7),
  "vr": ("vr", 1e-6),
  "prm_vr": ("prm+vr", 1e-6),
}


def policy_run(
  variant: str, *, iterations: int, embeddings: str, architecture: str
) -> ConfigDict:
  """RL of a policy on the MATH prompts of PURE.

  Args:
    variant: one of `VARIANTS`, "smoke_" and one of them, or "smoke", which is
      "smoke_prm_vr"; each also followed by "_one_loop", which samples without
      continuous batching.
    iterations: of RL.
    embeddings: "tied" or "untied", as the policy's are, for smoke variants.
    architecture: name of the policy's shape, for plan.py.

  Returns:
    The config.

  Raises:
    ValueError: for another variant.
  """
  smokes = [f"smoke_{name}" for name in VARIANTS]
  takes_turns = not variant.endswith("_one_loop")
  asked, variant = variant, variant.removesuffix("_one_loop")
  if variant not in (*VARIANTS, *smokes, "smoke"):
    raise ValueError(
      f"Variants are {', '.join(map(repr, [*VARIANTS, *smokes]))} and 'smoke', "
      f"not {asked!r}; '_one_loop' may follow each of them."
    )
  smoke = variant.startswith("smoke")
  mode = "prm_vr" if variant == "smoke" else variant.removeprefix("smoke_")
  reward_mode, learning_rate = VARIANTS[mode]
  config = files.get_config()
  config.files.prm_prompt_tokens = config.files.prompt_tokens
  # Ours, and without influence on the result: 0.6 GB of logits a row.
  config.files.logits_chunk = 1024
  # Ours: all scores of a row of 9,216 tokens would be 9.5 GB for each layer.
  config.files.attention_chunk = 512
  config.files.architecture = architecture
  if reward_mode != "vr":
    config.files.prm_architecture = "pure_prm_7b"
  config.rl.update(
    {
      "iterations": iterations,
      "prompts": 64,
      "samples_per_prompt": 8,
      "max_new_tokens": 8192,
      "max_steps": 512,  # Ours: more steps than these share the last's score.
      "temperature": 1.0,
      "reward_mode": reward_mode,
      "clip_low": 0.2,
      "clip_high": 0.2,
      # The paper does not name beta1, beta2 and the norm of gradients: base's.
      "optim": base.optimizer(learning_rate),
      "eval_prompts": 480,  # Of the 500 of MATH500: 2 to 32 row shards.
      # Ours, and without influence on the result: memory.
      "micro_batches": 64,
      # Likewise: time. Places of responses that have ended go to prompts that
      # wait, and the cache grows with the longest that is being written.
      "rollout_rows": 128 if takes_turns else None,
      # Likewise: time. Rounding differs from that of unpacked rows.
      "length_buckets": 3,
      "packed_tokens": 4096,
    }
  )
  # Prompts whose source gives an answer have one: 879 of the 8,523.
  config.rl.answer_fraction = None
  credit_of_the_paper(config)
  if not smoke:
    return config
  # What the real run's user names, and no more.
  given = () if reward_mode == "vr" else ("prm",)
  config.files.random_files = ("train", "held_out", *given)
  return tiny(config, embeddings)


def credit_of_the_paper(config: ConfigDict) -> None:
  """Sets what `pure_jax.settings.paper` sets."""
  config.rl.update(
    {
      "credit": "softmin",
      "credit_temperature": 0.1,
      "baseline": "paper_a",
      # Ours: the paper describes no whitening, no equation of it has one, but
      # both branches of its reference do whiten. `--config.rl.whiten=True`.
      "whiten": False,
      "kl_placement": "reward",
      "kl_estimator": "k1",
      "kl_coef": 1e-3,
      "loss_aggregate": "token_mean",
    }
  )


def tiny(config: ConfigDict, random_model: str) -> ConfigDict:
  """The same run on a random model and a few problems: every stage, no result.

  Args:
    config: what to shrink; it is changed.
    random_model: "tied", "untied" or "llama".

  Returns:
    The config.
  """
  config.files.update(
    {
      "random_model": random_model,
      "prompt_tokens": 256,
      "prm_prompt_tokens": 64,
      "response_tokens": 64,
      "labelled_one_in": 4,
      "grader_workers": 1,
      "compute_dtype": "float32",
      "logits_chunk": 16,
    }
  )
  config.prm.update(
    {
      "batch_size": 16,
      "head_steps": 4,
      "full_steps": 6,
      "log_every": 2,
      "length_multiple": 32,
    }
  )
  config.rl.update(
    {
      "iterations": 2,
      "prompts": 4,
      "samples_per_prompt": 4,
      "max_new_tokens": 32,
      "max_steps": 8,
      "micro_batches": 2,
      "packed_tokens": 96,
      "eval_every": 2,
      "eval_prompts": 16,
      "samples_every": 2,
      "checkpoint_every": 2,
    }
  )
  if config.rl.rollout_rows is not None:
    # Half of the prompts wait, and the cache grows twice.
    config.rl.update({"rollout_rows": 8, "rollout_chunk": 8})
  return config
