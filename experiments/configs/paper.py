"""The authors' RL runs (arXiv 2504.15275): the common config of three policies.

qwen2p5_7b.py, qwen2p5_math_7b.py and qwen2p5_math_1p5b.py name the policy and
the paper's number of iterations. A variant is PRESET_MODE, where PRESET is

  paper           what the paper states, and what branch verl of the authors'
                  code has where the paper states nothing, with exceptions: no
                  whitening and no limit of the KL penalty in the reward, which
                  no equation of the paper has, and what is marked "ours"; it
                  may be left out: "prm_vr" is "paper_prm_vr"
  reference_verl  the authors' script on verl (branch verl)
  reference_main  the authors' script on OpenRLHF (branch main)

and MODE is

  prm_vr  step rewards and outcome rewards (the default)
  prm     step rewards only
  vr      outcome rewards only, no PRM

smoke_PRESET_MODE is the same on a tiny random policy and PRM, in under a
minute; "smoke" is smoke_paper_prm_vr. "_one_loop" after any of them samples
without continuous batching, which --config.rl.rollout.batches needs.

docs/hyperparameters.md lists every value of each source and of each preset.
Credit and loss are the presets of `pure_jax.settings`. Values that no source
states, or that depend on the machine, have a comment that says "ours".

Policy, PRM and data are those of the Hugging Face hub that `name_public` names.
docs/public_data.md says what was checked of them. Folders and files of your own
go in their place, and --config.files.benchmarks.NAME.file=None leaves a
benchmark out. The MATH prompts of the hub have all answers, of which updates
use a tenth. With the file of PURE's repository, which has 879 of its 8,523
answers, --config.rl.answer_fraction=None uses the authors' choice.

Devices are chosen by --config.mesh.fsdp=... and others: docs/planning.md has
the smallest TPU slices for which each run compiles and fits, with their flags.
"""

import dataclasses
from collections.abc import Mapping

from configs import base, files
from ml_collections import ConfigDict

from pure_jax import settings
from pure_jax.host.data.formats.public import PUBLIC
from pure_jax.runs.settings.checks import ConfigError
from pure_jax.runs.settings.models import ARCHITECTURES

# Weight of the step rewards, weight of the outcome reward.
MODES = {"prm": (1.0, 0.0), "vr": (0.0, 1.0), "prm_vr": (1.0, 1.0)}


@dataclasses.dataclass(frozen=True)
class Preset:
  """What differs between the runs of the presets.

  Attributes:
    credit: of `pure_jax.settings`; its group_size is the samples of a prompt.
    loss: of `pure_jax.settings`.
    learning_rates: by mode.
    beta2: AdamW's decay of the second moment.
    weight_decay: AdamW's.
    max_new_tokens: the longest response, tokens.
    temperature: of the samples.
    updates: fields of `rl.updates`.
    iterations: None takes the policy's number, which the paper states.
    benchmark_new_tokens: the longest response to a problem of a benchmark,
      tokens; None is max_new_tokens. 3,000 is that of the authors' eval.sh.
    separator: what the PRM reads, see `settings.ScoreConfig`.
    prm_prompt_format: format of the problem that the PRM reads.
  """

  credit: settings.CreditConfig
  loss: settings.LossConfig
  learning_rates: Mapping[str, float]
  beta2: float
  weight_decay: float
  max_new_tokens: int
  temperature: float = 1.0
  updates: Mapping[str, int | bool] = dataclasses.field(default_factory=dict)
  iterations: int | None = None
  benchmark_new_tokens: int | None = 3000
  separator: str = "replace"
  prm_prompt_format: str = "pure"


PAPER_CREDIT, PAPER_LOSS = settings.paper(group_size=8)
VERL_CREDIT, VERL_LOSS = settings.reference_verl(group_size=8)
MAIN_CREDIT, MAIN_LOSS = settings.reference_main(group_size=4)
PRESETS = {
  "paper": Preset(
    credit=PAPER_CREDIT,
    loss=PAPER_LOSS,
    learning_rates={"prm": 5e-7, "vr": 1e-6, "prm_vr": 1e-6},
    beta2=0.999,
    weight_decay=0.01,
    max_new_tokens=8192,
    # Ours: the PRM reads what it was trained on, problem and steps.
    separator="each",
    prm_prompt_format="raw",
  ),
  "reference_verl": Preset(
    credit=VERL_CREDIT,
    loss=VERL_LOSS,
    learning_rates=dict.fromkeys(MODES, 1e-6),
    beta2=0.999,
    weight_decay=0.01,
    max_new_tokens=7168,
    benchmark_new_tokens=None,
  ),
  "reference_main": Preset(
    credit=MAIN_CREDIT,
    loss=MAIN_LOSS,
    learning_rates=dict.fromkeys(MODES, 5e-7),
    beta2=0.95,
    weight_decay=0.0,
    max_new_tokens=2048,
    temperature=0.5,
    updates={"mini_batches": 2, "epochs": 1, "shuffle": True},
    iterations=500,
  ),
}


@dataclasses.dataclass(frozen=True)
class Variant:
  """A parsed variant: a preset and a mode, tiny or not, and how it samples."""

  preset: str
  mode: str
  is_smoke: bool
  is_continuous: bool


