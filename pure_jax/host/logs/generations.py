"""Tables of generations: what a policy writes at each validation of a run.

``generations.jsonl`` has a row for each shown response. For people there is one
Markdown file for each validation, in the folder ``generations``. The problems
are the same at every validation, so that responses can be compared over time.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

from pure_jax.host.atomic_files import write_text_atomic
from pure_jax.host.logs.metrics import RowWriter
from pure_jax.host.logs.visible import markdown, visible

GENERATIONS_FILE = "generations.jsonl"
GENERATIONS_FOLDER = "generations"


@dataclasses.dataclass(frozen=True)
class Generation:
  """A response of a validation.

  Attributes:
    benchmark: name of the benchmark, or "held_out".
    id: id of the problem in its file.
    problem: text of the problem.
    reference: the right answer; None if it is not known.
    greedy: whether the likeliest tokens were taken; False if they were drawn.
    steps: texts of the steps. Joined by a blank line they are the response.
    tokens: number of tokens, the end token included.
    truncated: whether the length limit cut it.
    answer: the answer found in it; None if there is none.
    correct: whether the answer is right.
    step_rewards: score of each step, -1..1. If there are fewer scores than
      steps, the last score is that of all further steps. None without a PRM.
  """

  benchmark: str
  id: str
  problem: str
  reference: str | None
  greedy: bool
  steps: list[str]
  tokens: int
  truncated: bool
  answer: str | None
  correct: bool
  step_rewards: list[float] | None


class GenerationsWriter(RowWriter):
  """Writes the tables of a run."""

  def __init__(self, workdir: str | os.PathLike):
    """Opens the file in the folder of a run, which is created if missing."""
    super().__init__(workdir, GENERATIONS_FILE)
    self._folder = pathlib.Path(workdir) / GENERATIONS_FOLDER

  def rewind(self, stage: str, step: int) -> None:
    """Removes the tables of a stage from a step on; call it on resume."""
    super().rewind(stage, step)
    self._remove_texts(stage, step)

  def _remove_texts(self, stage: str, step: int) -> None:
    """Removes the Markdown files from a step on, but no file of the user."""
    written = re.compile(rf"{re.escape(stage)}_([0-9]{{6,}})\.md")
    for path in self._folder.glob(f"{stage}_*.md"):
      name = written.fullmatch(path.name)
      if name and int(name[1]) >= step:
        path.unlink()

  def write(
    self, stage: str, step: int, generations: Sequence[Generation]
  ) -> None:
    """Writes the table of a validation; none without generations.

    Args:
      stage: name of the stage, such as "rl_eval".
      step: step within the stage, >= 0.
      generations: the rows.
    """
    if not generations:
      return
    for row in generations:
      values = dataclasses.asdict(row)
      self._append({"stage": stage, "step": int(step)} | values)
    self._folder.mkdir(exist_ok=True)
    path = self._folder / f"{stage}_{step:06d}.md"
    write_text_atomic(path, render_generations(stage, step, generations))


def render_generations(
  stage: str, step: int, generations: Sequence[Generation]
) -> str:
  """Renders a table of generations as Markdown: an overview, then each text.

  Args:
    stage: name of the stage.
    step: step within the stage.
    generations: the rows.

  Returns:
    The text. What a model wrote is in code blocks that it cannot close. All
    texts are `visible`, so that a terminal may show the file.
  """
  lines = [f"# Generations of {stage}, step {step}", ""]
  lines += [
    "| | benchmark | id | verdict | answer | reference | tokens | worst |"
  ]
  lines += ["|-|-|-|-|-|-|-|-|"]
  for number, row in enumerate(generations, 1):
    worst = "" if not row.step_rewards else f"{min(row.step_rewards):+.2f}"
    cells = [row.benchmark, row.id, _verdict(row)]
    cells += [row.answer or "", row.reference or "", str(row.tokens), worst]
    joined = " | ".join(markdown(cell) for cell in cells)
    lines.append(f"| [{number}](#{number}) | {joined} |")
  for number, row in enumerate(generations, 1):
    kind = "greedy" if row.greedy else "a sample"
    lines += ["", f"## {number}", ""]
    lines += [f"{markdown(row.benchmark)}, {kind}, {_verdict(row)}.", ""]
    lines += [_block(row.problem), "", _block(_scored_steps(row))]
  return "\n".join(lines) + "\n"


def _verdict(row: Generation) -> str:
  """The verdict in words."""
  if row.reference is None:
    return "not graded"
  verdict = "right" if row.correct else "wrong"
  return f"{verdict}, cut at the limit" if row.truncated else verdict


def _scored_steps(row: Generation) -> str:
  """The response, with the score of a step before it."""
  if row.step_rewards is None:
    return "\n\n".join(row.steps)
  scores = [f"[{reward:+.2f}] " for reward in row.step_rewards]
  scores += [""] * (len(row.steps) - len(scores))
  pairs = zip(scores, row.steps, strict=False)
  return "\n\n".join(score + step for score, step in pairs)


def _block(text: str) -> str:
  """A code block whose fence is longer than any run of backticks in it."""
  text = visible(text)
  longest = max(map(len, re.findall("`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return f"{fence}text\n{text}\n{fence}"
