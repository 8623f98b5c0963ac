"""Fields of an evaluation of a PRM on labelled solutions; it names no file.

  python experiments/evaluate_prm.py --workdir=DIR \\
    --config=experiments/configs/evaluate_prm.py \\
    --config.prm=jinachris/PURE-PRM-7B --config.score.separator=each \\
    --config.data="({'name': 'gsm8k', 'file': 'gsm8k.json', \\
      'format': 'processbench'}, {'name': 'math', 'format': 'processbench', \\
      'file': 'Qwen/ProcessBench/math.json'})"

`prm` and `file` take a path or a Hugging Face id (files.py).

Does a PRM rank the responses that evaluate.py has written?

  --config.data="({'name': 'own', 'file': 'DIR/responses.jsonl', \\
    'format': 'responses', 'problems': 'test.jsonl', \\
    'problems_format': 'gsm8k'},)"

PURE-PRM-7B was trained on steps that are encoded each by itself; the default
separator "insert" would give it other ids.

`evaluate_prm.py:smoke` evaluates a tiny random PRM on a few problems, in under
a minute on a CPU. Not yet run on a released PRM.
"""

from configs import base
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Fields of the smoke run that differ.
SMOKE = {
  "random_model": "tied",
  "prompt_tokens": 64,
  "response_tokens": 64,
  "score": {"max_steps": 8},
  "batch_size": 16,
  "length_multiple": 32,
  "compute_dtype": "float32",
  "param_dtype": "float32",
  "resamples": 200,
}


def get_config(variant: str = "full") -> ConfigDict:
  """The fields, for the "full" evaluation or a "smoke" run."""
  base.check_variant(variant, "full", "smoke")
  config = ConfigDict(
    dict(
      progress=True,  # Progress bars on stderr.
      mesh=base.mesh(),  # Mesh of devices.
      # One of these three is the PRM.
      prm=placeholder(str),  # Folder or id of a token classifier.
      run=placeholder(str),  # Workdir of a run of train_prm.py.
      # "tied" or "untied": a tiny random model and a few problems replace all
      # files, to try the code without a model.
      random_model=placeholder(str),
      tokenizer=placeholder(str),  # Folder or id; None takes that of `prm`.
      eos_token=placeholder(str),  # Ends a solution; None: the folder's.
      # Class of `prm` that means a good step; None chooses by the class names.
      good_class=placeholder(int),
      # Data sets, each with a name, a file and a format that has steps:
      # processbench, stepwise, math_shepherd, prm800k, gsm8k_steps ... (see
      # host/data/formats/named.py). mapped_steps also takes fields, as in
      # files.py, and prm800k neutral_labels ("good", "bad", "unlabelled").
      # held_out_one_in takes only the problems that a training run with that
      # files.labelled_one_in holds out: file is the one that the run splits,
      # and an id alone stands for the file to train on. The format "responses"
      # reads the responses.jsonl of evaluate.py; problems and problems_format
      # are file and format of the benchmark.
      data=(),
      skip_malformed=False,  # True: malformed rows are counted, not errors.
      # Format of the prompt before a solution: "raw" (as in the training of
      # the paper's PRM), "pure" (as in its RL), "plain", "chat", "qwen_boxed",
      # "two_examples".
      prompt_format="raw",
      # Longest prompt, tokens. Solutions beyond a limit are left out and
      # counted.
      prompt_tokens=1024,
      response_tokens=3072,  # Longest solution, tokens, EOS included.
      # How the PRM scores solutions; see `pure_jax.settings.ScoreConfig`.
      score=dict(
        max_steps=128,  # Steps of a solution; one with more is left out.
        # "insert", "replace" (as the paper's reference in RL) or "each" (as in
        # the training of the paper's PRM).
        separator="insert",
        read_end=False,  # True: the PRM reads EOS; see base.py.
      ),
      batch_size=8,  # Solutions in a batch.
      length_multiple=128,  # Columns are padded to a multiple of this, tokens.
      # Dtype of products: "float32", "bfloat16", or "auto", which is bfloat16
      # on accelerators and float32 on CPUs.
      compute_dtype="auto",
      param_dtype="auto",  # Dtype of weights; "auto" is that of the products.
      # A step is predicted good if its reward is above 0 ("zero"), or above
      # the threshold of the best F1 on one of the data sets ("best_on").
      threshold="zero",
      threshold_data=placeholder(str),  # Name of that data set.
      bins=10,  # Bins of the calibration error.
      bootstrap_seed=0,  # Seed of the intervals.
      resamples=2000,  # Resamples of the problems for each interval.
    )
  )
  if variant == "smoke":
    config.update(SMOKE)
  return config
