"""The page about a run: its data, against loops, and in a browser."""

import dataclasses
import json
import shutil
import subprocess

import numpy as np
import pytest
import report as report_script
from absl import flags
from absl.testing import flagsaver

from pure_jax.host.logs.metrics import MetricsError
from pure_jax.runs.run_report import run_data
from pure_jax.runs.run_report.page import make_page
from pure_jax.runs.run_report.run_data import MAX_SHOWN, read_run
from pure_jax.runs.run_report.token_credit import FORMS, token_credit
from pure_jax.runs.workdir import WorkdirError
from pure_jax.settings import CreditConfig

CONFIG = CreditConfig(
  "min", baseline="main", group_size=3, verifiable_coef=0.5, whitening="tokens"
)
# Three samples of a prompt: scores and tokens of their steps, and verdicts.
GROUP = {
  "step_rewards": [[0.8, -0.6, 0.4, 0.9], [0.5], [-0.2, 0.3]],
  "step_tokens": [[2, 1, 3, 2], [4], [3, 3]],
  "empty": [[False] * 4, [False], [False] * 2],
  "correct": [False, True, False],
  "uses_answer": True,
  "verifiable_coef": 0.5,
}
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028 & <b>3 < 5</b>"


def sample(member, **changes):
  return {
    "stage": "rl",
    "step": 10,
    "problem": "How many?",
    "steps": [f"step {i}" for i in range(len(GROUP["step_rewards"][member]))],
    "step_rewards": GROUP["step_rewards"][member],
    "correct": GROUP["correct"][member],
    "gradable": True,
    "truncated": False,
    "kind": None,
    "group": GROUP | {"member": member},
  } | changes


def returns(form, rewards):
  """The return of each step, by its definition."""
  if form == "softmin":
    weights = np.exp(-np.asarray(rewards) / 0.1)
    rewards = (weights / weights.sum() * rewards).tolist()
  worst = int(np.argmin(rewards))
  steps = range(len(rewards))
  if form in ("sum", "softmin"):
    return [sum(rewards[step:]) for step in steps]
  if form == "min":
    return [min(rewards[step:]) for step in steps]
  return [rewards[worst] if step <= worst else 0.0 for step in steps]


def advantages(form, member):
  """Return minus baseline, and the outcome against the others, by loops."""
  others = [k for k in range(3) if k != member]
  # The rewards that sum to the returns: their sum is the first return.
  total = sum(returns(form, GROUP["step_rewards"][k])[0] for k in others)
  share = total / sum(sum(GROUP["step_tokens"][k]) for k in others)
  outcome = (
    GROUP["correct"][member] - sum(GROUP["correct"][k] for k in others) / 2
  )
  tokens = GROUP["step_tokens"][member]
  return [
    value - share * sum(tokens[step:]) + 0.5 * outcome
    for step, value in enumerate(returns(form, GROUP["step_rewards"][member]))
  ]


@pytest.mark.parametrize("form", FORMS)
def test_credit_of_a_sample_follows_from_its_group(form):
  """Two groups: the second has other verdicts, which must not reach it."""
  other = GROUP | {"member": 2, "uses_answer": False}
  earlier = GROUP | {"member": 0, "verifiable_coef": 0.0}
  credits = token_credit(
    [sample(0), sample(1), sample(2, group=other), sample(0, group=earlier)],
    CONFIG,
  )
  for member in (0, 1):
    of_form = credits[member][form]
    expected = returns(form, GROUP["step_rewards"][member])
    np.testing.assert_allclose(of_form["returns"], expected, atol=2e-4)
    expected = advantages(form, member)
    for last_or_first in np.transpose(of_form["advantages"]):
      np.testing.assert_allclose(last_or_first, expected, atol=2e-4)
  without_outcome = np.asarray(advantages(form, 2)) + 0.25
  first, _ = np.transpose(credits[2][form]["advantages"])
  np.testing.assert_allclose(first, without_outcome, atol=2e-4)
  # A run that was rolled back may use verdicts that it did not use before.
  first, _ = np.transpose(credits[3][form]["advantages"])
  np.testing.assert_allclose(
    first, np.asarray(advantages(form, 0)) + 0.25, atol=2e-4
  )


