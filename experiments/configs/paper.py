"""The paper's RL runs (arXiv 2504.15275): all that its three policies share.

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

Everything that the paper states is as it states it; the credit is that of
`pure_jax.settings.paper`. What it does not state, or leaves to the machine, has
a comment that says so.
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
  """RL of one policy on the MATH prompts of PURE.

  Args:
    variant: see above.
    architecture: name of the policy's shape in `ARCHITECTURES`.
    iterations: of RL.

  Returns:
    The config.

  Raises:
    ValueError: for another variant.
  """
  mode, is_smoke, is_continuous = parse(variant)
  process_coef, verifiable_coef, learning_rate = MODES[mode]
  config = files.get_config()
  config.files.architecture = architecture
  if process_coef:
    config.files.prm_architecture = "pure_prm_7b"
  # Ours, and without influence on the result: 0.6 GB of logits a row.
  config.files.model.logits_chunk = 1024
  # Ours: all scores of a row of 9,216 tokens would be 9.5 GB for each layer.
  config.files.model.attention_chunk = 512
  # Ours: more steps than these share the last one's score.
  config.prm.score.max_steps = 512
  config.rl.update(
    {
      "iterations": iterations,
      "prompts": 64,
      "samples_per_prompt": 8,
      # Prompts whose source gives an answer have one: 879 of the 8,523.
      "answer_fraction": None,
      "sampler": {"max_new_tokens": 8192, "temperature": 1.0},
      # The paper does not name beta1, beta2 and the norm of gradients: base's.
      "optim": base.optimizer(learning_rate),
      "eval_prompts": 480,  # Of the 500 of MATH500: 2 to 32 row shards.
      # Ours, and without influence on the result: memory.
      "micro_batches": 64,
      # Ours: time. Finished responses free their slots for prompts that wait,
      # and the cache grows with the longest response under way.
      "engine": {"slots": 128 if is_continuous else None},
      # Ours: time. Rounding differs from that of unpacked rows.
      "length_buckets": 3,
      "packed_tokens": 4096,
    }
  )
  set_credit_and_loss(config)
  config.rl.credit.process_coef = process_coef
  config.rl.credit.verifiable_coef = verifiable_coef
  if not is_smoke:
    return config
  # What the user of the real run names, and no more.
  prm = ("prm",) if process_coef else ()
  config.files.random_files = ("train", "held_out", *prm)
  is_tied = ARCHITECTURES[architecture].tied_embeddings
  return tiny(config, "tied" if is_tied else "untied")


def parse(variant: str) -> tuple[str, bool, bool]:
  """Takes a variant's name apart.

  Args:
    variant: see above.

  Returns:
    (one of `MODES`, whether it is a smoke run, whether continuous batching
    samples).

  Raises:
    ValueError: for another variant.
  """
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
  """Sets the fields of `pure_jax.settings.paper`.

  Args:
    config: of a run; it is changed.
  """
  config.rl.credit.update(
    {
      "form": "softmin",
      "temperature": 0.1,
      "baseline": "paper_a",
      # Ours: the paper describes no whitening and no equation of it has one,
      # but both branches of its reference do whiten:
      # `--config.rl.credit.whiten=True`.
      "whiten": False,
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
