"""The loop of a supervised stage: where it stops, and what it saves."""

import json
import signal
import types

import jax
import jax.numpy as jnp
import lost_signals
import numpy as np
import optax
import pytest

from pure_jax.host.checkpoints import integrity
from pure_jax.host.checkpoints.checkpointer import CheckpointError, Checkpoints
from pure_jax.host.data.batches import Cursor, next_batch
from pure_jax.host.distributed import preemption
from pure_jax.host.logs.metrics import MetricsWriter
from pure_jax.runs import loop, workdir
from pure_jax.runs.folder import RunFolder
from pure_jax.training import train

LOG_EVERY = 3
STAGE = "prm_head"


def start():
  params = {"w": jnp.zeros(2), "seen": jnp.zeros(4)}
  return train.new_state(params, optax.sgd(1.0))


def run_stage(
  folder, losses, max_skipped=5, before=lambda step: None, state=None
):
  """A stage whose step t adds losses[t - 1]; NaN is skipped.

  Step t also adds 2^t to each of the four examples that it sees.
  """
  settings = types.SimpleNamespace(
    seed=0,
    progress=False,
    rl=types.SimpleNamespace(max_skipped_updates=max_skipped),
  )
  workdir.prepare_workdir(folder, {"seed": 0})

  def make_batch(indices):
    assert len(indices) == 2
    return {"rows": jnp.asarray(indices, jnp.int32)}

  def update(state, batch):
    step = int(state.step)
    before(step + 1)
    loss = jnp.float32(losses[step])
    seen = jnp.zeros(4).at[batch["rows"]].add(2.0 ** (step + 1))
    grads = {"w": jnp.full(2, -loss), "seen": -seen}
    state, metrics = train.apply_gradients(state, grads, loss, optax.sgd(1.0))
    return state, metrics | {"loss": loss}

  with MetricsWriter(folder) as metrics:
    run = types.SimpleNamespace(
      spec=types.SimpleNamespace(settings=settings),
      folder=RunFolder(folder, folder, metrics, None, None, None),
      shows_progress=False,
    )
    stage = loop.SupervisedStage(
      name=STAGE,
      num_steps=len(losses),
      log_every=LOG_EVERY,
      num_examples=4,
      batch_size=2,
      tokens_per_example=1.0,
      make_batch=make_batch,
      update=update,
    )
    return loop.run_stage(run, stage, start() if state is None else state)


def logged(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [(row["step"], row["loss"]) for row in rows]


def saved(folder):
  checkpoints = folder / "prm" / f"checkpoints_{STAGE}"
  return sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())


NAN = float("nan")


def test_a_stage_stops_at_the_update_that_is_one_too_many(tmp_path):
  """Not at the next row of metrics, which may be far."""
  losses = [1, 1, 1, NAN, NAN, NAN, NAN, NAN, 1, 1, 1, 1]
  with pytest.raises(FloatingPointError, match=f"{STAGE}, step 8: 5 updates"):
    run_stage(tmp_path, losses)
  assert [step for step, _ in logged(tmp_path)] == [3, 6]
  assert saved(tmp_path) == [3, 6, 8]
  with Checkpoints(tmp_path / "prm" / f"checkpoints_{STAGE}") as checkpoints:
    state = checkpoints.restore_latest(start()).state
  assert state.params["w"].tolist() == [3, 3]
  assert (int(state.skipped), int(state.step)) == (5, 8)
  # The batch of that update is saved, to be read without pickle.
  with np.load(tmp_path / "nonfinite" / f"{STAGE}_8.npz") as batch:
    assert batch["rows"].shape == (2,)
    facts = json.loads(str(batch["facts"]))
  assert facts["step"] == 8 and facts["rows"] == batch_rows(8)
  # The same command continues with the next batch.
  state = run_stage(tmp_path, losses)
  assert state.params["w"].tolist() == [7, 7]
  assert saved(tmp_path) == [9, 12]


def batch_rows(step):
  """The examples of a step, counted out by hand from the order of epochs."""
  orders = [
    next_batch(4, 4, Cursor(0, epoch=epoch))[0] for epoch in range(step)
  ]
  return np.concatenate(orders)[2 * (step - 1) : 2 * step].tolist()


def test_a_stage_without_any_update_stops_however_short_it_is(tmp_path):
  """The next stage would start from its weights."""
  for _ in range(2):  # Started again, it has no update left and still fails.
    with pytest.raises(FloatingPointError, match="step 2: 2 updates in a row"):
      run_stage(tmp_path, [NAN, NAN])


