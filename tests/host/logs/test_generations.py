"""Tables of generations: rows, Markdown that no response breaks, rewinding."""

import dataclasses
import json

import pytest

from pure_jax.host.logs.generations import (
  Generation,
  GenerationsWriter,
  render_generations,
)

ROW = Generation(
  benchmark="math500",
  id="test/1",
  problem="What is 3 + 5?",
  reference="8",
  greedy=True,
  steps=["3 + 5 = 8", "It is $\\boxed{8}$."],
  tokens=12,
  truncated=False,
  answer="8",
  correct=True,
  step_rewards=[0.9, -0.25],
)


def write(workdir, steps, first=None):
  with GenerationsWriter(workdir) as writer:
    if first is not None:
      writer.rewind("rl_eval", first)
    for step in steps:
      row = dataclasses.replace(ROW, tokens=step)
      writer.write("rl_eval", step, [row, row])


def contents(workdir):
  return {
    str(path.relative_to(workdir)): path.read_text()
    for path in workdir.rglob("*")
    if path.is_file()
  }


def test_a_table_is_rows_and_a_text(tmp_path):
  write(tmp_path, [0])
  files = contents(tmp_path)
  assert files.keys() == {"generations.jsonl", "generations/rl_eval_000000.md"}
  rows = [json.loads(line) for line in files["generations.jsonl"].splitlines()]
  expected = dataclasses.asdict(dataclasses.replace(ROW, tokens=0))
  assert rows == 2 * [{"stage": "rl_eval", "step": 0} | expected]


def test_without_rows_there_is_no_table(tmp_path):
  with GenerationsWriter(tmp_path) as writer:
    writer.write("rl_eval", 3, [])
  assert contents(tmp_path) == {"generations.jsonl": ""}


def test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one(tmp_path):
  """Without the rewind, the table of step 10 would be one of other weights."""
  write(tmp_path / "whole", [0, 5, 15])
  write(tmp_path / "cut", [0, 5, 10, 1_000_010])
  write(tmp_path / "cut", [15], first=6)
  assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_file_of_the_user_is_neither_read_nor_removed(tmp_path):
  write(tmp_path, [0, 10])
  folder = tmp_path / "generations"
  for name in ("rl_eval_notes.md", "rl_eval_10.md", "rl_eval_000010 (1).md"):
    (folder / name).touch()
  write(tmp_path, [], first=10)
  assert {path.name for path in folder.iterdir()} == {
    *("rl_eval_000000.md", "rl_eval_notes.md", "rl_eval_10.md"),
    "rl_eval_000010 (1).md",
  }


def test_the_text_has_what_a_reader_compares():
  text = render_generations("rl_eval", 20, [ROW])
  assert text.startswith("# Generations of rl_eval, step 20\n")
  overview = text.splitlines()[4]
  for cell in ("math500", "test/1", "right", "8", "12", "-0.25"):
    assert f"| {cell} |" in overview
  assert "[+0.90] 3 + 5 = 8\n\n[-0.25] It is $\\boxed{8}$." in text
  assert "What is 3 + 5?" in text


@pytest.mark.parametrize(
  ("changes", "verdict"),
  [
    ({"correct": False}, "wrong"),
    ({"correct": False, "truncated": True}, "wrong, cut at the limit"),
    ({"correct": False, "reference": None}, "not graded"),
  ],
)
def test_the_verdict_is_in_words(changes, verdict):
  text = render_generations("rl_eval", 0, [dataclasses.replace(ROW, **changes)])
  assert f" | {verdict} | " in text and f"greedy, {verdict}." in text


def test_without_a_prm_there_are_no_scores():
  row = dataclasses.replace(ROW, step_rewards=None)
  text = render_generations("rl_eval", 0, [row])
  assert "\n3 + 5 = 8\n\nIt is" in text and "[+" not in text


def test_steps_beyond_the_scored_ones_are_shown():
  row = dataclasses.replace(ROW, steps=["a", "b", "c"], step_rewards=[0.5])
  text = render_generations("rl_eval", 0, [row])
  assert "[+0.50] a\n\nb\n\nc\n" in text


def test_a_response_cannot_leave_its_block_or_its_cell():
  """A model writes fences, and answers with bars and line breaks."""
  steps = ["```\n# Not a heading\n````", "| a | b |"]
  row = dataclasses.replace(
    ROW, steps=steps, answer="1 | 2\n| 3", problem="`````", step_rewards=None
  )
  lines = render_generations("rl_eval", 0, [row]).splitlines()
  bars = lines[4].replace("\\|", "")
  assert bars.count("|") == lines[2].count("|") == lines[3].count("|")
  start = lines.index("`````text")
  block = lines[start + 1 : lines.index("`````", start)]
  assert block == "\n\n".join(steps).splitlines()
  assert "``````text" in lines  # Of the problem.
