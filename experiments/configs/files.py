"""Fields of a run on models and data that the user names.

Other configs start from `get_config`; by itself it names nothing, so every
path has to be given:

  python experiments/train_pure.py --config=experiments/configs/files.py \\
    --workdir=DIR --config.files.policy=FOLDER --config.files.train=FILE ...

Files of other formats are read by a mapping, from fields of
`host/data/records.py` to those of the file:

  --config.files.train_format=mapped_problems \\
  --config.files.train_fields="{'problem': 'question', 'answer': 'final'}" \\
  --config.files.labelled_format=mapped_steps \\
  --config.files.labelled_fields="{'problem': 'q', 'steps': 's', 'labels': 'l'}"

In a config file such a mapping is a `ConfigDict`.

Not yet run as it stands.
"""

from configs import base
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  """The base config with files instead of the embedded world."""
  config = base.get_config()
  with config.ignore_type():
    config.world = config.model = config.sft = None
    config.files = files()
    for name in ("labelled", "policy_prompts", "policy_samples"):
      config.prm[name] = None
  config.prm.extra_layers = 0  # The paper's head stands on the trunk itself.
  config.prm.evaluate_head = True
  return config


def files() -> ConfigDict:
  """Models and data."""
  return ConfigDict(
    dict(
      policy=placeholder(str),  # Folder of a Hugging Face model.
      # To try the code without a model, a tiny random one in place of files:
      # a Qwen2 with "tied" or "untied" embeddings, or a "llama".
      random_model=placeholder(str),
      # What is made besides it: problems ("train", "held_out"), a random
      # "prm" to load, or "labelled" solutions to train one on.
      random_files=("train", "held_out", "labelled"),
      prm=placeholder(str),  # Folder of a trained PRM; None trains one.
      eos_token=placeholder(str),  # Ends a response; None takes the folder's.
      prompt_format="qwen_boxed",  # Of the policy; or raw, plain, chat.
      prm_prompt_format="raw",  # Of the PRM, as the paper's was trained.
      # Every response is made to begin with it. Part of the policy's prompt:
      # the PRM and the grader read what comes after it.
      response_prefix="",
      prompt_tokens=1024,  # Longest prompt; a longer problem is left out.
      prm_prompt_tokens=1024,  # Longest prompt of the PRM.
      response_tokens=2048,  # Longest response that the PRM is trained on.
      # Files of problems and their formats, see host/data/formats/named.py;
      # `fields` are for mapped_problems and mapped_steps, None for any other.
      train=placeholder(str),  # For RL; None in a run that trains a PRM only.
      train_format="math8k",  # Or any other that holds problems.
      train_fields=placeholder(ConfigDict),  # Our field: the file's.
      held_out=placeholder(str),  # To evaluate the policy on.
      held_out_format="math500",  # Or any other that holds problems.
      held_out_fields=placeholder(ConfigDict),  # Our field: the file's.
      labelled=placeholder(str),  # Labelled solutions, to train a PRM on.
      labelled_format="prm800k",  # Or any other that holds steps.
      labelled_fields=placeholder(ConfigDict),  # Our field: the file's.
      labelled_one_in=20,  # One problem in so many is held out.
      labelled_rows=placeholder(int),  # At most so many rows; None takes all.
      labelled_held_out_rows=placeholder(int),  # The same of what is held out.
      skip_malformed=False,  # Go on after a malformed row, and count it.
      grader=grader(),
      model=computation(),
      # For plan.py where no folder is named: a name in settings/models.py.
      architecture=placeholder(str),  # Of the policy.
      prm_architecture=placeholder(str),  # Of the PRM.
    )
  )


def grader() -> ConfigDict:
  """How answers are found and graded."""
  return ConfigDict(
    dict(
      extractors=("boxed",),  # Of answers, in the order they are tried.
      workers=2,  # Processes.
      seconds=5.0,  # Time limit of one answer.
    )
  )


def computation() -> ConfigDict:
  """How models are computed; see `pure_jax.models.config.ModelConfig`."""
  return ConfigDict(
    dict(
      # Of matrix products: "float32", "bfloat16", or "auto": bfloat16 on
      # accelerators. Optimizer and reductions are float32.
      compute_dtype="auto",
      param_dtype="float32",  # Of weights, or "bfloat16".
      # What of a layer is kept for the backward pass: "none" (all of it),
      # "attention", "dots", "layer" or "offload", see models/config.py.
      remat="layer",
      # Tokens of a row whose logits exist at one time in log-probs; None: all.
      logits_chunk=placeholder(int),
      # Queries whose attention is computed at a time; None computes all.
      attention_chunk=placeholder(int),
    )
  )