def test_the_baseline_of_the_paper_falls_along_a_step():
  """N is the length of a rollout: another sample in the log changes nothing."""
  config = dataclasses.replace(CONFIG, baseline="paper_a", baseline_length=100)
  (credit,) = token_credit([sample(0)], config)
  total = sum(sum(returns("sum", GROUP["step_rewards"][k])[:1]) for k in (1, 2))
  share, outcome = total / 200, 0.5 * (0 - 1 / 2)
  # Of step 1, with tokens 0 and 1 of 8, and of step 3, with 3, 4 and 5.
  expected = [
    [1.5 - 8 * share, 1.5 - 7 * share],
    [1.3 - 5 * share, 1.3 - 3 * share],
  ]
  np.testing.assert_allclose(
    credit["sum"]["advantages"][::2], np.asarray(expected) + outcome, atol=2e-4
  )
  longer = GROUP | {"step_tokens": [[20, 1, 3, 2], [40], [3, 3]], "member": 1}
  assert token_credit([sample(0), sample(1, group=longer)], config)[0] == credit


def test_an_empty_step_takes_the_return_of_the_next():
  config = dataclasses.replace(CONFIG, exclude_empty_steps=True)
  empty = [[False, True, False, False], [False], [False, False]]
  group = GROUP | {"empty": empty, "member": 0}
  (credit,) = token_credit([sample(0, group=group)], config)
  assert credit["min"]["returns"] == pytest.approx([0.4, 0.4, 0.4, 0.9])


def test_a_group_without_steps_has_no_credit():
  group = GROUP | {
    "step_rewards": [[], [], []],
    "step_tokens": [[], [], []],
    "empty": [[], [], []],
    "member": 0,
  }
  (credit,) = token_credit([sample(0, group=group, steps=[])], CONFIG)
  assert credit["min"] == {"returns": [], "advantages": []}
  assert token_credit([], CONFIG) == []


# ===== A run =====


