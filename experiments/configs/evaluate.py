"""Fields of an evaluation: a policy's responses, graded and reported.

It names no file: give a policy, and a file for each benchmark to run, or their
ids on the Hugging Face hub (see files.py).

  python experiments/evaluate.py --config=experiments/configs/evaluate.py \\
    --workdir=DIR --config.policy=Qwen/Qwen2.5-Math-1.5B \\
    --config.benchmarks.math500.file=HuggingFaceH4/MATH-500

`evaluate.py:paper` is the authors' evaluation: their prompt, and one greedy
response of at most 3,000 tokens (eval/sh/eval.sh of PURE's repository).
`evaluate.py:one_loop` generates without continuous batching; its responses are
the same up to rounding. `evaluate.py:smoke` evaluates a tiny random model and
a random PRM on a few problems, on a CPU.
"""

from configs import base, files
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "full") -> ConfigDict:
  """An evaluation of one policy, in a variant that is described above."""
  base.check_variant(variant, "full", "paper", "one_loop", "smoke")
  config = ConfigDict(fields())
  if variant in ("full", "paper"):
    config.engine.slots = 32
  if variant == "paper":
    config.update(
      prompt_format="pure",
      samples=0,
      sampler={"max_new_tokens": 3000},
      grader={"extractors": ("boxed", "last_number")},
    )
  if variant == "one_loop":
    config.batch_rows = 64
  if variant == "smoke":
    config.update(
      random_model=True,
      compute_dtype="float32",
      param_dtype="float32",
      prompt_tokens=128,
      prm_prompt_tokens=64,
      samples=4,
      sampler={"max_new_tokens": 24},
      batch_rows=16,
      engine={"sync_interval": 8},
      score={"max_steps": 8},
      grader={"extractors": ("boxed", "last_number")},
      bootstrap_resamples=200,
    )
  return config


def fields() -> dict:
  """The fields and their defaults."""
  return dict(
    seed=0,  # Seed of the samples.
    progress=True,  # Progress bar on stderr.
    mesh=base.mesh(),  # Mesh of devices.
    policy=placeholder(str),  # Folder or id of a Hugging Face model.
    random_model=False,  # True: a tiny random policy, PRM, problems.
    prm=placeholder(str),  # Folder or id of a PRM; None has no PRM.
    eos_token=placeholder(str),  # Ends a response; None: the folder's.
    # Dtype of products: "float32", "bfloat16", or "auto", which is bfloat16 on
    # accelerators and float32 on CPUs.
    compute_dtype="auto",
    param_dtype="auto",  # Dtype of weights; "auto" is that of the products.
    benchmarks=files.benchmarks(),  # Files of problems.
    skip_malformed=False,  # True: malformed rows are counted, not errors.
    # Format of the policy's prompts: "raw", "plain", "chat", "qwen_boxed",
    # "two_examples", or "pure", which is the paper's; see `PROMPT_FORMATS`.
    prompt_format="qwen_boxed",
    # Of the PRM; the paper's PRM was trained on "raw" and reads "pure" in RL.
    prm_prompt_format="raw",
    # Text that every response begins with. It belongs to the policy's
    # prompt: PRM and grader read only the text after it.
    response_prefix="",
    # Longest prompt of the policy, tokens; longer problems are left out and
    # reported.
    prompt_tokens=1024,
    prm_prompt_tokens=1024,  # Longest prompt of the PRM, tokens.
    greedy=True,  # One greedy response to each problem.
    samples=8,  # Responses drawn for each problem; 0 draws none.
    # Subset sizes of pass@k and maj@k; None: the powers of two up to samples.
    k=placeholder(tuple),
    # What the repetition of a response counts: "characters" of its text, like
    # the paper's code, or "tokens".
    repetition_unit="characters",
    # Distribution of the samples; max_new_tokens limits greedy ones as well.
    sampler=base.sampler(max_new_tokens=8192),
    # True: the first \\boxed{...} with content ends a response. Models that
    # are asked with "two_examples" may go on with a question of their own.
    stop_on_boxed=False,
    # Responses that are generated and written to the file together; a killed
    # run loses those of the batch that is generated, and of the one before if
    # it is not graded yet.
    batch_rows=128,
    # Without slots (`evaluate.py:one_loop`) all responses of a batch are
    # generated together. With slots, memory at times has two copies of keys
    # and values. Progress is shown once in sync_interval tokens.
    engine=base.engine(),
    # How the PRM scores responses; see `pure_jax.settings.ScoreConfig`.
    score=dict(
      max_steps=256,  # Steps of a response; the rest is merged into the last.
      # "insert", "replace" (as the paper's reference in RL) or "each" (as in
      # the training of the paper's PRM).
      separator="insert",
      read_end=False,  # True: the PRM reads EOS; see base.py.
    ),
    grader=files.grader(),
    bootstrap_seed=0,  # Seed of the intervals.
    bootstrap_resamples=2000,  # Resamples of the problems, for intervals.
  )
