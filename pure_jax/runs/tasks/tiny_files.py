r"""A tiny random model with a few problems, in the files of a real run.

`:smoke` variants take them in place of the files the user would name: the same
code runs on the same architecture and formats, and learns nothing.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pure_jax.host import huggingface
from pure_jax.host.atomic_files import write_text_atomic
from pure_jax.models import policy, prm
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import init_params
from pure_jax.runs.settings.files import FilesSettings

SEED = 0
PRM_SEED = 5  # Its scores lie on both sides of 0.
PROBLEMS = 48
# Split as Qwen's: letters, single digits, punctuation with the line breaks
# behind it, so that ".\n\n" becomes one id.
SPLITTING = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
TEMPLATE = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content "
  "+ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


def make_files(files: FilesSettings, folder: pathlib.Path) -> FilesSettings:
  """Writes what is missing, and names what a real run would.

  Args:
    files: settings whose formats are MATH prompts, MATH500 and PRM800K.
    folder: where the files go.

  Returns:
    The settings with the paths of `random_files` and the policy filled in.
  """
  made = write_problems(folder / "problems")
  policy_folder = write_policy(
    folder / "policy",
    tied=files.random_model != "untied",
    llama=files.random_model == "llama",
  )
  if "prm" in files.random_files:  # Its embedding is never tied to a head.
    made["prm"] = write_prm(folder / "prm", tied=False)
  paths = {name: made[name] for name in files.random_files}
  return dataclasses.replace(
    files,
    policy=str(policy_folder),
    random_model=None,
    **{name: str(path) for name, path in paths.items()},
  )


def write_problems(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The files of problems, written where they are missing.

  Args:
    folder: where they go.

  Returns:
    `train`, `held_out` and `labelled`: MATH prompts, MATH500, PRM800K.
  """
  paths = {
    name: folder / f"{name}.jsonl" for name in ("train", "held_out", "labelled")
  }
  folder.mkdir(parents=True, exist_ok=True)
  for path, rows in zip(paths.values(), _rows(), strict=True):
    if not path.exists():
      text = "".join(json.dumps(row) + "\n" for row in rows)
      write_text_atomic(path, text)
  return paths


def write_policy(
  folder: pathlib.Path, *, tied: bool, llama: bool = False
) -> pathlib.Path:
  """A random Qwen2 or Llama with a tokenizer, written if it is missing.

  Args:
    folder: where it goes.
    tied: whether embedding and head are the same weights.
    llama: True leaves out the biases of attention, as SmolLM2 does.

  Returns:
    The folder.
  """
  if not (folder / "tokenizer.json").exists():  # Written last.
    shutil.rmtree(folder, ignore_errors=True)
    config = architecture(tied, llama)
    params = init_params(jax.random.key(SEED), policy.declare_policy(config))
    huggingface.export_policy(folder, params, config, max_positions=1024)
    _tokenizer().save_pretrained(folder)
  return folder


def write_prm(folder: pathlib.Path, *, tied: bool) -> pathlib.Path:
  """A random PRM with the policy's tokenizer, written if it is missing.

  Args:
    folder: where it goes.
    tied: whether embedding and head of its policy are the same weights.

  Returns:
    The folder.
  """
  if not (folder / "tokenizer.json").exists():  # Written last.
    shutil.rmtree(folder, ignore_errors=True)
    config = architecture(tied)
    params = init_params(jax.random.key(PRM_SEED), prm.declare_prm(config))
    huggingface.export_prm(folder, params, config, max_positions=1024)
    _tokenizer().save_pretrained(folder)
  return folder


def write_solutions(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Labelled solutions, written if they are missing.

  Args:
    folder: where they go.

  Returns:
    The file of each format: ProcessBench with two solutions of every problem,
    and PRM800K.
  """
  folder.mkdir(parents=True, exist_ok=True)
  rows = {"processbench": list(_processbench()), "prm800k": _rows()[2]}
  paths = {name: folder / f"{name}.jsonl" for name in rows}
  for name, path in paths.items():
    if not path.exists():
      lines = [json.dumps(row) + "\n" for row in rows[name]]
      write_text_atomic(path, "".join(lines))
  return paths


def architecture(tied: bool, llama: bool = False) -> ModelConfig:
  """A small Qwen2, or a Llama.

  Args:
    tied: whether embedding and head are the same weights.
    llama: True leaves out the biases of attention.

  Returns:
    The architecture.
  """
  return ModelConfig(
    vocab_size=512,  # Padded beyond the tokens, as real embeddings are.
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
  """A PreTrainedTokenizerFast: byte-level BPE.

  It merges separators with punctuation.
  """
  import transformers  # Here: every run imports this file, few call it.

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
  """(problem, steps, answer)."""
  rng = np.random.default_rng(SEED)
  for _ in range(PROBLEMS):
    a, b, c = rng.integers(1, 10, 3).tolist()
    steps = [
      f"First, {a} + {b} = {a + b}.",
      f"So ${a + b} - {c} = {a + b - c}$.",
      f"The answer is $\\boxed{{{a + b - c}}}$.",
    ]
    yield f"Compute ${a} + {b} - {c}$.", steps, a + b - c


def _rows() -> tuple[list[Any], list[Any], list[Any]]:
  """Raw rows of MATH prompts, MATH500 and PRM800K."""
  train, held_out, labelled = [], [], []
  for number, (problem, steps, answer) in enumerate(_solutions()):
    train.append(
      {
        "question": problem,
        # One prompt in three has an answer that training may use.
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
  return train, held_out, labelled


def _labelled(problem: str, steps: list[str], number: int) -> dict[str, Any]:
  """A line of PRM800K; every other one ends with an error."""
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
  """Lines of ProcessBench: a right and a wrong solution of each problem."""
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
