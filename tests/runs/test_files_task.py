"""A run on a Hugging Face folder and files: a tiny random model, all stages."""

import contextlib
import dataclasses
import json

import metric_table
import numpy as np
import pytest
import train_prm
import train_pure
from configs import files
from script_flags import parsed
from small_models import initial_params

from pure_jax.host.data.records import Problem
from pure_jax.host.grading.verify import Verdict
from pure_jax.host.logs import curves
from pure_jax.models import prm
from pure_jax.runs import loop
from pure_jax.runs.memory import of_run
from pure_jax.runs.memory.run_sizes import read_sizes
from pure_jax.runs.rl import answers, responses
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.spec import make_layouts
from pure_jax.runs.tasks import files as files_task
from pure_jax.runs.tasks.files import FilesTask
from pure_jax.runs.workdir import WorkdirError
from pure_jax.training import supervised, train
from pure_jax.training.optim import make_optimizer

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


def settings(**changes):
  """Settings of the small run, with some of `files` replaced."""
  config = files.get_config()
  config.update_from_flattened_dict(SMALL)
  made = conversion.settings_from_config(config)
  return dataclasses.replace(
    made, files=dataclasses.replace(made.files, **changes)
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The folder of the tiny files and the prepared data sets."""
  return tmp_path_factory.mktemp("task")


@pytest.fixture(scope="module")
def task(folder):
  with contextlib.closing(FilesTask(settings(), folder)) as task:
    yield task


@pytest.mark.parametrize(
  "random_files",
  [
    ("train", "held_out", "labelled"),
    ("train", "held_out", "prm"),
    ("train", "held_out", "benchmarks"),
  ],
)
def test_a_run_has_the_sizes_that_were_read_before(random_files, tmp_path):
  """What memory has to hold is known before a task is made."""
  made = settings(random_files=random_files)
  sizes = read_sizes(made, make_layouts(made))
  with contextlib.closing(FilesTask(made, tmp_path)) as task:
    assert sizes.model == task.model
    assert sizes.prm_model == task.prm_model
    assert sizes.prompt_tokens == task.prompt_encoder.length
    assert sizes.prm_prompt_tokens == task.prm_prompt_encoder.length
    assert sizes.trains_prm == ("labelled" in random_files)
    assert sizes.has_benchmarks == bool(task.benchmarks)


def test_solutions_that_do_not_fit_into_memory_are_refused(task, monkeypatch):
  """Only the file says how many there are."""
  monkeypatch.setattr(of_run, "machine_bytes", lambda: 100)
  with pytest.raises(ConfigError, match=r"score\.max_steps=\d+ needs more mem"):
    task.labelled(None, None, None)


def test_all_stages_run_on_a_folder_and_files(tmp_path, monkeypatch):
  monkeypatch.setattr(curves, "plot_curves", lambda *unused: None)
  made = dataclasses.replace(settings(), progress=False)
  with open_run(made, str(tmp_path / "run")) as run:
    train_pure.train_rl(run)
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  logged = [*map(json.loads, text.splitlines())]
  metric_table.check(logged, "files", "PRM")
  rows = {row["stage"]: row for row in logged}
  assert {*rows} == {
    *("prm_data", "prm_head", "prm_full", "prm_eval", "rl", "rl_eval")
  }
  assert 0 < rows["prm_data"]["good_share"] < 1
  assert 0 <= rows["prm_eval"]["auc"] <= 1
  # Sampler and trainer agree about the log-probs of all layers.
  assert rows["rl"]["logp_drift_max"] < 1e-4
  assert rows["rl"]["ratio_max"] == pytest.approx(1, abs=1e-5)
  assert rows["rl"]["ratio_min"] == pytest.approx(1, abs=1e-5)
  assert rows["rl"]["grader_crashed"] == rows["rl"]["grader_timed_out"] == 0


def test_row_shards_must_divide_the_held_out_problems(task, tmp_path):
  """There are fewer held-out problems than rl.eval_prompts."""
  made, count = settings(), len(task.held_out)
  shards = next(size for size in (8, 7, 5, 3) if count % size)
  made = dataclasses.replace(
    made,
    rl=dataclasses.replace(
      made.rl, eval_prompts=shards * count, prompts=shards
    ),
    prm=dataclasses.replace(made.prm, batch_size=shards, eval_prompts=shards),
    mesh=dataclasses.replace(made.mesh, data=shards),
  )
  fitting = count // shards * shards
  message = (
    rf"There are {count} held-out .* --config.rl.eval_prompts={fitting}\."
  )
  with (
    pytest.raises(ConfigError, match=message),
    open_run(made, str(tmp_path / "run")),
  ):
    pass


def test_prompts_are_a_chat_for_the_policy_and_raw_for_the_prm(task):
  problem = task.train[0]
  prompt = task.prompt_encoder.text(problem)
  assert "\\boxed{}" in prompt and prompt.endswith("<|im_start|>assistant\n")
  assert task.prm_prompt_encoder.text(problem) == problem.problem


def test_without_a_prm_its_prompts_leave_no_problem_out(task, tmp_path):
  """Neither of training nor of a benchmark, and none is encoded."""
  config = files.get_config()
  config.update_from_flattened_dict(SMALL)
  config.files.random_files = ("train", "held_out", "benchmarks")
  config.files.prm_prompt_tokens = 1
  with pytest.raises(ConfigError, match="have room for none"):
    FilesTask(conversion.settings_from_config(config), tmp_path / "with")
  config.rl.credit.process_coef = 0.0
  made = conversion.settings_from_config(config)
  with open_run(made, str(tmp_path / "run")) as run:
    assert run.spec.prm_model is None
    assert len(run.task.train) == len(task.train)
    assert {benchmark.left_out[0] for benchmark in run.task.benchmarks} == {0}
    prompts = responses.put_prm_texts(run, run.task.train[:4], None)
    assert prompts.tokens.shape == (4, 1) and not prompts.mask.any()


def test_benchmarks_may_be_added_until_rl_begins(task, tmp_path):
  """A PRM is trained in the folder, or in the one that the run starts from."""
  workdir, tiny = tmp_path / "run", task._files
  named = {"policy": tiny.policy, "train": tiny.train}
  named |= {"held_out": tiny.held_out, "random_model": None}
  made = settings(**named)
  with open_run(made, str(workdir)):
    pass
  benchmarks = dict(tiny.benchmarks)
  benchmarks["math500"] = dataclasses.replace(
    benchmarks["math500"], file=tiny.held_out
  )
  more = settings(**named, benchmarks=benchmarks)
  with open_run(more, str(tmp_path / "other"), str(workdir)) as run:
    assert [b.name for b in run.task.benchmarks] == ["math500"]
  with open_run(more, str(workdir)) as run:
    assert [b.name for b in run.task.benchmarks] == ["math500"]
  (workdir / "rl").mkdir()
  message = r"contents\.benchmarks\.math500\.file: was .*, is now absent"
  with (
    pytest.raises(WorkdirError, match=message),
    open_run(made, str(workdir)),
  ):
    pass


def test_the_response_prefix_is_in_the_policys_prompt_only(tmp_path):
  made = settings(response_prefix="Step 1:")
  with open_run(made, str(tmp_path / "run")) as run:
    problems = run.task.train[:1]
    prompts = run.batches.encode_prompts(problems)
    ids = prompts.tokens[0][prompts.mask[0]].tolist()
    text = run.task.tokenizer.decode(ids)
    assert text.endswith("assistant\nStep 1:")
    prm_prompts = run.batches.prm_prompt_encoder.encode(problems)
    ids = prm_prompts.tokens[0][prm_prompts.mask[0]].tolist()
    assert run.task.tokenizer.decode(ids) == problems[0].problem


def test_answers_are_graded_also_by_withheld_references(task):
  problem = task.train[0]
  right = problem.answer or problem.withheld_answer
  unknown = dataclasses.replace(problem, answer=None, withheld_answer=None)
  texts = [
    ["So.", f"It is $\\boxed{{{right}}}$."],
    ["\\boxed{1000}"],
    ["\\boxed{1000}"],
  ]
  verdicts = task.grade([problem, problem, unknown], texts)
  assert verdicts.correct.tolist() == [True, False, False]
  assert verdicts.metrics["grader_timed_out"] == 0


def test_verdicts_count_why_grading_did_not_finish(task, monkeypatch):
  """A timeout, a crash and a missing answer are not the same as wrong."""
  verdicts = [
    Verdict(correct=False, answer="9^9", timed_out=True),
    Verdict(correct=False, answer="3"),
    Verdict(correct=False, answer=None),
    Verdict(correct=False, answer="1/0", failure="ZeroDivisionError"),
    Verdict(correct=True, answer="2"),
  ]
  monkeypatch.setattr(files_task.verify, "grade", lambda *unused: verdicts)
  problem = Problem("a", "x", "1+1?", answer="2")
  unknown = dataclasses.replace(problem, answer=None)
  graded = task.grade([problem] * 4 + [unknown, problem], [["So."]] * 6)
  assert graded.correct.tolist() == [False] * 5 + [True]
  assert {k: v.tolist().index(True) for k, v in graded.unfinished.items()} == {
    "grader_timed_out": 0,
    "grader_no_answer": 2,
    "grader_crashed": 3,
  }
  assert graded.metrics == dict.fromkeys(graded.unfinished, 1.0)


@pytest.mark.parametrize(
  ("mode", "fraction", "expected"),
  [
    ("prm", None, [False, False, False]),
    ("prm+vr", None, [True, False, False]),
    ("prm+vr", 1.0, [True, True, False]),
    ("vr", None, [True, True, False]),
  ],
)
def test_answers_that_an_update_may_use(mode, fraction, expected):
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
  usable = [answers.may_reward(problem, rl) for problem in problems]
  assert usable == expected


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prompt_tokens": 4}, "have room for none of the 48 problems"),
    ({"labelled_format": "math500"}, "needs LabelledSolution"),
    ({"response_tokens": 2}, r"have room for none of .*\d+ solution too long"),
    ({"labelled_one_in": 100_000}, "0 held out"),
  ],
)
def test_data_that_cannot_be_used_raises(folder, task, changes, message):
  """`task` has written the tiny files into the folder."""
  with (
    pytest.raises(ConfigError, match=message),
    contextlib.closing(FilesTask(settings(**changes), folder)) as opened,
  ):
    opened.labelled(None, None, None)


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
    ({"grader.seconds": 0.0}, "seconds must be between"),
    ({"grader.seconds": 1e9}, "seconds must be .* and 3600"),
  ],
)
def test_invalid_settings_raise(changes, message):
  config = files.get_config()
  config.files.random_model = "tied"
  config.files.update_from_flattened_dict(changes)
  with pytest.raises(ConfigError, match=rf"config\.files.*: .*{message}"):
    conversion.settings_from_config(config)


def test_an_invalid_setting_on_the_command_line_opens_no_run(tmp_path):
  options = (
    "--config.files.random_model=tied",
    "--config.files.train_format=gsm9k",
  )
  with (
    parsed("files.py", tmp_path / "run", *options),
    pytest.raises(ConfigError, match="train_format must be one of"),
  ):
    train_pure.main([])
  assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def prm_run(tmp_path_factory):
  """An open run, weights of an untrained PRM, labelled responses, layout."""
  made = dataclasses.replace(settings(), progress=False)
  with open_run(made, str(tmp_path_factory.mktemp("prm") / "run")) as run:
    layout = run.spec.layouts.training
    params = initial_params(prm.declare_prm(run.spec.prm_model))
    yield run, params, run.task.labelled(run.spec, run.batches, None), layout


def keeping_states(run, folder="states"):
  settings = run.spec.settings
  kept = dataclasses.replace(settings.prm, trunk_states=str(folder))
  settings = dataclasses.replace(settings, prm=kept)
  spec = dataclasses.replace(run.spec, settings=settings)
  return dataclasses.replace(run, spec=spec)


def test_updates_learn_the_same_if_states_are_kept(prm_run, tmp_path):
  """Of the head from states, of all weights from rows without padding."""
  run, params, labelled, layout = prm_run
  model = run.spec.prm_model
  for stage in ("prm_head", "prm_full"):
    head_only = stage == "prm_head"
    trained, frozen = supervised.split_prm_params(params, head_only)
    declared, _ = supervised.split_prm_params(prm.declare_prm(model), head_only)
    optimizer = make_optimizer(run.spec.settings.prm.head_optim, declared)
    plain = train_prm.make_updates(
      run, stage, model, optimizer, frozen, labelled
    )
    kept = keeping_states(run, tmp_path)
    if head_only:
      other = train_prm.make_head_updates(kept, optimizer, frozen, labelled)
    else:
      other = train_prm.make_updates(
        kept, stage, model, optimizer, frozen, labelled
      )
    results = []
    for make_batch, update in (plain, other):
      state = train.start_state(trained, declared, optimizer, layout)
      for first in (0, 5):
        state, metrics = update(state, make_batch(np.arange(first, first + 8)))
      results.append(metrics)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
      np.testing.assert_allclose(
        results[1][name], value, rtol=1e-4, err_msg=f"{stage} {name}"
      )


def test_a_finished_head_needs_no_states(prm_run, monkeypatch):
  """A run that continues in the second stage does not wait for them."""
  run, params, labelled, _ = prm_run
  run = keeping_states(run)
  calls = []
  monkeypatch.setattr(
    train_prm.trunk_states, "load_or_compute", lambda *args: calls.append(1)
  )
  _, trunk = supervised.split_prm_params(params, head_only=True)
  head, _ = supervised.split_prm_params(
    prm.declare_prm(run.spec.prm_model), head_only=True
  )
  optimizer = make_optimizer(run.spec.settings.prm.head_optim, head)
  train_prm.make_head_updates(run, optimizer, trunk, labelled)
  assert calls == [1]
  steps = run.spec.settings.prm.head_steps
  last = loop.stage_folder(run, "prm_head") / str(steps)
  last.mkdir(parents=True)
  train_prm.make_head_updates(run, optimizer, trunk, labelled)
  assert calls == [1]
