"""Peers of the benchmark: real ones, in the environment of the tests."""

import dataclasses
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest

from pure_jax.advantages import pure_advantages

pytest.importorskip("torch", reason="torch comes with [test]")

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

from benchmarks import (  # noqa: E402
  environments,
  generating,
  report,
  updating,
)
from benchmarks.cases import MODELS, BenchmarkError, Case  # noqa: E402
from benchmarks.environments import Peer  # noqa: E402
from benchmarks.programs import Compiled, Options, init_policy  # noqa: E402
from benchmarks.rivals import RIVALS, running  # noqa: E402
from benchmarks.suites import (  # noqa: E402
  SUITES,
  credit_settings,
  draw_experience,
)
from benchmarks.timing import Arm  # noqa: E402

EARLY = Case("rollout", "tiny", 4, 2, 8, 6, "early")


@pytest.fixture(scope="module")
def transformers():
  with Peer("transformers", sys.executable) as peer:
    yield peer


@pytest.fixture(scope="module")
def made():
  """As --make_peers makes them: gigabytes, which pytest would keep."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for peer in ("tunix", "transformers", "trl"):
      environments.make_environment(folder, peer)
    yield folder


def test_transformers_draws_as_many_tokens_of_the_same_model(transformers):
  """Rows that went on after ours ended would be slower for no reason."""
  rival = generating.Generating(transformers)
  result = report.measure(EARLY, Options(), 1, 16, [rival])
  assert [line.name for line in result.lines] == ["generate", "transformers"]
  ours = SUITES["rollout"](EARLY, Options())["generate"]
  assert len(set(ours.answer.tolist())) > 1
  tokens = np.array(transformers.ask("answer")["tokens"])
  np.testing.assert_array_equal((tokens != 0).sum(axis=1), ours.answer)
  arms = report.as_json([result], {}, {})["cases"][0]["arms"]
  theirs = arms["transformers"]
  assert theirs["greedy_tokens_equal"] == 1.0
  assert theirs["tokens"] == arms["generate"]["tokens"] == ours.answer.sum()
  assert theirs["bound_seconds"] == arms["generate"]["bound_seconds"]
  assert theirs["versions"].keys() == {"python", "torch", "transformers"}
  assert theirs["peak_bytes"] > 10**7
  ratio = theirs["median_seconds"] / arms["generate"]["median_seconds"]
  assert report.beside(result) == {"transformers / ours": ratio}
  assert "early transformers " in report.as_text(result)


@pytest.mark.slow
@pytest.mark.parametrize("attention_bias", [True, False])
def test_tunix_draws_the_same_tokens(made, monkeypatch, attention_bias):
  """Of a Qwen2 and of a Llama, which it has two models for."""
  model = dataclasses.replace(MODELS["tiny"], attention_bias=attention_bias)
  monkeypatch.setitem(MODELS, "tiny", model)
  never = dataclasses.replace(EARLY, stops="never")
  names = ["tunix", "transformers"]
  with running(names, made) as rivals:
    assert [rival.takes(EARLY) for rival in rivals] == [False, True]
    result = report.measure(never, Options(), 1, 16, rivals)
  assert [line.name for line in result.lines] == ["generate", *names]
  for line in result.lines[1:]:
    assert line.facts["greedy_tokens_equal"] == 1.0
    assert line.times.work == 4 * 6


@pytest.mark.slow
def test_trl_takes_the_same_step(made, monkeypatch):
  """In two micro-batches; half the loss would be half the gradient."""
  # Few ids would make much of the one that only we give no probability.
  model = dataclasses.replace(MODELS["tiny"], vocab_size=4096)
  monkeypatch.setitem(MODELS, "tiny", model)
  case, options = Case("update", "tiny", 4, 2, 8, 6), Options(rows_at_a_time=2)
  with running(["trl"], made) as rivals:
    result = report.measure(case, options, 1, 16, rivals)
    ours = SUITES["update"](case, options)["update"]
    halved = dataclasses.replace(ours, answer=ours.answer / 2)
    with pytest.raises(BenchmarkError, match="the steps are not the same"):
      rivals[0].arm(case, options, halved)
  assert [line.name for line in result.lines] == ["update", "trl"]
  assert result.lines[1].facts["versions"]["trl"]


def test_another_model_is_no_peer(transformers, monkeypatch):
  """One layer that is left out, as a wrong conversion might."""

  def without_a_layer(model, copied=False):
    params = init_policy(model, copied)
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

  with Peer("torch_credit", sys.executable) as peer:
    rival = updating.TorchCredit(peer)
    theirs = rival.arm(case, Options(), held_to("softmin"))
    assert theirs.seconds() > 0
    assert rival.facts()["largest_difference"] < 1e-5
    assert rival.facts()["versions"].keys() == {"python", "torch"}
    with pytest.raises(BenchmarkError, match="advantages differ"):
      rival.arm(case, Options(), held_to("sum"))


def test_a_peer_that_dies_says_why():
  with Peer("transformers", sys.executable) as peer:
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
  for name, script in environments.SCRIPTS.items():
    assert (environments.FOLDER / script).exists()
    assert (environments.FOLDER / f"{name}.txt").exists()


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
    running([name], folder),
  ):
    pass
