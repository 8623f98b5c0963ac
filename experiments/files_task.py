"""Models and data that the user names, as the task of a run."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tiny_files
import workspace
from run_settings import ConfigError, Settings

from pure_jax.host import answer_metrics, huggingface, prm_metrics, verify
from pure_jax.host.contract import PROMPT_FORMATS, encode_response
from pure_jax.host.data import batches
from pure_jax.host.data.file_dataset import load_rows
from pure_jax.host.data.named_formats import FORMATS
from pure_jax.host.data.records import (
  Problem,
  Steps,
  problem_key,
  split_by_problem,
)
from pure_jax.host.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.response_scores import AGGREGATIONS
from pure_jax.training import stages
from pure_jax.training.stages import Demonstrations


class FilesTask:
  """See `workspace.Task`."""

  def __init__(self, settings: Settings, folder: pathlib.Path):
    """Reads the tokenizer and opens the data; weights are read when needed.

    Args:
      settings: the run's; `files` is set.
      folder: where prepared data sets are kept.

    Raises:
      ConfigError: for a format of another kind than the field asks for, or if
        no problem fits its prompt.
    """
    files = settings.files
    if files.random_model is not None:
      files = tiny_files.make_files(files, folder / "tiny")
    self._settings, self._files, self._folder = settings, files, folder
    config = huggingface.read_config(files.policy)
    if config.is_prm:
      raise ConfigError(f"files.policy={files.policy} holds a PRM.")
    self.model = dataclasses.replace(
      config.model,
      compute_dtype=files.compute_dtype,
      param_dtype=files.param_dtype,
      remat=files.remat,
    )
    self.tokenizer = HuggingFaceTokenizer(
      files.policy,
      vocab_size=self.model.vocab_size,
      eos_token=files.eos_token,
    )
    self.prompt_format = PROMPT_FORMATS[files.prompt_format]
    self.prm_prompt_format = PROMPT_FORMATS[files.prm_prompt_format]
    self.prompt_tokens = files.prompt_tokens
    self.prm_prompt_tokens = files.prm_prompt_tokens
    self.train = self._problems(files.train, files.train_format, "train")
    self.held_out = self._problems(
      files.held_out, files.held_out_format, "held_out"
    )
    self._pool: verify.GradingPool | None = None

  def _rows(self, path: str, name: str, record: type, field: str) -> Any:
    """The records of one file."""
    row_format = FORMATS[name]
    if row_format.record is not record:
      raise ConfigError(
        f"files.{field}_format={name!r} holds {row_format.record.__name__}, "
        f"but {field} needs {record.__name__}."
      )
    return load_rows(
      row_format,
      {"rows": [path]},
      self._folder / "data",
      skip_malformed=self._files.skip_malformed,
    )["rows"]

  def _problems(self, path: str | None, name: str, field: str) -> list[Problem]:
    """Problems whose prompts fit; none where no file is named."""
    if path is None:
      return []
    rows = list(self._rows(path, name, Problem, field))
    kept = [row for row in rows if self._fits(row)]
    if not kept:
      raise ConfigError(
        f"files.prompt_tokens={self.prompt_tokens} and "
        f"prm_prompt_tokens={self.prm_prompt_tokens} have room for none of "
        f"the {len(rows)} problems of {path}."
      )
    return kept

  def _fits(self, problem: Problem) -> bool:
    """Whether both prompts of a problem have room."""
    asked = self.prompt_format.text(self.tokenizer, problem.problem)
    judged = self.prm_prompt_format.text(self.tokenizer, problem.problem)
    return (
      len(self.tokenizer.encode(asked)) <= self.prompt_tokens
      and len(self.tokenizer.encode(judged)) <= self.prm_prompt_tokens
    )

  def grade(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> workspace.Verdicts:
    """Compares answers by math-verify, each within its limits."""
    if self._pool is None:
      self._pool = verify.open_pool(
        self._files.grader_workers, self._files.grader_seconds
      )
    references = [verify.reference_of(problem) for problem in problems]
    known = [i for i, found in enumerate(references) if found is not None]
    verdicts = verify.grade(
      self._pool,
      ["\n\n".join(texts[i]) for i in known],
      [references[i] for i in known],
      [verify.EXTRACTORS[name] for name in self._files.extractors],
    )
    correct = np.zeros(len(problems), bool)
    correct[known] = [verdict.correct for verdict in verdicts]
    counts = verify.verdict_counts(verdicts)
    return workspace.Verdicts(
      correct,
      {
        f"grader_{name}": float(counts[name])
        for name in ("no_answer", "timed_out", "crashed")
      },
    )

  def is_vacuous(self, step: str) -> bool:
    """Whether a step is empty; what else says nothing, nobody can tell."""
    return not step.strip()

  def kind(self, problem: Problem, steps: Sequence[str]) -> None:
    """Nobody can tell what kind of response this is."""
    return

  def start_policy(self, space: workspace.Workspace) -> Any:
    """The policy's weights, from its folder."""
    params, _ = huggingface.load_policy(
      self._files.policy,
      space.mesh,
      compute_dtype=self.model.compute_dtype,
      param_dtype=self.model.param_dtype,
    )
    return params

  def start_prm(self, space: workspace.Workspace) -> Any | None:
    """The PRM's weights, where a folder of one is named."""
    if self._files.prm is None:
      return None
    params, model = huggingface.load_prm(
      self._files.prm,
      space.mesh,
      compute_dtype=self.model.compute_dtype,
      param_dtype=self.model.param_dtype,
    )
    wanted = dataclasses.replace(space.prm_model, remat=model.remat)
    if model != wanted:
      raise ConfigError(
        f"files.prm={self._files.prm} is {model}, which cannot read the "
        f"policy's ids as {wanted}."
      )
    return params

  def demonstrations(self, space: workspace.Workspace) -> Demonstrations:
    """A trained policy needs none."""
    raise ConfigError("files.policy is trained already: there is no SFT stage.")

  def _judged_rows(self) -> tuple[list[Steps], list[Steps]]:
    """Training and held-out rows that share no problem."""
    files = self._files
    if files.judged is None:
      raise ConfigError(
        "A PRM must be trained, but files.judged names no data; or name a "
        "trained one with files.prm."
      )
    rows = self._rows(files.judged, files.judged_format, Steps, "judged")
    parts = split_by_problem(rows, files.judged_one_in)
    if not all(map(len, parts)):
      raise ConfigError(
        f"files.judged_one_in={files.judged_one_in} leaves {len(parts[0])} "
        f"rows to train on and {len(parts[1])} held out."
      )
    shown, held_out = (rows.take(part) for part in parts)
    return shown[: files.judged_rows], held_out[: files.judged_held_out_rows]

  def judged(
    self, space: workspace.Workspace, policy_params: Any
  ) -> workspace.Judged:
    """The rows of the file that fit, their steps as a policy writes them."""
    del policy_params
    judged, kept = self._encode(space, self._judged_rows()[0])
    space.metrics.rewind("prm_data", 0)
    facts = {
      "responses": len(kept),
      "labelled_steps": judged.label_mask.sum(),
      "good_share": judged.labels[judged.label_mask].mean(),
    }
    space.metrics.write("prm_data", 0, facts)
    return judged

  def _encode(
    self, space: workspace.Workspace, rows: list[Steps]
  ) -> tuple[workspace.Judged, list[Steps]]:
    """Rows with room for their tokens and steps, and which those are."""
    limit, max_steps = self._files.response_tokens, self._settings.rl.max_steps
    kept, responses = [], []
    for row in rows:
      ids = encode_response(self.tokenizer, row.steps, finished=True)
      problem = self.prm_prompt_format.text(self.tokenizer, row.problem)
      fits = len(self.tokenizer.encode(problem)) <= self.prm_prompt_tokens
      if fits and len(ids) <= limit and len(row.steps) <= max_steps:
        kept.append(row)
        responses.append(ids)
    if not kept:
      raise ConfigError(
        f"files.prm_prompt_tokens, files.response_tokens={limit} and "
        f"rl.max_steps={max_steps} have room for none of {len(rows)} rows."
      )
    prompts = space.encode_prm_prompts(kept)
    tokens, mask = batches.right_pad(responses, limit, self.tokenizer.pad_id)
    labels = np.zeros((len(kept), max_steps), np.int32)
    label_mask = np.zeros((len(kept), max_steps), bool)
    for index, row in enumerate(kept):
      for step, label in enumerate(row.labels):
        if label is not None:
          labels[index, step], label_mask[index, step] = label, True
    data = Demonstrations(prompts.tokens, prompts.mask, tokens, mask)
    return workspace.Judged(data, labels, label_mask), kept

  def evaluate_prm(
    self, space: workspace.Workspace, policy_params: Any, params: Any
  ) -> dict[str, float]:
    """Judges the PRM on held-out rows, and as a chooser among solutions."""
    del policy_params
    judged, rows = self._encode(space, self._judged_rows()[1])
    score = stages.make_prm_evaluation(
      space.prm_model, space.prm_score_config, space.table, space.mesh
    )
    size, count, parts = self._settings.prm.batch_size, len(rows), []
    for first in range(0, count, size):
      chosen = np.arange(first, first + size) % count  # One shape only.
      batch = space.put(space.crop(workspace.take(judged.responses, chosen)))
      parts.append(np.asarray(score(params, batch)))
    rewards = np.concatenate(parts)[:count]
    numbers = prm_metrics.step_metrics(
      rewards, judged.labels == 1, judged.label_mask
    )
    return numbers | choose_among_solutions(rows, rewards)

  def close(self) -> None:
    """Ends the graders."""
    if self._pool is not None:
      self._pool.close()


