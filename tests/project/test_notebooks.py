"""The notebooks run from top to bottom, and what they compute is right."""

import json
import re
import sys

import numpy as np
import pytest
from checkout import ROOT

from pure_jax.host.data.world import arithmetic, checker
from pure_jax.host.logs.metrics import SAMPLES_FILE, RecordsWriter

nbclient = pytest.importorskip("nbclient", reason="nbclient comes with [test]")
nbformat = pytest.importorskip("nbformat", reason="nbformat comes with [test]")
pytest.importorskip("ipykernel", reason="ipykernel comes with [test]")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def execute(tmp_path, monkeypatch):
  """Runs a notebook in an empty folder; returns its text and some values.

  `values` is an expression evaluated in the notebook's kernel when every
  cell has run; it must give JSON.
  """
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
  monkeypatch.setenv("PURE_NOTEBOOK_TINY", "1")
  (tmp_path / "empty").mkdir()

  def run(name, values):
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    notebook.cells.append(
      nbformat.v4.new_code_cell(
        f"import json, sys\nprint(json.dumps([sys.executable, {values}]))"
      )
    )
    nbclient.NotebookClient(
      notebook,
      timeout=600,
      kernel_name="python3",
      resources={"metadata": {"path": str(tmp_path / "empty")}},
    ).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    texts = [o.text for o in outputs if o.output_type == "stream"]
    pictures = sum("image/png" in o.get("data", {}) for o in outputs)
    interpreter, found = json.loads(texts.pop().splitlines()[-1])
    assert interpreter == sys.executable, "the kernel is of another Python"
    return "".join(texts), pictures, found

  return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_outputs_are_stripped_and_functions_live_in_the_library(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert set(notebook.metadata) <= {"kernelspec", "language_info"}
  assert set(notebook.metadata.language_info) == {"name"}  # No version.
  for cell in notebook.cells:
    assert not cell.metadata
    if cell.cell_type == "code":
      assert cell.outputs == []
      assert cell.execution_count is None
      assert not re.search(r"^\s*(def|class)\b", cell.source, re.MULTILINE)
      assert not re.search(r"import experiments|sys\.path", cell.source)


def test_credit_without_a_run_says_how_to_make_one(execute, monkeypatch):
  """The forms on METHOD's four scores, the zero-padding bug, softmin's bias;
  nothing is drawn in place of a run that is not there.
  """
  monkeypatch.setenv("PURE_RUN", "no such run")
  text, pictures, found = execute(
    "01_credit.ipynb",
    "[{k: v.tolist() for k, v in returns.items()}, outcome, samples,"
    " correct_returns.tolist(), buggy_returns.tolist(),"
    " {k: v.tolist() for k, v in advantages.items()}]",
  )
  returns, outcome, samples, right, buggy, advantages = found
  expected = {
    "sum": [1.5, 0.7, 1.3, 0.9],
    "min": [-0.6, -0.6, 0.4, 0.9],
    "min_eq3": [-0.6, -0.6, 0, 0],
    "softmin": [-0.6, -0.6, 0, 0],
  }
  assert returns.keys() == expected.keys()
  for form, values in expected.items():
    assert returns[form] == pytest.approx(values, abs=5e-4), form
  assert outcome == pytest.approx(0.765, abs=5e-4)
  assert right == pytest.approx([0.7, 0.7, 0, 0])
  assert buggy == [0, 0, 0, 0]
  # What the text says of the picture: the sum pushes the wrong step up
  # (tokens 3 to 5), the others push all up to it down.
  assert min(advantages["sum"][0][3:6]) > 0
  for form in ("min", "min_eq3", "softmin"):
    assert max(advantages[form][0][:6]) < 0, form
  assert samples == []
  assert "no such run" in text
  assert "experiments/train_pure.py" in text
  assert pictures == 4


def write_samples(folder, config):
  """A run's samples: demonstrations of the world, scored near their labels,
  credited as Eq. 3 does by a loop.
  """
  rng = np.random.default_rng(0)
  rows = []
  for index in range(5):
    problem, response = arithmetic.make_example(config, "train", index)
    texts = response.split(arithmetic.SEPARATOR)
    labels = checker.label_steps(problem, texts)
    scores = [
      round((0.8 if label == 1 else -0.6) + float(rng.uniform(-0.2, 0.2)), 4)
      for label in labels
    ]
    worst = max(i for i, s in enumerate(scores) if s == min(scores))
    rows.append(
      {
        "problem": problem.text,
        "steps": texts,
        "step_rewards": scores,
        "step_returns": [
          min(scores) if i <= worst else 0.0 for i in range(len(scores))
        ],
        "correct": checker.grade(problem, response),
        "kind": checker.classify(problem, texts),
      }
    )
  # A response without a token has no step.
  rows.append(rows[0] | {"steps": [], "step_rewards": [], "step_returns": []})
  with RecordsWriter(folder, SAMPLES_FILE) as writer:
    for step, row in enumerate(rows):
      writer.write("rl", 10 * step, [row])
  return rows


def test_credit_of_a_run_is_recognised(execute, monkeypatch, tmp_path):
  """Of the four forms, the one that wrote the samples has no gap."""
  rows = write_samples(tmp_path / "run", arithmetic.WorldConfig())
  monkeypatch.setenv("PURE_RUN", str(tmp_path / "run"))
  text, pictures, (gaps, scores, shown) = execute(
    "01_credit.ipynb", "[gaps, step_scores.tolist(), shown]"
  )
  assert gaps.pop("min_eq3") < 1e-6
  assert min(gaps["sum"], gaps["min"]) > 0.1
  for found, row in zip(scores, rows, strict=False):
    count = len(row["steps"])
    assert found[:count] == pytest.approx(row["step_rewards"], abs=1e-6)
    assert not any(found[count:])
  assert shown == [0, 1, 3, 4]
  assert pictures == 4 + len(shown)
  assert "differs" in text


def test_a_tiny_run_trains_and_reports_what_it_did(execute):
  """Its numbers against loops over the last batch's texts and scores."""
  text, pictures, found = execute(
    "02_tiny_run.ipynb",
    "[[float(x) for x in sft_losses], len(prm_accuracy), asked, texts,"
    " np.asarray(scores.step_rewards).tolist(),"
    " [{k: float(v) for k, v in row.items()} for row in history],"
    " [int(state.step), ITERATIONS, HEAD_STEPS + FULL_STEPS, MAX_STEPS],"
    " tokenizer.vocab_size]",
  )
  losses, prm_steps, asked, texts, scores, history, sizes, vocabulary = found
  updates, iterations, planned, max_steps = sizes
  assert updates == len(history) == iterations > 1
  assert prm_steps == planned
  # Before it learns, the policy knows next to nothing.
  assert losses[0] == pytest.approx(np.log(vocabulary), rel=0.1)
  assert losses[-1] < losses[0]
  right, outcomes = [], []
  for problem, steps, rewards in zip(asked, texts, scores, strict=True):
    boxes = re.findall(r"\\boxed\{(\d+)\}", "\n\n".join(steps))
    answer = eval(problem.removesuffix("=?"))
    right.append(bool(boxes) and int(boxes[-1]) == answer)
    kept = np.asarray(rewards[: min(len(steps), max_steps)], np.float64)
    weights = np.exp(-kept / 0.1)
    outcomes.append((weights * kept).sum() / weights.sum())
  last = history[-1]
  assert last["correct_mean"] == pytest.approx(np.mean(right))
  assert last["process_outcome"] == pytest.approx(np.mean(outcomes), abs=1e-5)
  assert history[0]["ratio_max"] == pytest.approx(1, abs=1e-5)
  assert history[0]["kl_reference"] == pytest.approx(0, abs=1e-6)
  assert all(row["skipped_updates"] == 0 for row in history)
  assert f"iteration {iterations - 1:3}" in text
  assert pictures == 1


def test_hacking_is_read_from_the_committed_logs(execute):
  """All three hacked runs raise the alarm; one without a PRM cannot."""
  _, pictures, (raised, worth) = execute("03_hacking.ipynb", "[raised, worth]")
  assert pictures == 1
  diverged = {
    arm: [step for step, name in of_arm if name == "divergence"]
    for arm, of_arm in raised.items()
  }
  assert [steps[:1] for steps in diverged.values()] == [[15]] * 3 + [[]]
  before, *_, after = worth
  assert before[0] == 0 and after[0] == 50
  # Under the sum the last response is worth more than before.
  assert after[1] > before[1] and after[2] > before[2]
