"""Labelled solutions encoded for a PRM: limits, batches, vocabularies."""

import dataclasses
import json
import pathlib
import shutil
import types

import evaluate_prm
import numpy as np
import pytest
from configs import gsm8k_prm, paper
from prm_evaluations import smoke
from small_models import initial_params

from pure_jax.host import huggingface
from pure_jax.host.data.records import LabelledSolution, problem_key
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.host.text.tokenization import TokenizerError, encode_response
from pure_jax.models import prm
from pure_jax.parallel import sharding
from pure_jax.runs.evaluation import held_out_prm, labelled_solutions
from pure_jax.runs.evaluation.loaded_prm import LoadedPRM
from pure_jax.runs.evaluation.score_file import open_scores
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import DataSettings
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.tasks.files import FilesTask


class Characters:
  """One id for each character, accents dropped; 0 is padding, 1 the end."""

  vocab_size, pad_id, banned_ids = 130, 0, (0,)
  eos_id, eos_ids = 1, (1,)
  bos_id = None
  pieces = ("", "", *map(chr, range(128)))

  def encode(self, text):
    return [ord(letter) + 2 for letter in text.replace("\xe9", "e")]

  encode_prompt = encode

  def decode(self, ids):
    return "".join(self.pieces[i] for i in ids)


def steps(problem, *texts):
  return LabelledSolution("id", "test", problem, texts, (1,) * len(texts))


# A prompt has the problem and a line break, a solution its steps, two
# characters between them and the end.
ROWS = [
  steps("p" * 9, "a"),  # 10 and 2 ids.
  steps("p" * 8, "a" * 5, "b"),  # 9 and 9 ids, two steps.
  steps("p" * 10, "a" * 30),  # 11 ids: both are too long.
  steps("p", "a" * 10),  # 2 and 11 ids.
  steps("p", "a" * 11),  # 12 ids.
  steps("p", "a", "b", "c"),  # Three steps.
  steps("p", "a", "b"),  # 2 and 5 ids.
  steps("p", "caf\xe9"),  # Not given back.
  steps("p" * 10, "\xe9"),  # 11 ids, and not given back.
]
LIMITS = labelled_solutions.SolutionLimits(
  prompt_tokens=10, response_tokens=11, max_steps=2
)


def encoded():
  return labelled_solutions.encode_solutions(
    Characters(), PROMPT_FORMATS["plain"], ROWS, LIMITS, "insert"
  )


def test_limits_are_inclusive_and_each_solution_is_encoded_or_left_out():
  solutions = encoded()
  assert solutions.index.tolist() == [0, 1, 3, 6]
  assert solutions.left_out == {
    2: "problem too long",
    4: "solution too long",
    5: "too many steps",
    7: "not tokenized back",
    8: "problem too long",
  }
  texts = solutions.texts
  assert [len(text.prompt) for text in texts] == [10, 9, 2, 2]
  assert [len(text.response) for text in texts] == [2, 9, 11, 5]
  assert all(text.response[-1] == Characters.eos_id for text in texts)


def test_batches_have_each_solution_once_in_few_columns():
  solutions, order, shapes = encoded(), [], []
  for indices, batch in labelled_solutions.batches_by_length(
    solutions, LIMITS, 3, 4, pad_id=0
  ):
    shapes.append((batch.prompt_tokens.shape, batch.tokens.shape))
    assert not batch.prompt_tokens[~batch.prompt_mask].any()
    for row, index in enumerate(indices):
      prompt = batch.prompt_tokens[row][batch.prompt_mask[row]]
      response = batch.tokens[row][batch.completion_mask[row]]
      assert prompt.tolist() == solutions.texts[index].prompt
      assert response.tolist() == solutions.texts[index].response
      # Prompts are padded on the left, solutions on the right.
      assert batch.prompt_mask[row, -1] and batch.completion_mask[row, 0]
    order += indices.tolist()
  assert sorted(order) == [0, 1, 2, 3]
  # By length: 7, 12 and 13 ids; then 18, repeated to fill the batch.
  assert shapes == [((3, 10), (3, 11)), ((3, 10), (3, 11))]
  assert order == [3, 0, 2, 1]


def test_only_padding_is_cropped():
  (_, batch), *_ = labelled_solutions.batches_by_length(
    encoded(), LIMITS, 1, 4, pad_id=0
  )
  # The shortest row has 2 and 5 ids: 4 and 8 columns.
  assert batch.prompt_tokens.shape == (1, 4)
  assert batch.tokens.shape == (1, 8)
  assert batch.prompt_mask.sum() == 2 and batch.completion_mask.sum() == 5
  characters = Characters()
  prompt, response = (
    characters.decode(ids[0].tolist())
    for ids in (batch.prompt_tokens, batch.tokens)
  )
  assert batch.prompt_tokens[0, :2].tolist() == [0, 0]
  assert (prompt, response) == ("p\n", "a\n\nb")