def policy_run(
  variant: str, *, policy: str, architecture: str, iterations: int
) -> ConfigDict:
  """RL of a policy on the MATH prompts of PURE.

  It is given by its id on the hub, and by its name in `ARCHITECTURES`.
  """
  parsed = parse(variant)
  preset = PRESETS[parsed.preset]
  reads_prm = MODES[parsed.mode][0] > 0
  config = files.get_config()
  config.files.architecture = architecture
  if reads_prm:
    config.files.prm_architecture = "pure_prm_7b"
  config.files.prompt_format = "pure"
  config.files.prm_prompt_format = preset.prm_prompt_format
  # As with the authors' graders, an answer needs no box. Ours: without one it
  # is the last number.
  config.files.grader.extractors = ("boxed", "last_number")
  # Ours, to save memory; it does not change the result: 0.6 GB of logits per
  # row.
  config.files.model.logits_chunk = 1024
  # Ours: all scores of a row of 9,216 tokens would be 9.5 GB for each layer.
  config.files.model.attention_chunk = 512
  # Ours: further steps share the score of the last one.
  config.prm.score.max_steps = 512
  config.prm.score.separator = preset.separator
  set_rl(config, preset, parsed)
  config.rl.iterations = preset.iterations or iterations
  if not parsed.is_smoke:
    return name_public(config, policy, reads_prm=reads_prm)
  # The same files that the user of the real run names.
  prm = ("prm",) if reads_prm else ()
  config.files.random_files = ("train", "held_out", *prm)
  is_tied = ARCHITECTURES[architecture].tied_embeddings
  tiny(config, "tied" if is_tied else "untied")
  if preset.prm_prompt_format == "pure":
    # The PRM reads the policy's prompt.
    config.files.prm_prompt_tokens = config.files.prompt_tokens
  return config


def name_public(
  config: ConfigDict, policy: str, *, reads_prm: bool
) -> ConfigDict:
  """Names models and data of the Hugging Face hub."""
  config.files.policy = policy
  if reads_prm:
    config.files.prm = "jinachris/PURE-PRM-7B"
  config.files.train = PUBLIC[config.files.train_format].repo_id
  config.files.held_out = PUBLIC[config.files.held_out_format].repo_id
  for name in files.PAPER_BENCHMARKS:
    benchmark = config.files.benchmarks[name]
    benchmark.file = PUBLIC[benchmark.format].repo_id
  # The data set has all answers; the paper uses about 10 %.
  config.rl.answer_fraction = 0.1
  return config


def set_rl(config: ConfigDict, preset: Preset, parsed: Variant) -> None:
  """Sets the fields of RL, all but the number of iterations."""
  credit = dataclasses.asdict(preset.credit)
  del credit["group_size"]  # It follows from samples_per_prompt.
  credit["process_coef"], credit["verifiable_coef"] = MODES[parsed.mode]
  config.rl.update(
    {
      "prompts": 64,
      "samples_per_prompt": preset.credit.group_size,
      # All answers that the source gives are used.
      "answer_fraction": None,
      "credit": credit,
      "loss": dataclasses.asdict(preset.loss),
      "sampler": {
        "max_new_tokens": preset.max_new_tokens,
        "temperature": preset.temperature,
      },
      "updates": dict(preset.updates),
      "optim": base.optimizer(
        preset.learning_rates[parsed.mode],
        beta2=preset.beta2,
        weight_decay=preset.weight_decay,
      ),
      # Read only with credit.baseline="gae"; as in the verl script.
      "critic": {
        "optim": base.optimizer(5e-6, beta2=0.999, weight_decay=0.01),
        "value_clip": 0.5,
      },
      "benchmark_new_tokens": preset.benchmark_new_tokens,
      # Ours: of the 500 of MATH500, as many as 32 row shards divide.
      "eval_prompts": 480,
      # Ours, to save memory; it does not change the result.
      "micro_batches": 64,
      # Ours, to save time. Finished responses free their slots for waiting
      # prompts, and the cache grows with the longest unfinished response.
      "engine": {"slots": 128 if parsed.is_continuous else None},
      # Ours, to save time. Only rounding differs from unpacked rows.
      "length_buckets": 3,
      "packed_tokens": 4096,
    }
  )


def parse(variant: str) -> Variant:
  """Parses the name of a variant, as the top of this file describes it.

  Raises:
    ConfigError: for any other name; the message lists the names.
  """
  name = variant.removesuffix("_one_loop")
  rest = name.removeprefix("smoke_")
  if name == "smoke":
    rest = "prm_vr"
  for preset in PRESETS:
    for mode in MODES:
      if rest == f"{preset}_{mode}" or (rest == mode and preset == "paper"):
        is_smoke = name.startswith("smoke")
        return Variant(preset, mode, is_smoke, name == variant)
  raise ConfigError(
    f"Variants are PRESET_MODE, with PRESET in {', '.join(PRESETS)} (left out: "
    f"paper) and MODE in {', '.join(MODES)}; 'smoke_' may come before and "
    f"'_one_loop' after it; and 'smoke', not {variant!r}."
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
      "benchmark_new_tokens": None,
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
