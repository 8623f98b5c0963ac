"""Rows of TRL's PRMTrainer: ids and labels of a solution.

`tokenize_row` is its definition, written anew. `installed_tokenize_row` is the
trainer's own, which tests use where TRL is installed.
"""

import pytest

UNLABELLED = -100


def tokenize_row(tokenizer, prompt, steps, labels):
  """(ids, labels) of a solution, with a transformers tokenizer.

  Every step is encoded by itself and followed by a line break. The label of a
  step is that of the line break's last id.
  """
  ids = []
  if tokenizer.bos_token_id is not None:
    ids.append(tokenizer.bos_token_id)
  ids += tokenizer(prompt, add_special_tokens=False)["input_ids"]
  row_labels = [UNLABELLED] * len(ids)
  for step, label in zip(steps, labels, strict=True):
    for text in (step, "\n"):
      part = tokenizer(text, add_special_tokens=False)["input_ids"]
      ids += part
      row_labels += [UNLABELLED] * len(part)
    row_labels[-1] = int(label)
  return ids, row_labels


def installed_tokenize_row():
  """The same function by TRL; skips the test where it is not installed."""
  module = pytest.importorskip(
    "trl.experimental.prm",
    reason="TRL with trl.experimental.prm is not installed (trl 1.13 has it).",
  )

  def by_trl(tokenizer, prompt, steps, labels):
    row = module.PRMTrainer.tokenize_row(
      {"prompt": prompt, "completions": steps, "labels": labels},
      tokenizer,
      step_separator="\n",
      max_length=None,
      max_completion_length=None,
      train_on_last_step_only=False,
      is_eval=False,
    )
    return row["input_ids"], row["labels"]

  return by_trl


def padded_row(inputs, labels, row):
  """(ids, labels) of a row of `PRMInputs`, to compare with the above."""
  ids = inputs.tokens[row][inputs.mask[row]]
  row_labels = [UNLABELLED] * len(ids)
  assert inputs.mask[row, : len(ids)].all()  # All padding is on the right.
  scored = inputs.score_position[row][inputs.score_mask[row]].tolist()
  for position, label in zip(scored, labels, strict=True):
    row_labels[position] = int(label)
  return ids.tolist(), row_labels