@pytest.mark.parametrize(
  ("prompt_format", "prompt"), [("raw", "1 + 1?"), ("plain", "1 + 1?\n")]
)
@pytest.mark.parametrize("separator", ["insert", "replace", "each"])
def test_prompt_format_and_separator_of_the_config_reach_the_prm(
  tmp_path, monkeypatch, prompt_format, prompt, separator
):
  inputs = {}

  def make_prm_evaluation(model, config, table, layout):
    inputs["config"] = config

    def score(params, batch):
      inputs["batch"] = batch
      return np.zeros((len(batch.tokens), config.max_steps))

    return score

  monkeypatch.setattr(
    evaluate_prm.supervised, "make_prm_evaluation", make_prm_evaluation
  )
  settings = smoke(
    prompt_format=prompt_format,
    score__separator=separator,
    score__max_steps=5,
    batch_size=1,
  )
  layout = sharding.make_layout(1, 1)
  with open_scores(tmp_path, {"a": 1}) as scores:
    evaluate_prm.score_data(
      settings,
      DataSettings("a", "unread", "prm800k"),
      [steps("1 + 1?", "So 2.")],
      LoadedPRM(Characters(), None, None),
      layout,
      scores,
    )
    assert scores.records["a", 0].step_rewards == (0.0,)
  assert (inputs["config"].separator, inputs["config"].max_steps) == (
    separator,
    5,
  )
  batch = inputs["batch"]
  if separator == "each":
    text = Characters().decode(np.asarray(batch.tokens)[batch.mask].tolist())
    assert text == f"{prompt}So 2.\n"
    return
  ids = np.asarray(batch.prompt_tokens)[np.asarray(batch.prompt_mask)]
  assert Characters().decode(ids.tolist()) == prompt


# ===== A PRM of another size than its policy =====


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
  """The tiny policy and its data, as settings that name them."""
  folder = tmp_path_factory.mktemp("tiny")
  config = paper.policy_run(
    "smoke", policy="unused", iterations=1, architecture="qwen2p5_7b"
  )
  config.files.random_model = "tied"
  settings = conversion.settings_from_config(config, Settings)
  task = FilesTask(settings, folder)
  task.close()
  files = dataclasses.replace(
    settings.files,
    random_model=None,
    policy=str(folder / "tiny" / "policy"),
    train=str(folder / "tiny" / "problems" / "train.jsonl"),
    held_out=str(folder / "tiny" / "problems" / "held_out.jsonl"),
  )
  return dataclasses.replace(settings, files=files), task.model


def make_prm(folder, policy_model, **changes):
  model = dataclasses.replace(policy_model, **changes)
  params = initial_params(prm.declare_prm(model))
  huggingface.export_prm(folder, params, model, max_positions=64)
  return folder


def with_prm(settings, folder):
  return dataclasses.replace(
    settings, files=dataclasses.replace(settings.files, prm=str(folder))
  )


def test_a_prm_may_be_larger_than_its_policy(policy_folder, tmp_path):
  """As PURE-PRM-7B is for the 1.5B policy: wider, and a shorter embedding."""
  settings, model = policy_folder
  folder = make_prm(
    tmp_path / "prm", model, width=48, num_layers=3, vocab_size=448
  )
  task = FilesTask(with_prm(settings, folder), tmp_path / "run")
  assert (task.model.width, task.prm_model.width) == (32, 48)
  assert (task.prm_model.num_layers, task.prm_model.vocab_size) == (3, 448)
  assert task.prm_model.compute_dtype == settings.files.model.compute_dtype


def test_a_prm_with_another_vocabulary_raises(policy_folder, tmp_path):
  settings, model = policy_folder
  short = make_prm(tmp_path / "short", model, vocab_size=64)
  with pytest.raises(TokenizerError, match="different models"):
    FilesTask(with_prm(settings, short), tmp_path / "run")
  other = make_prm(tmp_path / "other", model)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(pathlib.Path(settings.files.policy) / name, other / name)
  FilesTask(with_prm(settings, other), tmp_path / "run").close()
  path = other / "tokenizer.json"
  tokenizer = json.loads(path.read_text())
  vocab = tokenizer["model"]["vocab"]
  vocab["x"], vocab["y"] = vocab["y"], vocab["x"]
  path.write_text(json.dumps(tokenizer))
  message = "another vocabulary than the policy"
  with pytest.raises(TokenizerError, match=message):
    FilesTask(with_prm(settings, other), tmp_path / "run")


def files_task_of_solutions(folder, **changes):
  """The tiny labelled solutions as a task, some of `files` replaced."""
  config = gsm8k_prm.get_config("smoke")
  settings = conversion.settings_from_config(config, Settings)
  return FilesTask(
    dataclasses.replace(
      settings, files=dataclasses.replace(settings.files, **changes)
    ),
    folder,
  )