def choose_among_solutions(
  rows: Sequence[Steps], rewards: np.ndarray
) -> dict[str, float]:
  """Best-of-n over the solutions a data set has of each problem.

  Args:
    rows: n solutions; those without a known outcome do not count.
    rewards: [n, S] step rewards.

  Returns:
    Over problems with the full number of solutions: the mean accuracy, that
    of the majority of last numbers, and of the best by each way to score.
    Empty where no problem has two solutions.
  """
  groups: dict[str, list[int]] = {}
  for index, row in enumerate(rows):
    if row.final_correct is not None:
      groups.setdefault(problem_key(row.problem), []).append(index)
  n = max(map(len, groups.values()), default=0)
  members = np.asarray([g for g in groups.values() if len(g) == n], int)
  if n < 2:
    return {}
  lengths = np.asarray([len(row.steps) for row in rows])
  step_mask = np.arange(rewards.shape[1]) < lengths[:, None]
  correct = np.asarray([bool(row.final_correct) for row in rows])[members]
  there = np.ones(correct.shape, bool)
  answers = [
    [verify.last_number(rows[i].steps[-1]) for i in g] for g in members
  ]
  ids, has_answer = answer_metrics.answer_ids(answers)
  found = {
    "solutions_mean": answer_metrics.average(correct, there),
    f"majority_at_{n}": answer_metrics.majority_at_k(
      correct, ids, has_answer, there, n
    ),
  }
  for name, aggregate in AGGREGATIONS.items():
    scores = aggregate(rewards, step_mask)[members]
    found[f"best_of_{n}_{name}"] = answer_metrics.best_of_k(
      correct, scores, there, there, n
    )
  numbers = {k: float(v.value[v.mask].mean()) for k, v in found.items()}
  return numbers | {"problems": float(len(members))}
