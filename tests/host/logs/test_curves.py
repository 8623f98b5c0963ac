"""The curves show the numbers of the run, in the panels of their stages."""

import math

import matplotlib.figure
import matplotlib.image
import pytest

from pure_jax.host.logs.curves import plot_curves
from pure_jax.host.logs.metrics import MetricsWriter


@pytest.fixture
def drawn(monkeypatch):
  """Collects the figures that are saved."""
  figures = []
  save = matplotlib.figure.Figure.savefig

  def savefig(self, *args, **kwargs):
    figures.append(self)
    save(self, *args, **kwargs)

  monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
  return figures


def lines(figure):
  return {
    axis.get_title(): {
      line.get_label(): line.get_xydata().tolist() for line in axis.lines
    }
    for axis in figure.axes
    if axis.get_visible()
  }


def test_draws_known_metrics_by_stage(tmp_path, drawn):
  with MetricsWriter(tmp_path) as writer:
    writer.write("sft", 0, {"loss": 2.0, "rollout_seconds": 9.0})
    writer.write("sft", 5, {"loss": 1.0})
    writer.write("rl", 1, {"accuracy": 0.25, "clip_fraction": 0.0})
    writer.write("rl_eval", 1, {"accuracy": 0.5})
    # A metric that never had a value gets no panel.
    writer.write("rl", 2, {"accuracy": 0.75, "pass_at_n": None})
  titles = plot_curves(tmp_path, tmp_path / "curves.png")
  assert titles == ["sft: loss", "rl: accuracy", "rl: clip_fraction"]
  panels = lines(drawn[0])
  assert panels["sft: loss"] == {"sft": [[0, 2.0], [5, 1.0]]}
  assert panels["rl: accuracy"] == {
    "rl": [[1, 0.25], [2, 0.75]],
    "rl_eval": [[1, 0.5]],
  }
  assert list(panels) == titles
  image = matplotlib.image.imread(tmp_path / "curves.png")
  assert image[..., :3].std() > 0.01  # Something is drawn on it.


def test_marks_are_in_the_panels_of_their_stage(tmp_path, drawn):
  with MetricsWriter(tmp_path) as writer:
    writer.write("sft", 0, {"loss": 2.0})
    writer.write("rl", 1, {"accuracy": 0.25})
  marks = [("rl", 7, "divergence $x$")]
  plot_curves(tmp_path, tmp_path / "curves.png", marks)
  loss, accuracy = drawn[0].axes[:2]
  assert len(loss.lines) == 1 and not loss.texts
  assert accuracy.lines[1].get_xdata() == [7, 7]
  assert [text.get_text() for text in accuracy.texts] == ["divergence $x$"]


def test_a_number_that_is_not_finite_is_a_gap(tmp_path, drawn):
  with MetricsWriter(tmp_path) as writer:
    for step, loss in enumerate([1.0, math.nan, 0.5]):
      writer.write("sft", step, {"loss": loss})
  plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
  values = [y for _, y in lines(drawn[0])["sft: loss"]["sft"]]
  assert values[0] == 1.0
  assert math.isnan(values[1])
  assert values[2] == 0.5


def test_a_number_too_large_to_draw_is_a_gap(tmp_path, drawn):
  with MetricsWriter(tmp_path) as writer:
    for step, loss in enumerate([1e300, 1.7e308, -1.7e308]):
      writer.write("sft", step, {"loss": loss})
  plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
  values = [y for _, y in lines(drawn[0])["sft: loss"]["sft"]]
  assert values[0] == 1e300 and all(map(math.isnan, values[1:]))


def test_nothing_to_draw_draws_nothing(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("")
  assert plot_curves(tmp_path, tmp_path / "curves.png") == []
  assert not (tmp_path / "curves.png").exists()


def test_more_panels_than_columns(tmp_path, drawn):
  names = ("loss", "accuracy", "entropy", "clip_fraction", "grad_norm")
  with MetricsWriter(tmp_path) as writer:
    writer.write("rl", 0, dict.fromkeys(names, 1.0))
  titles = plot_curves(tmp_path, tmp_path / "curves.png")
  assert sorted(titles) == sorted(f"rl: {name}" for name in names)
  assert list(lines(drawn[0])) == titles
