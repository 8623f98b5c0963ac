r"""Writes a tiny random model and a few problems, for smoke runs.

The `:smoke` variants use these files in place of the user's. They run the same
code on the same architectures and formats, and learn nothing.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pure_jax.host import huggingface
from pure_jax.host.atomic_files import create_folder_atomic, write_text_atomic
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import init_params
from pure_jax.runs.settings.files import (
  Benchmarks,
  BenchmarkSettings,
  FilesSettings,
)

SEED = 0
PRM_SEED = 5  # A PRM whose step rewards have both signs.
PROBLEMS = 48
# Splits a text as Qwen2 does: letters, single digits, punctuation with the line
# breaks after it, so that ".\n\n" becomes one id.
SPLITTING = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
TEMPLATE = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content "
  "+ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


def make_files(files: FilesSettings, folder: pathlib.Path) -> FilesSettings:
  """Writes policy and `random_files` if they are missing, and names them.

  Args:
    files: settings whose formats are MATH prompts, MATH500 and PRM800K.
    folder: folder of the files.
  """
  written = write_problems(folder / "problems")
  policy_folder = write_policy(
    folder / "policy",
    tied=files.random_model != "untied",
    llama=files.random_model == "llama",
  )
  if "prm" in files.random_files:
    written["prm"] = write_prm(folder / "prm", tied=False)
  paths = {
    name: str(written[name])
    for name in files.random_files
    if name != "benchmarks"
  }
  if "benchmarks" in files.random_files:
    files = dataclasses.replace(files, benchmarks=benchmarks(written))
  return dataclasses.replace(
    files, policy=str(policy_folder), random_model=None, **paths
  )


def benchmarks(problems: dict[str, pathlib.Path]) -> Benchmarks:
  """Names two small benchmarks.

  Args:
    problems: paths from `write_problems`.
  """
  return {
    name: BenchmarkSettings(str(problems[file]), row_format, 6, averaged=True)
    for name, file, row_format in (
      ("tiny_math500", "held_out", "math500"),
      ("tiny_math8k", "train", "math8k"),
    )
  }


def write_problems(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes files of problems, unless they exist.

  Args:
    folder: folder of the files.

  Returns:
    Paths of `train` (MATH prompts), `held_out` (MATH500) and `labelled`
    (PRM800K).
  """
  return _write_rows(folder, _problems())


