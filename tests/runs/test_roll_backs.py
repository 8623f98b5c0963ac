"""Alarms in a run, and rolling back: records, files, settings, keys."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from configs import arithmetic
from overrides import with_changes

from pure_jax.host.evaluation.alarms import AlarmError
from pure_jax.runs.folder import LOG_FILES
from pure_jax.runs.planning.planned_spec import read_spec
from pure_jax.runs.rl import roll_backs
from pure_jax.runs.rl.alarms import Alarm, AlarmWatch
from pure_jax.runs.rl.roll_backs import RollBack
from pure_jax.runs.settings.alarms import RollBackSettings
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config
from pure_jax.runs.settings.roll_backs import after_roll_backs
from pure_jax.runs.spec import RandomStream
from pure_jax.runs.workdir import WorkdirError

RUNNING = types.SimpleNamespace(requested=lambda: False)
ALARM = Alarm("divergence", 30, "it rose", "roll_back")


def settings_of(**changes):
  config = with_changes(arithmetic.get_config("smoke"), **changes)
  return settings_from_config(config).for_platform("cpu")


@dataclasses.dataclass(frozen=True)
class StubRun:
  """What roll-backs and alarms read of a run."""

  folder: types.SimpleNamespace
  spec: types.SimpleNamespace
  told: list

  def tell(self, message):
    self.told.append(message)


@dataclasses.dataclass(frozen=True)
class StubSpec:
  """What they read of its specification."""

  settings: object
  roll_backs: int


def run_in(path, roll_backs=0, **changes):
  (path / "rl").mkdir(exist_ok=True)
  changes = {f"rl__alarms__{name}": value for name, value in changes.items()}
  settings = settings_of(rl__checkpoints_kept=20, **changes)
  folder = types.SimpleNamespace(path=path)
  return StubRun(folder, StubSpec(settings, roll_backs), [])


class StubCheckpoints:
  """Steps in a list, as a process that is killed leaves them."""

  def __init__(self, *steps, dies=False):
    self.left, self.dies, self.folder = list(steps), dies, "FOLDER"
    self.waited = False

  def regular_steps(self):
    return self.left

  def remove_after(self, step):
    if self.dies:
      del self.left[-1:]
      raise KeyboardInterrupt
    self.left = [other for other in self.left if other <= step]

  def wait(self):
    self.waited = True


def logs(path):
  """Writes a row of RL, its evaluation and another stage in each log."""
  for name in LOG_FILES:
    rows = [
      {"stage": stage, "step": step}
      for step in (0, 10, 20, 30)
      for stage in ("sft", "rl", "rl_eval")
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (path / name).write_text("".join(lines))


# ===== Going back =====


@pytest.mark.parametrize(
  ("iterations", "steps", "to"),
  [
    (10, (0, 10, 20, 30), 20),
    (11, (5, 10, 20, 30), 10),
    (0, (10, 20, 30), 30),
    (10, (25, 30), 25),  # None is old enough: the oldest.
    (10, (31,), 0),  # It was saved after the alarm.
    (10, (), 0),
    (30, (10, 20, 30), 0),  # It has had no more iterations.
    (40, (10, 20, 30), 0),
  ],
)
def test_a_run_goes_back_to_the_newest_checkpoint_that_is_old_enough(
  tmp_path, iterations, steps, to
):
  run = run_in(tmp_path, roll_back__iterations=iterations)
  logs(tmp_path)
  checkpoints = StubCheckpoints(*steps)
  roll_backs.begin(run, ALARM, checkpoints, RUNNING)
  changes = dataclasses.asdict(run.spec.settings.rl.alarms.roll_back)
  expected = RollBack("divergence", "it rose", 30, to, changes)
  assert roll_backs.read_record(tmp_path) == [expected]
  assert checkpoints.left == list(steps)  # Nothing is removed yet.
  assert run.told == [
    f"rolls back to iteration {to}, because of alarm divergence"
  ]
  assert roll_backs.finish(run, checkpoints).spec.roll_backs == 1
  assert checkpoints.left == [step for step in steps if step <= to]
  finished = dataclasses.replace(expected, finished=True)
  assert roll_backs.read_record(tmp_path) == [finished]


def test_the_logs_of_undone_iterations_are_kept(tmp_path):
  run, checkpoints = run_in(tmp_path), StubCheckpoints(10, 20, 30)
  logs(tmp_path)
  roll_backs.begin(run, ALARM, checkpoints, RUNNING)
  roll_backs.finish(run, checkpoints)
  undone = tmp_path / roll_backs.UNDONE / "1"
  assert sorted(p.name for p in undone.iterdir()) == sorted(LOG_FILES)
  for name in LOG_FILES:
    rows = [json.loads(line) for line in (undone / name).open()]
    assert rows == [{"stage": stage, "step": 30} for stage in ("rl", "rl_eval")]


def test_a_killed_roll_back_is_finished_and_not_begun_again(tmp_path):
  """In between its logs have been rewound by no one."""
  run = run_in(tmp_path)
  logs(tmp_path)
  dying = StubCheckpoints(10, 20, 30, 40, dies=True)
  roll_backs.begin(run, ALARM, dying, RUNNING)
  with pytest.raises(KeyboardInterrupt):
    roll_backs.finish(run, dying)
  (record,) = roll_backs.read_record(tmp_path)
  assert not record.finished
  checkpoints = StubCheckpoints(*dying.left)
  assert roll_backs.finish(run, checkpoints).spec.roll_backs == 1
  assert checkpoints.left == [10, 20]
  # Newer checkpoints, of the iterations after the roll-back, stay.
  later = StubCheckpoints(10, 20, 30)
  assert roll_backs.finish(run, later).spec.roll_backs == 1
  assert later.left == [10, 20, 30]


def test_a_run_that_never_rolled_back_has_no_record(tmp_path):
  checkpoints, run = StubCheckpoints(10), run_in(tmp_path)
  assert roll_backs.finish(run, checkpoints) is run
  assert not list((tmp_path / "rl").iterdir())


@pytest.mark.parametrize(
  "content",
  [
    *("", "{", "[1]", '[{"alarm": "kl"}]', '{"a": 1}', "null"),
    '[{"alarm": "kl", "reason": "", "step": 3, "to": 2, "changes": {"x": 1}}]',
    '[{"alarm": "kl", "reason": "", "step": 3, "to": 2, "changes":'
    ' {"learning_rate": 2}}]',
  ],
)
def test_a_damaged_record_is_named(tmp_path, content):
  """Without it a run would go on with the settings before."""
  path = tmp_path / roll_backs.RECORD_FILE
  path.parent.mkdir()
  path.write_text(content)
  with pytest.raises(WorkdirError, match=f"{path}.*put it back"):
    roll_backs.read_record(tmp_path)


# ===== What changes =====


def changed(times=1, *, change, **changes):
  """Settings of RL before and after some roll-backs with the same change."""
  settings = settings_of(**changes)
  after = after_roll_backs(settings, [RollBackSettings(**change)] * times)
  return settings.rl, after.rl


def test_changes_apply_again_with_every_time():
  rl, after = changed(3, change={"learning_rate": 0.5, "kl_coef": 2.0})
  assert after.optim.learning_rate == rl.optim.learning_rate / 8
  assert after.loss.kl_coef == 8 * rl.loss.kl_coef
  assert after.credit.kl_coef == 8 * rl.credit.kl_coef
  assert after.answer_fraction == rl.answer_fraction
  others = {"optim": rl.optim, "loss": rl.loss, "credit": rl.credit}
  assert dataclasses.replace(after, **others) == rl


@pytest.mark.parametrize(
  ("mode", "before", "at_least", "expected"),
  [
    ("prm", 0.1, 0.25, ("prm+vr", 0.25)),
    ("prm", 0.5, 0.25, ("prm+vr", 0.25)),  # It used none.
    ("prm+vr", 0.1, 0.25, ("prm+vr", 0.25)),
    ("prm+vr", 0.5, 0.25, ("prm+vr", 0.5)),
    ("prm+vr", None, 0.25, ("prm+vr", None)),  # All answers.
    ("prm", 0.1, None, ("prm", 0.1)),
  ],
)
def test_answers_are_used_for_at_least_a_share_of_the_prompts(
  mode, before, at_least, expected
):
  _, after = changed(
    change={"answer_fraction": at_least},
    rl__credit__process_coef=float("prm" in mode),
    rl__credit__verifiable_coef=float("vr" in mode),
    rl__answer_fraction=before,
  )
  assert (after.reward_mode, after.answer_fraction) == expected


def test_a_run_is_changed_with_its_random_keys(tmp_path):
  """The same rollouts, with half of the learning rate, would diverge again."""
  spec = read_spec(settings_of(), jax.devices()[:1])

  def after(*changes):
    folder = tmp_path / str(len(changes))
    (folder / "rl").mkdir(parents=True)
    records = [
      dataclasses.asdict(RollBack("kl", "", 3, 2, change, finished=True))
      for change in changes
    ]
    (folder / roll_backs.RECORD_FILE).write_text(json.dumps(records))
    run = StubRun(types.SimpleNamespace(path=folder), spec, [])
    return roll_backs.finish(run, StubCheckpoints(2)).spec

  # Each roll-back keeps the changes of its time.
  changes = ({"learning_rate": 0.25}, {"empty_step_reward": -0.5})
  once, twice = after(changes[0]), after(*changes)
  rate = spec.settings.rl.optim.learning_rate
  assert once.settings.rl.optim.learning_rate == rate / 4
  assert twice.settings.rl.optim.learning_rate == rate / 8
  assert once.step.scoring.empty_step_reward is None
  assert twice.step.scoring.empty_step_reward == -0.5

  def key(spec, stream):
    return tuple(np.asarray(jax.random.key_data(spec.key(stream))).tolist())

  for stream in RandomStream:
    keys = {key(each, stream) for each in (spec, once, twice)}
    assert len(keys) == (3 if stream is RandomStream.ROLLOUTS else 1)


# ===== Settings =====


@pytest.mark.parametrize(
  ("kept", "every", "evaluations", "back", "needed"),
  [
    (1, 10, 10, 10, 2),
    (2, 10, 10, 11, 3),
    (2, 10, 5, 10, 3),  # Evaluations save as well.
    (2, 10, 15, 10, 3),
    (3, 4, 4, 10, 4),
    (6, 2, 25, 10, 7),
  ],
)
def test_checkpoints_reach_as_far_as_a_roll_back(
  kept, every, evaluations, back, needed
):
  values = dict(
    rl__checkpoint_every=every,
    rl__eval_every=evaluations,
    rl__alarms={"kl": "roll_back", "roll_back": {"iterations": back}},
  )
  with pytest.raises(ConfigError, match=f"set checkpoints_kept={needed}"):
    settings_of(rl__checkpoints_kept=kept, **values)
  settings_of(rl__checkpoints_kept=needed, **values)
  # However the alarm lies, so many reach a checkpoint that is old enough.
  for step in range(back + 1, 200):
    recent = range(step - back + 1, step + 1)
    saved = sum(not (x % every and x % evaluations) for x in recent)
    assert saved < needed
  values["rl__alarms"]["kl"] = "stop"
  settings_of(rl__checkpoints_kept=kept, **values)


@pytest.mark.parametrize(
  ("change", "changes", "reason"),
  [
    ({"learning_rate": 1e-5, "times": 3}, {}, "cannot be run, at roll-back 3"),
    ({"kl_coef": 1e5}, {}, "cannot be run, at roll-back 2"),
    (
      {"answer_fraction": 0.5},
      {
        "rl__samples_per_prompt": 1,
        "rl__credit__baseline": "none",
        "rl__credit__verifiable_coef": 0.0,
      },
      "cannot be run, at roll-back 1",
    ),
    ({"kl_coef": 2.0}, {"rl__loss__kl_in_loss": None}, "there is none"),
    ({"kl_coef": 2.0}, {"rl__adaptive_kl": {}}, "constant coefficient"),
    (
      {"answer_fraction": 0.5},
      {"rl__answer_fraction": None},
      "answer_fraction.* changes nothing",
    ),
    (
      {"empty_step_reward": -1.0},
      {"rl__credit__process_coef": 0.0},
      "empty_step_reward.* changes nothing",
    ),
    ({"times": 101}, {}, "times"),
    ({"iterations": -1}, {}, "iterations"),
    ({"learning_rate": 1.5}, {}, "learning_rate"),
    ({"kl_coef": 0.5}, {}, "kl_coef"),
    ({"empty_step_reward": 2.0}, {}, "empty_step_reward"),
    ({"answer_fraction": 0.0}, {}, "answer_fraction"),
  ],
)
def test_a_roll_back_that_cannot_be_is_an_error_at_the_start(
  change, changes, reason
):
  """Later its checkpoints would be gone, and no restart would help."""
  alarms = {"kl": "roll_back", "roll_back": change}
  with pytest.raises(ConfigError, match=reason):
    settings_of(rl__checkpoints_kept=20, rl__alarms=alarms, **changes)


# ===== Watching =====

RISING = [0.0, 0.0, 0.0, 0.0, 0.0, 9.0]


def watch(run, path, kl=RISING):
  """A watch that has read all rows but the last one, and that row."""
  rows = [
    {"stage": "rl", "step": step, "kl_reference": value}
    for step, value in enumerate(kl, 1)
  ]
  lines = [json.dumps(row) + "\n" for row in rows[:-1]]
  (path / "metrics.jsonl").write_text("".join(lines))
  return AlarmWatch(run), rows[-1]


def test_an_alarm_tells_by_default(tmp_path):
  watched, row = watch(run_in(tmp_path), tmp_path)
  (alarm,) = watched.check(6, row)
  assert (alarm.name, alarm.step, alarm.action) == ("kl", 6, "tell")
  assert alarm.text == (
    "iteration 6: alarm kl: the KL to the reference is 1.800 nats per token"
  )
  assert watched.stops is watched.rolls_back is None
  watched.raise_if_stopped(StubCheckpoints())


def test_an_alarm_that_is_off_is_silent(tmp_path):
  watched, row = watch(run_in(tmp_path, kl="off"), tmp_path)
  assert watched.check(6, row) == []


def test_a_stop_says_what_to_do_once_the_state_is_saved(tmp_path):
  watched, row = watch(run_in(tmp_path, kl="stop"), tmp_path)
  checkpoints = StubCheckpoints()
  watched.raise_if_stopped(checkpoints)
  watched.check(6, row)
  match = "alarm kl.*saved in FOLDER.*--config.rl.alarms.kl=tell"
  with pytest.raises(AlarmError, match=match):
    watched.raise_if_stopped(checkpoints)
  assert checkpoints.waited
  # The same command goes on: the row that stopped it is in the log.
  again, row = watch(run_in(tmp_path, kl="stop"), tmp_path, [*RISING, 9.0])
  assert again.check(7, row) == []


def test_a_run_is_rolled_back_at_most_n_times(tmp_path):
  for done, action in enumerate(("roll_back", "roll_back", "tell")):
    run = run_in(tmp_path, done, kl="roll_back", roll_back__times=2)
    watched, row = watch(run, tmp_path)
    (alarm,) = watched.check(6, row)
    assert alarm.action == action
    assert (watched.rolls_back is not None) == (action == "roll_back")


def test_a_run_without_rows_has_no_history(tmp_path):
  assert AlarmWatch(run_in(tmp_path)).check(1, {"kl_reference": 9.0}) == []
