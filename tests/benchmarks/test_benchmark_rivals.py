"""Peers of the benchmark: real ones, in the environment of the tests."""

import dataclasses
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest

from pure_jax.advantages import pure_advantages
from pure_jax.models import policy
from pure_jax.training.score import Scores

pytest.importorskip("torch", reason="torch comes with [test]")


from benchmarks import (
  batches,
  document,
  environments,
  generating,
  iterating,
  report,
  rloo,
  table,
  updating,
)
from benchmarks.cases import MODELS, BenchmarkError, Case
from benchmarks.credit import draw_experience
from benchmarks.environments import Peer
from benchmarks.gradients import credit_settings
from benchmarks.iteration import Iterated
from benchmarks.programs import Compiled, Options, init_policy
from benchmarks.rivals import RIVALS, running
from benchmarks.suites import SUITES
from benchmarks.timing import Arm

EARLY = Case("rollout", "tiny", 4, 2, 8, 6, "early")


def here(name: str, suite: str) -> Peer:
  """A peer in the environment of the tests."""
  return Peer(name, sys.executable, environments.SCRIPTS[name][suite])


@pytest.fixture(scope="module")
def transformers():
  with here("transformers", "rollout") as peer:
    yield peer


@pytest.fixture(scope="module")
def made():
  """As --make_peers makes them: gigabytes, which pytest would keep."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for peer in ("tunix", "transformers", "trl", "trl_prm"):
      environments.make_environment(folder, peer)
    yield folder


def test_transformers_draws_as_many_tokens_of_the_same_model(transformers):
  """Rows that went on after ours ended would be slower for no reason."""
  rival = generating.Generating(transformers)
  result = report.measure(EARLY, Options(), 1, 16, [rival])
  assert [line.name for line in result.lines] == [
    "generate", "engine", "prefill", "transformers"
  ]  # fmt: skip
  ours = SUITES["rollout"](EARLY, Options())["generate"]
  assert len(set(ours.answer.tolist())) > 1
  tokens = np.array(transformers.ask("answer")["tokens"])
  np.testing.assert_array_equal((tokens != 0).sum(axis=1), ours.answer)
  arms = document.case_as_json(result)["arms"]
  theirs = arms["transformers"]
  assert theirs["greedy_tokens_equal"] == 1.0
  assert theirs["tokens"] == arms["generate"]["tokens"] == ours.answer.sum()
  assert theirs["bound_seconds"] == arms["generate"]["bound_seconds"]
  assert theirs["versions"].keys() == {"python", "torch", "transformers"}
  assert theirs["peak_bytes"] > 10**7
  ratio = theirs["median_seconds"] / arms["generate"]["median_seconds"]
  assert report.beside(result)["transformers / ours"] == ratio
  assert "early transformers " in table.as_text(result)


@pytest.mark.slow
@pytest.mark.parametrize("attention_bias", [True, False])
def test_tunix_draws_the_same_tokens(made, monkeypatch, attention_bias):
  """Of a Qwen2 and of a Llama, which it has two models for."""
  model = dataclasses.replace(MODELS["tiny"], attention_bias=attention_bias)
  monkeypatch.setitem(MODELS, "tiny", model)
  never = dataclasses.replace(EARLY, stops="never")
  names = ["tunix", "transformers"]
  with running("rollout", names, made) as rivals:
    found = [
      report.measure(case, Options(), 1, 16, rivals) for case in (never, EARLY)
    ]
  for result in found:
    ours, _, _, *theirs = result.lines
    assert [line.name for line in theirs] == names
    for line in theirs:
      assert line.facts["greedy_tokens_equal"] == 1.0
      assert line.times.work == ours.times.work
  assert found[0].lines[0].times.work == 4 * 6 > found[1].lines[0].times.work


@pytest.mark.slow
def test_trl_takes_the_same_step(made, monkeypatch):
  """In two micro-batches; half the loss would be half the gradient."""
  # Few ids would make much of the one that only we give no probability.
  model = dataclasses.replace(MODELS["tiny"], vocab_size=4096)
  monkeypatch.setitem(MODELS, "tiny", model)
  case, options = Case("update", "tiny", 4, 2, 8, 6), Options(rows_at_a_time=2)
  with running("update", ["trl"], made) as rivals:
    result = report.measure(case, options, 1, 16, rivals)
    ours = SUITES["update"](case, options)["update"]
    halved = dataclasses.replace(ours, answer=ours.answer / 2)
    with pytest.raises(BenchmarkError, match="the steps are not the same"):
      rivals[0].arm(case, options, halved)
  assert [line.name for line in result.lines] == ["update", "trl"]
  assert result.lines[1].facts["versions"]["trl"]


@pytest.mark.slow
def test_trl_takes_the_step_of_rloo(made, monkeypatch):
  """In two micro-batches, which its trainer leaves to the loop to divide by:
  summed, they would be twice the loss."""
  case, options = Case("update", "tiny", 4, 2, 8, 6), Options(rows_at_a_time=2)
  given = rloo.draw_rloo(case, options)
  assert given.answer[0] == pytest.approx(
    -np.mean(given.advantages * np.exp(0.1 * np.sign(given.advantages)))
  )
  with running("update", ["trl_rloo"], made) as rivals:
    result = report.measure(case, options, 1, 16, rivals)
    ours = SUITES["update"](case, options)["update"]
    other = dataclasses.replace(given, advantages=-given.advantages)
    monkeypatch.setattr(updating, "draw_rloo", lambda case, options: other)
    with pytest.raises(BenchmarkError, match="the steps are not the same"):
      rivals[0].arm(case, options, ours)
  assert [line.name for line in result.lines] == ["update", "trl_rloo"]
  assert result.lines[1].facts["largest_relative_difference"] < 1e-3


def test_the_gradient_of_rloo_by_hand():
  """Of -mean(advantage x log-prob) scaled by each ratio, in one part or two."""
  case = Case("update", "tiny", 4, 2, 8, 6)
  whole, halves = (
    rloo.draw_rloo(case, Options(rows_at_a_time=rows)) for rows in (4, 2)
  )
  np.testing.assert_allclose(whole.answer, halves.answer, rtol=1e-5)
  np.testing.assert_allclose(whole.old_logp, halves.old_logp, rtol=1e-6)
  # Two samples: each is held to the other.
  np.testing.assert_allclose(
    whole.advantages[::2], -whole.advantages[1::2], rtol=1e-6
  )
  model = MODELS["tiny"]
  drawn = batches.draw_rollout(
    case, batches.draw_prompts(case, model.vocab_size), model.vocab_size
  )
  weights = whole.advantages * np.exp(0.1 * np.sign(whole.advantages))

  def weighted(params):
    logp, _ = policy.token_logp(
      params, model, drawn.prompt_tokens, drawn.prompt_mask, drawn.tokens,
      drawn.completion_mask,
    )  # fmt: skip
    return -jax.numpy.mean(weights * logp.sum(axis=1))

  grads = jax.grad(weighted)(init_policy("tiny", Options()))
  norm = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(grads)))
  assert whole.answer[1] == pytest.approx(norm, rel=1e-4)


@pytest.mark.slow
def test_trl_trains_the_same_prm(made):
  """A label beside its score token would be another loss."""
  case = Case("prm", "tiny", 4, 2, 8, 60)
  with running("prm", ["trl_prm"], made) as rivals:
    result = report.measure(case, Options(), 1, 16, rivals)
    ours = SUITES["prm"](case, Options())["prm"]
    other = dataclasses.replace(ours, answer=ours.answer * [1.0, 1.01])
    with pytest.raises(BenchmarkError, match="the steps are not the same"):
      rivals[0].arm(case, Options(), other)
  assert [line.name for line in result.lines] == ["prm", "trl_prm"]
  assert result.lines[1].facts["largest_relative_difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stops", ["never", "early"])
def test_trl_does_the_same_iteration(made, monkeypatch, stops):
  """In two micro-batches, responses of more steps than are kept apart."""
  model = dataclasses.replace(MODELS["tiny"], vocab_size=4096)
  monkeypatch.setitem(MODELS, "tiny", model)
  case = Case("iteration", "tiny", 4, 2, 8, 400, stops)
  options = Options(rows_at_a_time=2)
  with running("iteration", ["trl"], made) as rivals:
    result = report.measure(case, options, 1, 16, rivals)
    ours = SUITES["iteration"](case, options)["iteration"]
    assert (ours.answer.scores.steps.overflow > 0).any()
    scores = ours.answer.scores
    other = scores.replace(step_rewards=-scores.step_rewards)
    answer = dataclasses.replace(ours.answer, scores=other)
    with pytest.raises(BenchmarkError, match="iterations are not the same"):
      rivals[0].arm(case, options, dataclasses.replace(ours, answer=answer))
  ours, theirs = result.lines
  assert (ours.name, theirs.name) == ("iteration", "trl")
  assert theirs.times.work == ours.times.work
  assert max(theirs.facts["largest_differences"].values()) < 1e-3


def test_iterations_are_compared_by_their_largest_difference():
  """Columns of steps that no response has are not compared as missing."""
  logp, rewards = np.zeros((2, 3)), np.array([[0.5, 0.0, 0.0], [0.1, 0.2, 0.0]])
  scores = Scores(None, rewards, logp, logp - 1)
  ours = Iterated(np.array([3, 3]), np.zeros(2), scores, 1.0, 2.0)
  found = {
    "old_logp": (logp + 0.25).tolist(),
    "ref_logp": (logp - 1).tolist(),
    "step_rewards": [[0.5, 0.0], [0.1, -0.2]],
    "loss": 1.5,
    "grad_norm": 1.0,
  }
  assert iterating.largest_differences(found, ours) == {
    "old_logp": 0.25,
    "ref_logp": 0.0,
    "step_rewards": 0.4,
    "loss": 0.5,
    "grad_norm": 0.5,
  }


def test_another_model_is_no_peer(transformers, monkeypatch):
  """One layer that is left out, as a wrong conversion might."""

  def without_a_layer(name, options, copied=False):
    params = init_policy(name, options, copied)
    if not copied:  # What is exported.
      layers = dict(params["layers"])
      layers["down"] = layers["down"].at[0].set(0.0)
      params = {**params, "layers": layers}
    return params

  ours = SUITES["rollout"](EARLY, Options())["generate"]
  monkeypatch.setattr(environments, "init_policy", without_a_layer)
  rival = generating.Generating(transformers)
  with pytest.raises(BenchmarkError, match="greedy tokens differ"):
    rival.arm(EARLY, Options(), ours)


def test_the_torch_loop_gives_the_same_advantages():
  """With the sum of rewards in place of their softmin it must not."""
  case = Case("credit", "tiny", 8, 4, 8, 60)
  batch = draw_experience(case, MODELS["tiny"].vocab_size)
  assert batch.steps.mask.sum() > 16  # Responses of several steps.
  arm = Arm(lambda: 1.0, 8 * 60)

  def held_to(form):
    settings = dataclasses.replace(credit_settings(case), form=form)
    found, _ = jax.jit(pure_advantages, static_argnums=1)(batch, settings)
    return Compiled(arm, (), None, found)

  with here("torch_credit", "credit") as peer:
    rival = updating.TorchCredit(peer)
    theirs = rival.arm(case, Options(), held_to("softmin"))
    assert theirs.seconds() > 0
    assert rival.facts()["largest_difference"] < 1e-5
    assert rival.facts()["versions"].keys() == {"python", "torch"}
    with pytest.raises(BenchmarkError, match="advantages differ"):
      rival.arm(case, Options(), held_to("sum"))


def test_a_peer_that_dies_says_why():
  with here("transformers", "rollout") as peer:
    with pytest.raises(
      BenchmarkError, match="died at 'nothing': AttributeError"
    ):
      peer.ask("nothing")
    with pytest.raises(BenchmarkError, match="died at 'run'"):
      peer.ask("run")
    process = peer._process
  assert process.poll() is not None


def test_every_peer_has_an_environment():
  assert RIVALS.keys() == environments.SCRIPTS.keys()
  for name, scripts in environments.SCRIPTS.items():
    assert scripts.keys() == RIVALS[name].keys()
    for script in scripts.values():
      assert (environments.FOLDER / script).exists()
    shared = environments.SHARED.get(name, name)
    assert (environments.FOLDER / f"{shared}.txt").exists()
    python = environments.python_of(pathlib.Path("there"), name)
    assert python == pathlib.Path("there") / shared / "bin" / "python"


@pytest.mark.parametrize(
  ("name", "folder", "message"),
  [
    ("tensors", "there", "--peer: 'tensors' must be one of transformers"),
    ("transformers", None, "--peer needs --peers"),
    ("transformers", "there", "benchmark.py --make_peers=FOLDER"),
  ],
)
def test_a_peer_that_is_not_there_is_named(tmp_path, name, folder, message):
  folder = folder and tmp_path / folder
  with (
    pytest.raises(BenchmarkError, match=message),
    running("rollout", [name], folder),
  ):
    pass
