"""The paper's RL runs (arXiv 2504.15275): the common config of three policies.

qwen2p5_7b.py, qwen2p5_math_7b.py and qwen2p5_math_1p5b.py name the policy and
the number of iterations; each of them has these variants:

  prm_vr        step rewards and outcome rewards (the default)
  prm           step rewards only
  vr            outcome rewards only, no PRM: leave out --config.files.prm
  smoke_prm_vr, smoke_prm, smoke_vr, or smoke for the first of them:
                the same on a tiny random policy and PRM, in under a minute
  ..._one_loop  any of the above without continuous batching, which
                --config.rl.rollout.batches needs

Policy and PRM are folders as transformers saves them. Training prompts and
held-out problems are the files of PURE's repository. Devices are chosen by
--config.mesh.fsdp=... and others: docs/planning.md has the smallest TPU slices
for which each run compiles and fits, with their flags.

Values that the paper states are the paper's; the credit is
`pure_jax.settings.paper`. Values that it does not state, or that depend on the
machine, have a comment that says "ours".
"""

from configs import base, files
from ml_collections import ConfigDict

from pure_jax.runs.settings.models import ARCHITECTURES

# Weight of the step rewards, weight of the outcome reward, learning rate.
MODES = {
  "prm": (1.0, 0.0, 5e-7),
  "vr": (0.0, 1.0, 1e-6),
  "prm_vr": (1.0, 1.0, 1e-6),
}


def policy_run(
  variant: str, *, architecture: str, iterations: int
) -> ConfigDict:
  """RL of a policy (a name in `ARCHITECTURES`) on the MATH prompts of PURE."""
  mode, is_smoke, is_continuous = parse(variant)
  process_coef, verifiable_coef, learning_rate = MODES[mode]
  config = files.get_config()
  config.files.architecture = architecture
  if process_coef:
    config.files.prm_architecture = "pure_prm_7b"
  # Ours, to save memory; it does not change the result: 0.6 GB of logits per
  # row.
  config.files.model.logits_chunk = 1024
  # Ours: all scores of a row of 9,216 tokens would be 9.5 GB for each layer.
  config.files.model.attention_chunk = 512
  # Ours: further steps share the score of the last one.
  config.prm.score.max_steps = 512
  config.rl.update(
    {
      "iterations": iterations,
      "prompts": 64,
      "samples_per_prompt": 8,
      # All answers that the source gives are used: 879 of 8,523 prompts.
      "answer_fraction": None,
      "sampler": {"max_new_tokens": 8192, "temperature": 1.0},
      # The paper does not state beta1, beta2 and max_grad_norm: base's.
      "optim": base.optimizer(learning_rate),
      # Read only with credit.baseline="gae"; the rate is verl's default.
      "critic": {"optim": base.optimizer(1e-5)},
      "eval_prompts": 480,  # Of 500 in MATH500; 2 to 32 row shards divide it.
      # Ours, to save memory; it does not change the result.
      "micro_batches": 64,
      # Ours, to save time. Finished responses free their slots for waiting
      # prompts, and the cache grows with the longest unfinished response.
      "engine": {"slots": 128 if is_continuous else None},
      # Ours, to save time. Only rounding differs from unpacked rows.
      "length_buckets": 3,
      "packed_tokens": 4096,
    }
  )
  set_credit_and_loss(config)
  config.rl.credit.process_coef = process_coef
  config.rl.credit.verifiable_coef = verifiable_coef
  if not is_smoke:
    return config
  # The same files that the user of the real run names.
  prm = ("prm",) if process_coef else ()
  config.files.random_files = ("train", "held_out", *prm)
  is_tied = ARCHITECTURES[architecture].tied_embeddings
  return tiny(config, "tied" if is_tied else "untied")


def parse(variant: str) -> tuple[str, bool, bool]:
  """Parses a variant: (one of `MODES`, is smoke, is continuous batching)."""
  name = variant.removesuffix("_one_loop")
  is_smoke = name.startswith("smoke")
  mode = "prm_vr" if name == "smoke" else name.removeprefix("smoke_")
  if mode not in MODES:
    names = [*MODES, *(f"smoke_{mode}" for mode in MODES)]
    raise ValueError(
      f"Variants are {', '.join(map(repr, names))} and 'smoke', not "
      f"{variant!r}; '_one_loop' may follow each of them."
    )
  return mode, is_smoke, name == variant


def set_credit_and_loss(config: ConfigDict) -> None:
  """Sets the fields of `pure_jax.settings.paper`."""
  config.rl.credit.update(
    {
      "form": "softmin",
      "temperature": 0.1,
      "baseline": "paper_a",
      # Ours: neither the text nor an equation of the paper has whitening, but
      # both branches of its reference code whiten.
      # `--config.rl.credit.whitening=tokens` does the same.
      "whitening": "none",
      "kl_in_reward": "k1",
      "kl_coef": 1e-3,
    }
  )
  config.rl.loss.update(
    {
      "clip_low": 0.2,
      "clip_high": 0.2,
      "aggregate": "token_mean",
      "kl_in_loss": None,
    }
  )


def tiny(config: ConfigDict, random_model: str) -> ConfigDict:
  """Shrinks a run to a random model and a few problems; it learns nothing."""
  config.files.update(
    {
      "random_model": random_model,
      "prompt_tokens": 256,
      "prm_prompt_tokens": 64,
      "response_tokens": 64,
      "labelled_one_in": 4,
      "grader": {"workers": 1},
      "model": {"compute_dtype": "float32", "logits_chunk": 16},
    }
  )
  config.prm.update(
    {
      "batch_size": 16,
      "head_steps": 4,
      "full_steps": 6,
      "log_every": 2,
      "length_multiple": 32,
      "score": {"max_steps": 8},
    }
  )
  config.rl.update(
    {
      "iterations": 2,
      "prompts": 4,
      "samples_per_prompt": 4,
      "sampler": {"max_new_tokens": 32},
      "micro_batches": 2,
      "packed_tokens": 96,
      "eval_every": 2,
      "eval_prompts": 16,
      "samples_every": 2,
      "checkpoint_every": 2,
    }
  )
  if config.rl.engine.slots is not None:
    # Half of the prompts wait, and the cache grows twice.
    config.rl.engine.update({"slots": 8, "sync_interval": 8})
  return config
