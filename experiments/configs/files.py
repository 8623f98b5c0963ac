"""Fields of a run on models and data that the user names.

Other configs start from `get_config`. It names no file, so every path has to
be given:

  python experiments/train_pure.py --config=experiments/configs/files.py \\
    --workdir=DIR --config.files.policy=FOLDER --config.files.train=FILE ...

A Hugging Face id (ORG/NAME, optionally @REVISION) can be given instead of a
folder, and ORG/NAME/PATH instead of a file. Missing files are downloaded into
the cache of `huggingface_hub`. For a file, ORG/NAME alone stands for the one
that docs/public_data.md lists for the format and the use. The run records the
commit, and takes the same one when it is resumed.

A file of another format needs a mapping, from the fields of
`host/data/records.py` to the fields of the file:

  --config.files.train_format=mapped_problems \\
  --config.files.train_fields="{'problem': 'question', 'answer': 'final'}" \\
  --config.files.labelled_format=mapped_steps \\
  --config.files.labelled_fields="{'problem': 'q', 'steps': 's', 'labels': 'l'}"

In a config file the mapping is a `ConfigDict`.

Not yet run with exactly these values, which name no model. Configs that start
from it, such as gsm8k_prm.py, say what was measured.
"""

from configs import base
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

PAPER_BENCHMARKS = (
  "math500",
  "minerva_math",
  "olympiadbench",
  "aime24",
  "amc23",
)


def get_config(variant: str = "full") -> ConfigDict:
  """The base config with files instead of the embedded world, only "full"."""
  base.check_variant(variant, "full")
  config = base.get_config()
  with config.ignore_type():
    config.world = config.model = config.sft = None
    config.files = ConfigDict(files())
    for name in ("labelled", "policy_prompts", "policy_samples"):
      config.prm[name] = None
  config.prm.extra_layers = 0  # The paper's PRM has no extra layers.
  config.prm.evaluate_head = True
  return config


def files() -> dict:
  """Models and data."""
  return dict(
    policy=placeholder(str),  # Folder or id of a Hugging Face model.
    # A tiny random model in place of files, to try the code without a model:
    # a Qwen2 with "tied" or "untied" embeddings, or a "llama".
    random_model=placeholder(str),
    # Files that are made for the random model: problems ("train",
    # "held_out"), a random "prm" to load, "labelled" solutions to train a PRM
    # on, or two "benchmarks".
    random_files=("train", "held_out", "labelled"),
    prm=placeholder(str),  # Folder or id of a trained PRM; None trains one.
    eos_token=placeholder(str),  # Ends a response; None: the folder's.
    # Format of the policy's prompts: "raw", "plain", "chat", "qwen_boxed",
    # "two_examples", or "pure", which is the paper's; see `PROMPT_FORMATS`.
    prompt_format="qwen_boxed",
    # Of the PRM; the paper's PRM was trained on "raw" and reads "pure" in RL.
    prm_prompt_format="raw",
    # Text that every response begins with. It belongs to the policy's
    # prompt: PRM and grader read only the text after it.
    response_prefix="",
    # Longest prompt of the policy, tokens; longer problems are left out.
    prompt_tokens=1024,
    prm_prompt_tokens=1024,  # Longest prompt of the PRM, tokens.
    # Longest response that the PRM is trained on, tokens.
    response_tokens=2048,
    # Files of rows, or ids, and their formats, see
    # host/data/formats/named.py. The formats mapped_problems and mapped_steps
    # need a mapping from fields of a record to fields of the file; it is None
    # for other formats.
    train=placeholder(str),  # Problems of RL; None if only a PRM is trained.
    train_format="math8k",  # Or another format of problems.
    train_fields=placeholder(ConfigDict),  # Mapping of fields.
    held_out=placeholder(str),  # Problems of evaluations.
    held_out_format="math500",  # Or another format of problems.
    held_out_fields=placeholder(ConfigDict),  # Mapping of fields.
    labelled=placeholder(str),  # Labelled solutions, to train a PRM on.
    labelled_format="prm800k",  # Or another format of steps.
    labelled_fields=placeholder(ConfigDict),  # Mapping of fields.
    labelled_one_in=20,  # One problem in this many is held out.
    labelled_rows=placeholder(int),  # Most rows to train on; None: all.
    labelled_held_out_rows=placeholder(int),  # Most rows held out; None: all.
    # Label of the neutral steps of PRM800K: "good", "bad" or "unlabelled".
    neutral_labels="good",
    # Problems that RL evaluates on besides those held out, see rl.eval_every.
    benchmarks=benchmarks(),
    skip_malformed=False,  # True: malformed rows are counted, not errors.
    grader=grader(),
    model=computation(),
    # For plan.py, unless a folder is named: a name in settings/models.py.
    architecture=placeholder(str),  # Of the policy.
    prm_architecture=placeholder(str),  # Of the PRM.
  )


def benchmarks() -> dict:
  """Benchmarks by name; those of the paper are in the average."""
  return {
    name: benchmark(name, averaged=name in PAPER_BENCHMARKS)
    for name in (*PAPER_BENCHMARKS, "gsm8k")
  }


def benchmark(format_name: str, *, averaged: bool) -> ConfigDict:
  """A file of problems."""
  return ConfigDict(
    dict(
      file=placeholder(str),  # Or an id; None leaves the benchmark out.
      format=format_name,  # See host/data/formats/named.py.
      # For mapped_problems: fields of a record to fields of the file, see
      # above.
      fields=placeholder(ConfigDict),
      problems=placeholder(int),  # Only the first ones; None takes all.
      averaged=averaged,  # Whether the average includes it.
    )
  )


def grader() -> dict:
  """How answers are found and graded."""
  return dict(
    extractors=("boxed",),  # Extractors of answers, in order.
    workers=2,  # Worker processes, at most 1,024.
    seconds=5.0,  # Time limit of one answer.
  )


def computation() -> dict:
  """How models are computed; see `pure_jax.models.config.ModelConfig`."""
  return dict(
    # Dtype of matrix products: "float32", "bfloat16", or "auto", which is
    # bfloat16 on accelerators and float32 on CPUs. Optimizer and reductions
    # are float32.
    compute_dtype="auto",
    param_dtype="float32",  # Dtype of weights; or "bfloat16".
    # Rematerialisation of a layer: "none" (all activations are kept),
    # "attention", "dots", "layer" or "offload", see models/config.py.
    remat="layer",
    # Tokens of a row whose logits exist at one time in log-probs; None: all.
    logits_chunk=placeholder(int),
    # Queries whose attention is computed at a time; None computes all.
    attention_chunk=placeholder(int),
  )
