"""Fields of an evaluation of a PRM; by itself it names nothing.

  python experiments/evaluate_prm.py --workdir=DIR \\
    --config=experiments/configs/evaluate_prm.py --config.prm=PURE-PRM-7B \\
    --config.data="({'name': 'gsm8k', 'file': 'gsm8k.json', \\
      'format': 'processbench'}, {'name': 'math', 'file': 'math.json', \\
      'format': 'processbench'})"

`evaluate_prm.py:smoke` evaluates a tiny random PRM on a few problems, in under
a minute on a CPU. Not yet run on a released PRM.
"""

from configs import base
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "full") -> ConfigDict:
  """The fields.

  Args:
    variant: "full" or "smoke".

  Returns:
    The config.

  Raises:
    ValueError: for another variant.
  """
  if variant not in ("full", "smoke"):
    raise ValueError(f"Variants are 'full' and 'smoke', not {variant!r}.")
  config = ConfigDict(
    dict(
      progress=True,  # Progress bars on stderr.
      mesh=base.mesh(),  # Devices.
      # One of these three is the PRM.
      prm=placeholder(str),  # Folder of a Hugging Face token classifier.
      run=placeholder(str),  # Workdir of a run of train_prm.py.
      # "tied" or "untied": a tiny random model and a few problems in place of
      # all files, to try the code without a model.
      random_model=placeholder(str),
      tokenizer=placeholder(str),  # Its folder; None takes that of `prm`.
      eos_token=placeholder(str),  # Ends a solution; None takes the folder's.
      # Which class of `prm` is a good step; None goes by their names.
      good_class=placeholder(int),
      # Each a name, a file and a format of host/data/formats/named.py that has
      # steps: processbench, stepwise, math_shepherd, prm800k, gsm8k_steps ...
      # For mapped_steps also fields, as in configs/files.py.
      data=(),
      skip_malformed=False,  # Go on after a malformed row, and count it.
      # Before the solution: raw (as the paper's PRM was trained), plain, chat,
      # qwen_boxed.
      prompt_format="raw",
      # Limits; a row beyond them is left out and counted.
      prompt_tokens=1024,
      response_tokens=3072,  # EOS included.
      score=score(),
      batch_size=8,  # Solutions at a time.
      length_multiple=128,  # Columns are padded to a multiple of it, tokens.
      compute_dtype="bfloat16",  # Of matrix products, or "float32".
      param_dtype="bfloat16",  # Of weights, or "float32".
      # A step is good where its reward is above 0 ("zero"), or above what
      # gives the best F1 on one of the data sets ("best_on").
      threshold="zero",
      threshold_data=placeholder(str),  # The name of that data set.
      bins=10,  # Of the calibration error.
      bootstrap_seed=0,  # Of the intervals.
      resamples=2000,  # For each interval.
    )
  )
  if variant == "smoke":
    config.random_model = "tied"
    config.update(
      {
        "prompt_tokens": 64,
        "response_tokens": 64,
        "score": {"max_steps": 8},
        "batch_size": 16,
        "length_multiple": 32,
        "compute_dtype": "float32",
        "param_dtype": "float32",
        "resamples": 200,
      }
    )
  return config


def score() -> ConfigDict:
  """How the PRM scores solutions; see `pure_jax.settings.ScoreConfig`."""
  return ConfigDict(
    dict(
      max_steps=128,  # Steps of a solution; one with more is left out.
      separator="insert",  # Or "replace", as the paper's reference does.
    )
  )
