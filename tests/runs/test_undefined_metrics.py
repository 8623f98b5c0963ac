"""A metric without a value is null, and keeps no stage from its end."""

import json
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
import train_prm

from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.logs.metrics import MetricsWriter, read_metrics
from pure_jax.runs.evaluation import held_out_prm
from pure_jax.runs.folder import RunFolder
from pure_jax.runs.tasks import arithmetic
from pure_jax.runs.workdir import WorkdirError

UNDEFINED = (math.nan, -math.inf, np.float32("nan"), jnp.float32(math.inf))
# Labels of two responses with two steps each: of both kinds, and of one.
MIXED, GOOD, NONE = [[1, 0], [1, 1]], [[1, 1], [1, 1]], [[None] * 2] * 2


def folder_of(path):
  return RunFolder(path, path, None, None, None, None)


def arrays_of(labels):
  """(labels [2, 2] int, label_mask [2, 2] bool)."""
  mask = np.asarray([[label is not None for label in row] for row in labels])
  return np.asarray([[label or 0 for label in row] for row in labels]), mask


def world_metrics(monkeypatch, labels, rewards, correct):
  """What `ArithmeticTask.evaluate_prm` makes of two responses' rewards."""
  data = types.SimpleNamespace(tokens=None, completion_mask=None)
  task = types.SimpleNamespace(
    held_out=[types.SimpleNamespace(problem="1+1=?")] * 2,
    tokenizer=None,
    grade=lambda problems, texts: types.SimpleNamespace(
      correct=np.asarray(correct)
    ),
    _settings=types.SimpleNamespace(
      prm=types.SimpleNamespace(eval_prompts=2, policy_samples=1)
    ),
    _sample=lambda *unused: data,
    _label=lambda *unused: arrays_of(labels),
    _prm_batch=lambda batch: batch,
  )
  monkeypatch.setattr(
    arithmetic, "split_texts", lambda *unused: [["a", "b"]] * 2
  )
  monkeypatch.setattr(
    arithmetic.supervised,
    "make_prm_evaluation",
    lambda *unused: lambda *unused: np.asarray(rewards, np.float32),
  )
  spec = types.SimpleNamespace(
    layouts=types.SimpleNamespace(training=None),
    **dict.fromkeys(("prm_model", "prm_score_config", "table")),
  )
  batches = types.SimpleNamespace(put=lambda batch: batch)
  return arithmetic.ArithmeticTask.evaluate_prm(task, spec, batches, None, None)


def file_metrics(monkeypatch, labels, rewards, correct):
  """What a run on files makes of two solutions' rewards."""
  del monkeypatch
  rows = [
    LabelledSolution(
      str(i), "x", "1+1?", ("a", "2"), tuple(labels[i]), final_correct=right
    )
    for i, right in enumerate(correct)
  ]
  return held_out_prm.metrics(rows, np.asarray(rewards, np.float32))


@pytest.mark.parametrize("of", [world_metrics, file_metrics])
@pytest.mark.parametrize("labels", [MIXED, GOOD, NONE], ids=str)
@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_a_prm_is_evaluated_whatever_its_labels_and_rewards(
  monkeypatch, tmp_path, of, labels, bad
):
  """It must not stop a stage whose training is done, at every restart."""
  rewards = [[0.5, -0.5], [0.5, 0.25 if bad is None else bad]]
  metrics = of(monkeypatch, labels, rewards, [True, True])
  accuracy = None if bad or labels is NONE else (1 if labels is MIXED else 0.75)
  assert metrics["step_accuracy"] == accuracy
  known = labels is MIXED and bad is None
  assert metrics["balanced_accuracy"] == (1 if known else None)
  if of is world_metrics:
    assert metrics["policy_accuracy"] == 1
    assert metrics["hacked_given_wrong"] is None  # No response is wrong.
    assert metrics["bad_recall"] == (1 if known else None)
  with MetricsWriter(tmp_path) as writer:
    writer.write("prm_eval", 1, metrics)
  folder = folder_of(tmp_path)
  folder.finish_stage("prm", {"w": jnp.zeros(1)}, metrics)
  assert folder.read_result("prm") == metrics
  (row,) = read_metrics(tmp_path)
  assert {"stage": "prm_eval", "step": 1} | metrics == row
  line = train_prm.describe_result(types.SimpleNamespace(folder=folder))
  shown = "metrics are undefined" if accuracy is None else "step accuracy"
  assert line.startswith(f"held-out {shown}")


def test_wrong_responses_count_only_with_finite_rewards(monkeypatch):
  rewards, wrong = [[0.5, 0.5], [0.5, -0.5]], [False, False]
  metrics = world_metrics(monkeypatch, MIXED, rewards, wrong)
  assert metrics["hacked_given_wrong"] == 0.5
  rewards[1][1] = math.nan
  metrics = world_metrics(monkeypatch, MIXED, rewards, wrong)
  assert metrics["hacked_given_wrong"] is None
  assert metrics["policy_accuracy"] == 0


@pytest.mark.parametrize("value", UNDEFINED, ids=repr)
def test_a_stage_ends_whatever_its_result(tmp_path, value):
  folder = folder_of(tmp_path)
  folder.finish_stage(
    "prm", {"w": jnp.zeros(1)}, {"auc": value, "steps": 4, "accuracy": 0.5}
  )
  text = (tmp_path / "prm" / "done.json").read_text()
  result = {"auc": None, "steps": 4, "accuracy": 0.5}
  assert json.loads(text, parse_constant=pytest.fail) == result
  assert folder.read_result("prm") == result
  assert folder.is_done("prm")


@pytest.mark.parametrize(
  "content",
  [
    *(b"", b"\0\0", b"\xff{}", b"[" * 200_000, b"1" * 5000, b"[1]", b"null"),
    *(b'{"auc": "high"}', b'{"auc": NaN}', b'{"auc": [1]}', b'{"auc": true}'),
    b'{"auc": 1' + b"0" * 400 + b"}",
  ],
  ids=lambda content: repr(content[:9]),
)
def test_a_damaged_result_is_named(tmp_path, content):
  path = tmp_path / "prm" / "done.json"
  path.parent.mkdir()
  path.write_bytes(content)
  with pytest.raises(WorkdirError, match=f"{path} is not the result .*remove"):
    folder_of(tmp_path).read_result("prm")
  path.unlink()
  path.mkdir()
  with pytest.raises(WorkdirError, match=f"{path} is not the result .*remove"):
    folder_of(tmp_path).read_result("prm")