@pytest.mark.parametrize(
  ("updates", "skipped", "stops"),
  [
    ({"": 4}, {"": 3}, False),
    ({"": 4}, {"": 4}, True),
    ({"": 12}, {"": 4}, False),
    ({"": 12}, {"": 5}, True),
    # Each of two states has its own number: the warm-up counts for one.
    ({"": 2, "critic_": 6}, {"": 2, "critic_": 0}, True),
    ({"": 2, "critic_": 6}, {"": 1, "critic_": 4}, False),
    ({"": 2, "critic_": 6}, {"critic_": 4}, False),
    ({"": 2, "critic_": 6}, {"critic_": 5}, True),
  ],
)
def test_a_run_stops_when_as_many_updates_as_it_has_were_skipped(
  updates, skipped, stops
):
  """Those of the policy, or of its critic, in one iteration or in several."""
  rl = types.SimpleNamespace(max_skipped_updates=5)
  settings = types.SimpleNamespace(rl=rl)
  run = types.SimpleNamespace(spec=types.SimpleNamespace(settings=settings))
  stop = loop.StopConditions(run, "rl", 6, None, *updates.values())
  metrics = {f"{n}skipped_in_a_row": np.int32(x) for n, x in skipped.items()}
  request = types.SimpleNamespace(requested=lambda: False)
  reason = stop.reason(metrics, request)
  assert reason is (loop.StopReason.SKIPPED_UPDATES if stops else None)


@pytest.mark.parametrize("leaf", ["w", "seen"])
def test_a_stage_does_not_start_from_weights_that_are_not_finite(
  tmp_path, leaf
):
  """Every update would be skipped; the message names the weight."""
  state = start()
  state.params[leaf] = state.params[leaf].at[1].set(NAN)
  with pytest.raises((FloatingPointError, CheckpointError)) as error:
    run_stage(tmp_path, [1], state=state)
  said = f"not trained from a state that is not finite: params.{leaf}. "
  assert said in str(error.value)
  assert saved(tmp_path) == [] == logged(tmp_path)


def test_a_few_skipped_updates_do_not_stop_a_stage(tmp_path):
  state = run_stage(tmp_path, [NAN] * 4 + [1] + [NAN] * 4)
  assert state.params["w"].tolist() == [1, 1]
  assert [step for step, _ in logged(tmp_path)] == [3, 6, 9]
  assert saved(tmp_path) == [6, 9]


def stopped(folder, losses, at):
  """Runs the stage and sends SIGTERM during one of its steps."""

  def send(step):
    if step == at:
      signal.raise_signal(signal.SIGTERM)

  before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
  try:
    with preemption.raise_on_sigterm():
      run_stage(folder, losses, before=send)
  finally:
    signal.signal(signal.SIGTERM, before)


SEVEN = [1, 2, 4, 8, 16, 32, 64]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted stage of seven updates: (its folder, its state)."""
  folder = tmp_path_factory.mktemp("whole")
  return folder, run_stage(folder, SEVEN)


@pytest.mark.parametrize("at", [1, 2, 3, 6, 7])
def test_sigterm_saves_the_current_step_and_the_stage_resumes_exactly(
  whole, tmp_path, at
):
  """At steps that are saved anyway, at others, at the first and the last."""
  losses, folder = SEVEN, tmp_path
  with pytest.raises(preemption.Preempted) as stop:
    stopped(folder, losses, at)
  assert f"after step {at} of {STAGE}" in str(stop.value)
  assert saved(folder)[-1] == at
  state = run_stage(folder, losses)
  jax.tree.map(np.testing.assert_array_equal, state, whole[1])
  assert logged(folder) == logged(whole[0])
  assert saved(folder) == saved(whole[0]) == [6, 7]


@pytest.mark.parametrize("where", ["step", "save"])
@pytest.mark.parametrize("lose", lost_signals.WAYS)
def test_ctrl_c_ends_the_stage_after_its_step_and_it_resumes_exactly(
  whole, tmp_path, monkeypatch, lose, where
):
  """Where Python or a library does not let KeyboardInterrupt through."""
  steps, save = [], Checkpoints.save

  def count(step):
    steps.append(step)
    if where == "step" and step == 5:
      lose(signal.SIGINT)

  def interrupted_save(checkpoints, step, *arguments, **keywords):
    if where == "save" and step == 6:
      lose(signal.SIGINT)
    return save(checkpoints, step, *arguments, **keywords)

  monkeypatch.setattr(Checkpoints, "save", interrupted_save)
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with (
      pytest.raises(KeyboardInterrupt),
      preemption.raise_on_ctrl_c(),
      preemption.raise_on_sigterm(),
    ):
      run_stage(tmp_path, SEVEN, before=count)
  finally:
    signal.signal(signal.SIGINT, before)
  assert steps[-1] == {"step": 5, "save": 6}[where]
  monkeypatch.undo()
  state = run_stage(tmp_path, SEVEN)
  jax.tree.map(np.testing.assert_array_equal, state, whole[1])
  assert logged(tmp_path) == logged(whole[0])
  assert saved(tmp_path) == saved(whole[0])


def test_checkpoints_of_stops_do_not_replace_regular_ones(tmp_path):
  """Of two stops between steps 3 and 6, the newest stays, and step 3."""
  for at in (4, 5):
    with pytest.raises(preemption.Preempted):
      stopped(tmp_path, [1] * 7, at)
  assert saved(tmp_path) == [3, 5]


def test_a_stop_that_could_not_be_saved_is_an_error(tmp_path, monkeypatch):
  """Status 75 promises that the run can be continued."""

  def fail(folder, **unused):
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(integrity, "write_checksums", fail)
  with pytest.raises(CheckpointError, match="Input/output error"):
    stopped(tmp_path, [1] * 7, 2)