def write_solutions(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes files of labelled solutions, unless they exist.

  Args:
    folder: folder of the files.

  Returns:
    Paths of `processbench`, with two solutions of each problem, and `prm800k`.
  """
  solutions = {
    "processbench": list(_processbench()),
    "prm800k": _problems()["labelled"],
  }
  return _write_rows(folder, solutions)


def _write_rows(
  folder: pathlib.Path, files: dict[str, list[Any]]
) -> dict[str, pathlib.Path]:
  """Writes the rows of each file, unless it exists."""
  folder.mkdir(parents=True, exist_ok=True)
  paths = {name: folder / f"{name}.jsonl" for name in files}
  for name, path in paths.items():
    if not path.exists():
      lines = [json.dumps(row) + "\n" for row in files[name]]
      write_text_atomic(path, "".join(lines))
  return paths


def write_policy(
  folder: pathlib.Path, *, tied: bool, llama: bool = False
) -> pathlib.Path:
  """Writes a random policy with a tokenizer, unless it exists.

  Args:
    folder: folder of the policy.
    tied: True shares the weights of embedding and head.
    llama: True makes a Llama, as SmolLM2 is one, False a Qwen2.
  """
  config = architecture(tied, llama)
  declared, export = policy.declare_policy(config), huggingface.export_policy
  return _write_model(folder, config, declared, SEED, export)


def write_prm(folder: pathlib.Path, *, tied: bool) -> pathlib.Path:
  """Writes a random PRM with a tokenizer, unless it exists.

  Args:
    folder: folder of the PRM.
    tied: True if its policy shares the weights of embedding and head.
  """
  config = architecture(tied)
  declared, export = prm.declare_prm(config), huggingface.export_prm
  return _write_model(folder, config, declared, PRM_SEED, export)


def _write_model(
  folder: pathlib.Path,
  config: ModelConfig,
  declared: Any,
  seed: int,
  export: Callable[..., None],
) -> pathlib.Path:
  """Writes a random model with the tokenizer, unless it exists; its folder."""
  if not folder.exists():
    params = init_params(jax.random.key(seed), declared)
    with create_folder_atomic(folder) as incomplete:
      export(incomplete, params, config, max_positions=1024)
      _tokenizer().save_pretrained(incomplete)
  return folder


def architecture(tied: bool, llama: bool = False) -> ModelConfig:
  """The architecture of the tiny models.

  Args:
    tied: True shares the weights of embedding and head.
    llama: True makes a Llama, without biases in attention, False a Qwen2.
  """
  return ModelConfig(
    vocab_size=512,  # More than the tokenizer has, as in real models.
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=64,
    rope_theta=1e6,
    attention_bias=not llama,
    tied_embeddings=tied,
  )


def _tokenizer() -> Any:
  """A byte-level PreTrainedTokenizerFast that merges separators."""
  import transformers  # Imported late: every run imports this module.

  inner = tokenizers.Tokenizer(models.BPE())
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(SPLITTING), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  inner.decoder = decoders.ByteLevel()
  texts = [step + "\n\n" for _, steps, _ in _solutions() for step in steps]
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  inner.train_from_iterator(texts, trainer)
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner,
    eos_token="<|endoftext|>",
    pad_token="<|endoftext|>",
    additional_special_tokens=["<|im_start|>", "<|im_end|>"],
  )
  tokenizer.chat_template = TEMPLATE
  return tokenizer


def _solutions() -> Iterator[tuple[str, list[str], int]]:
  """Yields (problem, steps, answer)."""
  rng = np.random.default_rng(SEED)
  for _ in range(PROBLEMS):
    a, b, c = rng.integers(1, 10, 3).tolist()
    steps = [
      f"First, {a} + {b} = {a + b}.",
      f"So ${a + b} - {c} = {a + b - c}$.",
      f"The answer is $\\boxed{{{a + b - c}}}$.",
    ]
    yield f"Compute ${a} + {b} - {c}$.", steps, a + b - c


def _problems() -> dict[str, list[Any]]:
  """The raw rows of MATH prompts, MATH500 and PRM800K."""
  train, held_out, labelled = [], [], []
  for number, (problem, steps, answer) in enumerate(_solutions()):
    train.append(
      {
        "question": problem,
        # One prompt in three has an answer for training.
        "answer": "null" if number % 3 else str(answer),
        "ref_answer": str(answer),
        "level": "1",
      }
    )
    held_out.append(
      {
        "unique_id": str(number),
        "problem": f"Find it: {problem}",
        "solution": "\n\n".join(steps),
        "answer": str(answer),
        "level": 1,
        "subject": "Prealgebra",
      }
    )
    labelled.append(_labelled(problem, steps, number))
  return {"train": train, "held_out": held_out, "labelled": labelled}


def _labelled(problem: str, steps: list[str], number: int) -> dict[str, Any]:
  """A line of PRM800K. Every second solution ends with an error."""
  wrong = number % 2
  ratings = [1, -1] if wrong else [1, 0, 1]
  return {
    "labeler": "none",
    "is_quality_control_question": False,
    "is_initial_screening_question": False,
    "question": {"problem": problem, "ground_truth_answer": "none"},
    "label": {
      "finish_reason": "found_error" if wrong else "solution",
      "steps": [
        {
          "completions": [{"text": step, "rating": rating, "flagged": None}],
          "human_completion": None,
          "chosen_completion": 0,
        }
        for step, rating in zip(steps, ratings, strict=False)
      ],
    },
  }


def _processbench() -> Iterator[dict[str, Any]]:
  """Yields lines of ProcessBench: a right and a wrong solution per problem."""
  for number, (problem, steps, answer) in enumerate(_solutions()):
    wrong_at = number % len(steps)
    wrong = [step.replace(str(answer), str(answer + 1)) + "!" for step in steps]
    wrong[:wrong_at] = steps[:wrong_at]
    for kind, texts, label in (
      ("right", steps, -1),
      ("wrong", wrong, wrong_at),
    ):
      yield {
        "id": f"tiny-{number}-{kind}",
        "generator": kind,
        "problem": f"Problem {number}: {problem}",
        "steps": texts,
        "final_answer_correct": kind == "right",
        "label": label,
      }