def open_spec_and_batches(task):
  """What a task reads of a run, in one process without a model."""
  spec = types.SimpleNamespace(
    settings=task._settings,
    prm_model=None,
    prm_score_config=None,
    table=types.SimpleNamespace(pad_id=task.tokenizer.pad_id),
    layouts=types.SimpleNamespace(training=None),
  )
  return spec, types.SimpleNamespace(put=lambda tree: tree)


def problems_read(task, tokens, masks):
  """The problems of prompts, from their ids; one for each row."""
  return [
    task.tokenizer.decode(row[mask].tolist()).strip()
    for row, mask in zip(tokens, masks, strict=True)
  ]


def trained_and_held_out(task, monkeypatch, chosen=None):
  """(problems a PRM is trained on, problems it is evaluated on)."""
  labelled = task.labelled(*open_spec_and_batches(task), None).responses
  held_out = []

  def score(params, batch):
    held_out.extend(problems_read(task, batch.prompt_tokens, batch.prompt_mask))
    return np.zeros((len(batch.tokens), task._settings.prm.score.max_steps))

  def choose(problems, correct, answers, rewards, mask):
    if chosen is not None:
      chosen.append((problems, correct, answers))
    return {}

  monkeypatch.setattr(
    held_out_prm.supervised, "make_prm_evaluation", lambda *unused: score
  )
  monkeypatch.setattr(held_out_prm.prm_metrics, "best_of_n_metrics", choose)
  # Batches are filled up with rows of their own; one has no such rows.
  batch_of_one = dataclasses.replace(task._settings.prm, batch_size=1)
  task._settings = dataclasses.replace(task._settings, prm=batch_of_one)
  task.evaluate_prm(*open_spec_and_batches(task), None, None)
  return problems_read(
    task, labelled.prompt_tokens, labelled.prompt_mask
  ), held_out


def test_a_prm_is_trained_and_evaluated_on_different_problems(
  tmp_path, monkeypatch
):
  task = files_task_of_solutions(tmp_path)
  one_in = task._files.labelled_one_in
  rows = [
    json.loads(line)
    for line in pathlib.Path(task._files.labelled).read_text().splitlines()
  ]
  problems = [row["question"]["problem"] for row in rows]
  # Where a problem goes follows from its text: `records.split_by_problem`.
  apart = [int(problem_key(text), 16) % one_in == 0 for text in problems]
  expected = [
    sorted(t for t, out in zip(problems, apart, strict=True) if out == part)
    for part in (False, True)
  ]
  trained, labelled = trained_and_held_out(task, monkeypatch)
  assert trained and labelled and not {*trained} & {*labelled}
  assert [sorted(trained), sorted(labelled)] == expected


def test_training_and_held_out_rows_have_limits_of_their_own(
  tmp_path, monkeypatch
):
  task = files_task_of_solutions(
    tmp_path, labelled_rows=7, labelled_held_out_rows=3
  )
  trained, labelled = trained_and_held_out(task, monkeypatch)
  assert (len(trained), len(labelled)) == (7, 3)


def test_the_answer_of_a_solution_is_the_last_number_of_its_last_step(
  tmp_path, monkeypatch
):
  task, chosen = files_task_of_solutions(tmp_path), []
  _, held_out = task._labelled_rows()
  rows = [
    dataclasses.replace(held_out[0], steps=("7 and", text), labels=(1, 1))
    for text in ("so 12.", "1,000 in all", "none")
  ]
  monkeypatch.setattr(task, "_labelled_rows", lambda: (rows, rows))
  trained_and_held_out(task, monkeypatch, chosen)
  ((_, _, answers),) = chosen
  assert answers == ["12", "1,000", None]


def test_an_evaluation_gives_each_row_its_own_scores(tmp_path, monkeypatch):
  """Rows are scored in order of length and returned in file order."""
  task = files_task_of_solutions(tmp_path)
  max_steps = task._settings.prm.score.max_steps

  def reward(ids):
    return (sum(ids) % 97) / 48 - 1

  def score(params, batch):
    rows = [
      reward(tokens[mask].tolist())
      for tokens, mask in zip(batch.tokens, batch.completion_mask, strict=True)
    ]
    return np.repeat(np.asarray(rows)[:, None], max_steps, 1)

  monkeypatch.setattr(
    held_out_prm.supervised, "make_prm_evaluation", lambda *unused: score
  )
  metrics = task.evaluate_prm(*open_spec_and_batches(task), None, None)

  _, held_out = task._labelled_rows()
  right = [
    (reward(encode_response(task.tokenizer, row.steps, finished=True)) > 0)
    == bool(label)
    for row in held_out
    for label in row.labels
    if label is not None
  ]
  assert len(held_out) > 4
  assert metrics["step_accuracy"] == pytest.approx(np.mean(right))
  assert metrics["left_out"] == 0
