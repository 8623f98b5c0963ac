"""A run on a Hugging Face folder and files: a tiny random model, end to end."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import cli
import pytest
import train_pure
from checkout import ROOT
from configs import files

from pure_jax.host.data.records import Problem
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.tasks import files as files_task

SMALL = {
  "files.random_model": "untied",
  "files.prompt_tokens": 160,
  "files.prm_prompt_tokens": 64,
  "files.response_tokens": 96,
  "files.labelled_one_in": 3,
  "files.model.compute_dtype": "float32",
  "prm.head_steps": 2,
  "prm.full_steps": 2,
  "prm.batch_size": 8,
  "prm.log_every": 2,
  "rl.iterations": 1,
  "rl.prompts": 2,
  "rl.samples_per_prompt": 4,
  "rl.sampler.max_new_tokens": 24,
  "rl.eval_prompts": 4,
  "rl.samples_every": 1,
}


def run(workdir, *options):
  return subprocess.run(
    [
      sys.executable,
      str(ROOT / "experiments" / "train_pure.py"),
      f"--config={ROOT / 'experiments' / 'configs' / 'files.py'}",
      f"--workdir={workdir}",
      *(f"--config.{name}={value}" for name, value in SMALL.items()),
      *options,
    ],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=400,
    check=False,
  )


def settings(**changes):
  """Settings of the small run, with some of `files` replaced."""
  config = files.get_config()
  config.update_from_flattened_dict(SMALL)
  made = conversion.settings_from_config(config)
  return dataclasses.replace(
    made, files=dataclasses.replace(made.files, **changes)
  )


@pytest.fixture(scope="module")
def task(tmp_path_factory):
  opened = files_task.FilesTask(settings(), tmp_path_factory.mktemp("task"))
  yield opened
  opened.close()


def test_all_stages_run_on_a_folder_and_files(tmp_path):
  done = run(tmp_path / "run")
  assert done.returncode == 0, done.stderr
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  rows = {row["stage"]: row for row in map(json.loads, text.splitlines())}
  assert {*rows} == {
    *("prm_data", "prm_head", "prm_full", "prm_eval", "rl", "rl_eval")
  }
  assert 0 < rows["prm_data"]["good_share"] < 1
  assert 0 <= rows["prm_eval"]["auc"] <= 1
  # The policy samples what the trainer computes, top to bottom.
  assert rows["rl"]["logp_drift_max"] < 1e-4
  assert rows["rl"]["ratio_max"] == pytest.approx(1, abs=1e-5)
  assert rows["rl"]["ratio_min"] == pytest.approx(1, abs=1e-5)
  assert rows["rl"]["grader_crashed"] == rows["rl"]["grader_timed_out"] == 0


def test_held_out_problems_that_row_shards_cannot_divide(task, tmp_path):
  """Fewer than asked for, on devices that cannot share them out evenly."""
  made, found = settings(), len(task.held_out)
  shards = next(size for size in (8, 7, 5, 3) if found % size)
  made = dataclasses.replace(
    made,
    rl=dataclasses.replace(
      made.rl, eval_prompts=shards * found, prompts=shards
    ),
    prm=dataclasses.replace(made.prm, batch_size=shards, eval_prompts=shards),
    mesh=dataclasses.replace(made.mesh, data=shards),
  )
  fitting = found // shards * shards
  said = rf"There are {found} held-out .* --config.rl.eval_prompts={fitting}\."
  with (
    pytest.raises(ConfigError, match=said),
    cli.open_workspace(made, str(tmp_path / "run")),
  ):
    pass


def test_prompts_are_a_chat_for_the_policy_and_raw_for_the_prm(task):
  problem = task.train[0].problem
  asked = task.prompt_format.text(task.tokenizer, problem)
  assert "\\boxed{}" in asked and asked.endswith("<|im_start|>assistant\n")
  labelled = task.prm_prompt_format.text(task.tokenizer, problem)
  assert labelled == problem


def test_the_policy_alone_is_asked_to_begin_with_a_prefix(tmp_path):
  made = settings(response_prefix="Step 1:")
  with cli.open_workspace(made, str(tmp_path / "run")) as space:
    problems = space.task.train[:1]
    asked = space.encode_prompts(problems)
    ids = asked.tokens[0][asked.mask[0]].tolist()
    text = space.task.tokenizer.decode(ids)
    assert text.endswith("assistant\nStep 1:")
    labelled = space.encode_prm_prompts(problems)
    ids = labelled.tokens[0][labelled.mask[0]].tolist()
    assert space.task.tokenizer.decode(ids) == problems[0].problem


def test_answers_are_graded_and_withheld_ones_measure_only(task):
  problem = task.train[0]
  (right,) = [problem.answer or problem.withheld_answer]
  unknown = dataclasses.replace(problem, answer=None, withheld_answer=None)
  texts = [
    ["So.", f"It is $\\boxed{{{right}}}$."],
    ["\\boxed{1000}"],
    ["\\boxed{1000}"],
  ]
  verdicts = task.grade([problem, problem, unknown], texts)
  assert verdicts.correct.tolist() == [True, False, False]
  assert verdicts.metrics["grader_timed_out"] == 0


def test_an_answer_that_takes_too_long_is_counted_apart_from_a_wrong_one(
  tmp_path,
):
  grader = dataclasses.replace(settings().files.grader, seconds=2.0)
  hasty = files_task.FilesTask(settings(grader=grader), tmp_path)
  problem = Problem("a", "x", "1+1?", answer="2")
  # What cannot be computed, what is wrong, what is no answer, what is right.
  texts = [["\\boxed{9^{9^{9^{9}}}}"], ["\\boxed{3}"], ["So."], ["\\boxed{2}"]]
  with contextlib.closing(hasty):
    verdicts = hasty.grade([problem] * 4, texts)
  assert verdicts.correct.tolist() == [False, False, False, True]
  assert verdicts.metrics == {
    "grader_timed_out": 1.0,
    "grader_crashed": 0.0,
    "grader_no_answer": 1.0,
  }


@pytest.mark.parametrize(
  ("mode", "fraction", "expected"),
  [
    ("prm", None, [False, False, False]),
    ("prm+vr", None, [True, False, False]),
    ("prm+vr", 1.0, [True, True, False]),
    ("vr", None, [True, True, False]),
  ],
)
def test_whose_verdict_the_update_may_use(mode, fraction, expected):
  problems = [
    Problem("a", "x", "1+1?", answer="2"),
    Problem("b", "x", "1+2?", withheld_answer="3"),
    Problem("c", "x", "1+3?"),
  ]
  rl = settings().rl
  credit = dataclasses.replace(
    rl.credit,
    process_coef=float("prm" in mode),
    verifiable_coef=float("vr" in mode),
  )
  rl = dataclasses.replace(rl, credit=credit, answer_fraction=fraction)
  assert rl.reward_mode == mode
  found = [train_pure.may_use_answer(problem, rl) for problem in problems]
  assert found == expected


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prompt_tokens": 4}, "have room for none of the 48 problems"),
    ({"labelled_format": "math500"}, "needs Steps"),
    ({"response_tokens": 2}, r"have room for none of .*\d+ solution too long"),
    ({"labelled_one_in": 100_000}, "0 held out"),
  ],
)
def test_what_cannot_be_used_ends_in_a_sentence(tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    opened = files_task.FilesTask(settings(**changes), tmp_path)
    opened.labelled(None, None)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"policy": "nowhere"}, "not both"),
    ({"prompt_format": "boxed"}, "prompt_format must be one of"),
    ({"train_format": "gsm9k"}, "train_format must be one of"),
    ({"grader.extractors": ("box",)}, "extractors must be one of"),
    ({"grader.extractors": ()}, "extractors needs at least one"),
    ({"labelled_rows": 0}, "labelled_rows must be at least 1"),
    (
      {"labelled_held_out_rows": 0},
      "labelled_held_out_rows must be at least 1",
    ),
    ({"grader.seconds": 0.0}, "seconds must be above 0"),
    ({"grader.seconds": 1e9}, "seconds must be .* at most 3600"),
  ],
)
def test_names_that_nothing_has_are_refused(changes, message):
  config = files.get_config()
  config.files.random_model = "tied"
  config.files.update_from_flattened_dict(changes)
  with pytest.raises(ConfigError, match=rf"config\.files.*: .*{message}"):
    conversion.settings_from_config(config)


def test_a_refused_name_ends_in_a_sentence(tmp_path):
  done = run(tmp_path / "run", "--config.files.train_format=gsm9k")
  assert done.returncode == 1
  assert "must be one of" in done.stderr and "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()