def write_rows(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(tmp_path):
  """A run with two iterations, an alarm, samples and generations."""
  rl = {"credit": dataclasses.asdict(CONFIG), "sampler": {"max_new_tokens": 9}}
  record = {"config": {"rl": rl}}
  record["versions"] = [{}]
  (tmp_path / "config.json").write_text(json.dumps(record))
  cells = {
    "accepted_right": 0.25,
    "accepted_wrong": 0.5,
    "rejected_right": 0.0,
    "rejected_wrong": 0.25,
  }
  write_rows(
    tmp_path / "metrics.jsonl",
    [
      {"stage": "rl_eval", "step": 0, "accuracy": 0.1},
      {"stage": "rl", "step": 1, "accuracy": 0.2, "entropy": None} | cells,
      {"stage": "rl", "step": 2, "accuracy": 0.4, "entropy": 0.5} | cells,
    ],
  )
  write_rows(
    tmp_path / "samples.jsonl",
    [sample(0), sample(1, step=20, problem=HOSTILE, sign="divergence")],
  )
  generation = {
    "stage": "rl_eval",
    "benchmark": "held_out",
    "id": "1",
    "problem": "A held-out one",
    "reference": "3",
    "greedy": False,
    "steps": ["It is 3."],
    "tokens": 4,
    "truncated": False,
    "answer": "3",
    "correct": True,
    "step_rewards": [0.5],
  }
  wrong = {"step": 2, "steps": ["4"], "answer": "4", "correct": False}
  write_rows(
    tmp_path / "generations.jsonl",
    [generation | {"step": 0}, generation | wrong],
  )
  write_rows(
    tmp_path / "alarms.jsonl",
    [
      {
        "stage": "rl",
        "step": 2,
        "alarm": "divergence",
        "reason": "it rose",
        "action": "tell",
      }
    ],
  )
  return tmp_path


def test_the_data_of_a_run(workdir):
  data = read_run(workdir)
  assert data["credit"] == "min"
  lines = {panel["name"]: panel["lines"] for panel in data["panels"]}
  assert lines["accuracy"] == {
    "rl_eval": [[0, 0.1]],
    "rl": [[1, 0.2], [2, 0.4]],
  }
  assert lines["entropy"] == {"rl": [[2, 0.5]]}  # A null is no point.
  assert [row["alarm"] for row in data["alarms"]] == ["divergence"]
  first, second, before, after = data["samples"]
  assert first["outcome"] == pytest.approx(
    returns("softmin", first["scores"])[0], abs=1e-4
  )
  good = [sample["all_good"] for sample in data["samples"]]
  assert good == [False, True, True, True]
  assert (before["source"], before["step"]) == ("held_out", 0)
  assert (after["reference"], after["answer"]) == ("3", "4")
  assert second["sign"] == "divergence" and set(second["credit"]) == set(FORMS)


def test_an_older_run_has_a_page_without_credit(workdir):
  old = sample(0)
  for name in ("group", "gradable", "truncated"):
    del old[name]
  write_rows(workdir / "samples.jsonl", [old])
  for name in ("alarms.jsonl", "generations.jsonl"):
    (workdir / name).unlink()
  (shown,) = read_run(workdir)["samples"]
  assert shown["credit"] == {} and shown["gradable"]
  record = {"config": {"rl": {"credit": {"form": "x"}}}, "versions": [{}]}
  (workdir / "config.json").write_text(json.dumps(record))
  assert read_run(workdir)["credit"] == ""


def test_a_page_shows_the_signs_and_some_of_the_rest(workdir):
  """Thousands of long responses would make a page that no browser opens."""
  rows = [sample(0, step=step) for step in range(1000)]
  for step in (5, 500):
    rows[step]["sign"] = "divergence"
  write_rows(workdir / "samples.jsonl", rows)
  (workdir / "generations.jsonl").unlink()
  steps = [s["step"] for s in read_run(workdir)["samples"]]
  assert len(steps) == MAX_SHOWN and steps == sorted({*steps})
  assert {0, 5, 500, 999} <= {*steps}


def test_a_baseline_is_over_the_columns_of_a_rollout(workdir):
  """In the logged samples no response may be as long."""
  config = run_data._credit_config(
    json.loads((workdir / "config.json").read_text())["config"]
  )
  assert config == dataclasses.replace(CONFIG, baseline_length=9)


def test_a_folder_that_is_no_run_is_named(tmp_path):
  with pytest.raises(WorkdirError, match="not the workdir of a run"):
    read_run(tmp_path)
  (tmp_path / "config.json").write_text('{"config": {}, "versions": [{}]}')
  (tmp_path / "metrics.jsonl").write_text("")
  with pytest.raises(MetricsError, match="no rows yet"):
    read_run(tmp_path)


def test_the_script_writes_the_page(workdir, capsys):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(workdir=str(workdir)):
    report_script.main(["report.py"])
  assert f"open {workdir / 'report.html'}" in capsys.readouterr().out
  elsewhere = workdir / "missing" / "page.html"
  with (
    flagsaver.flagsaver(workdir=str(workdir), page=str(elsewhere)),
    pytest.raises(SystemExit),
  ):
    report_script.main(["report.py"])
  assert "--page" in capsys.readouterr().err


def test_no_text_of_a_model_ends_the_script(workdir):
  page = make_page([read_run(workdir)])
  assert page.count("</script>") == 2 and HOSTILE not in page
  start = page.index('id="data">') + len('id="data">')
  data = json.loads(page[start : page.index("</script>", start)])
  assert data["runs"][0]["samples"][1]["problem"] == HOSTILE


# ===== In a browser =====

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def seen(page, view=""):
  """What a browser makes of the page: its elements after all scripts."""
  done = subprocess.run(
    [
      *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
      *("--virtual-time-budget=2000", f"file://{page}#{view}"),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  return done.stdout[: done.stdout.index('<script type="application/json"')]


@pytest.fixture
def page(workdir):
  if BROWSER is None:
    pytest.skip("There is no chromium: apt install chromium.")
  path = workdir / "page.html"
  path.write_text(make_page([read_run(workdir)] * 2))
  return path


def test_a_browser_shows_curves_alarms_and_responses(page):
  dom = seen(page)
  assert dom.count("<figcaption>rl: accuracy</figcaption>") == 1
  assert dom.count("<polygon") == 8  # Four cells of two runs.
  assert "2: divergence: it rose" in dom  # Where the pointer is.
  assert dom.count("<article") == 1 and "How many?" in dom
  # The browser shows what a model wrote, and does not run it.
  assert "&lt;img src=x onerror=alert(1)&gt;" in dom and "<img" not in dom


@pytest.mark.parametrize(
  ("view", "values"),
  [
    ("", ["0.80", "-0.60", "0.40", "0.90"]),
    ("show=return&form=sum", ["1.50", "0.70", "1.30", "0.90"]),
    ("show=return&form=min", ["-0.60", "-0.60", "0.40", "0.90"]),
    (
      "show=advantage&form=min",
      [f"{value:.2f}" for value in advantages("min", 0)],
    ),
    ("run=0&verdict=not graded", []),
  ],
)
def test_a_browser_shows_the_credit_that_is_chosen(page, view, values):
  dom = seen(page, view)
  cells = dom.split('<span class="value">')[1:]
  assert [cell.partition("<")[0] for cell in cells] == values


def test_a_browser_filters_and_compares(page):
  dom = seen(
    page,
    "run=1&source=held_out&verdict=wrong&a=1.held_out.2.1&b=1.held_out.0.1",
  )
  listed = dom[dom.index('<ol id="list">') : dom.index("</ol>")]
  assert listed.count("<li>") == 1 and "hacked" in listed
  assert dom.count("<article") == 2 and "It is 3." in dom
  assert "+0.50" not in dom and dom.count("linear-gradient") == 2
  dom = seen(page, "flag=truncated&run=0")
  assert "No response fits." in dom
