"""Models and data that the user names, as the task of a run."""

import collections
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pure_jax.host import huggingface
from pure_jax.host.checkpoints import integrity
from pure_jax.host.data import batches
from pure_jax.host.data import files as data_files
from pure_jax.host.data.file_dataset import Rows
from pure_jax.host.data.formats.named import find_format
from pure_jax.host.data.records import (
  LabelledSolution,
  Problem,
  problem_key,
  split_by_problem,
)
from pure_jax.host.distributed.shared_rows import read_everywhere
from pure_jax.host.evaluation import prm_metrics, solution_choice
from pure_jax.host.grading import verify
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import PROMPT_FORMATS
from pure_jax.models import prm
from pure_jax.models.config import ModelConfig
from pure_jax.runs import workspace
from pure_jax.runs.evaluation import labelled_rows
from pure_jax.runs.evaluation.data import MODEL_FILES
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.files import FilesSettings
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.tasks import tiny_files
from pure_jax.training import stages
from pure_jax.training.stages import Demonstrations


def contents(files: FilesSettings) -> dict[str, str]:
  """What the user's files hold, so that a resumed run meets the same.

  Args:
    files: of the run.

  Returns:
    A fingerprint of each model and file that is named.

  Raises:
    ConfigError: naming what is missing or cannot be read.
  """
  found = {}
  for name in ("policy", "prm", "train", "held_out", "labelled"):
    path = getattr(files, name)
    if path is None:
      continue
    try:
      found[name] = integrity.fingerprint(path, MODEL_FILES)
    except OSError as error:
      reason = f"files.{name}={path} cannot be read: {error}."
      raise ConfigError(reason) from error
  return found


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
    huggingface.warn_beyond_positions(
      files.policy,
      config,
      files.prompt_tokens + settings.rl.sampler.max_new_tokens,
    )
    self.model = files.computed(config.model)
    self.tokenizer = HuggingFaceTokenizer(
      files.policy,
      vocab_size=self.model.vocab_size,
      eos_token=files.eos_token,
    )
    self.prm_model = self._prm_model()
    self.prompt_format = files.policy_prompt_format
    self.prm_prompt_format = PROMPT_FORMATS[files.prm_prompt_format]
    self.prompt_tokens = files.prompt_tokens
    self.prm_prompt_tokens = files.prm_prompt_tokens
    self.train = self._problems("train")
    self.held_out = self._problems("held_out")
    self._pool: verify.GradingPool | None = None

  def _prm_model(self) -> ModelConfig | None:
    """The architecture of the PRM, which must read the policy's ids.

    Verdicts alone need none: it is there if the user names one all the same,
    or data to train it on.
    """
    files = self._files
    named = files.prm is not None or files.labelled is not None
    if self._settings.rl.reward_mode == "vr" and not named:
      return None
    if files.prm is None:
      return prm.extend_config(self.model, self._settings.prm.extra_layers)
    model = files.computed(huggingface.read_config(files.prm).model)
    tokenizer = self.tokenizer
    last = max(i for i, text in enumerate(tokenizer.pieces) if text)
    last = max(last, tokenizer.eos_id, tokenizer.pad_id)
    huggingface.check_vocabulary(last, model)
    if (pathlib.Path(files.prm) / "tokenizer.json").exists():
      theirs = HuggingFaceTokenizer(files.prm).pieces
      ours = tokenizer.pieces[: len(theirs)]
      if ours != theirs[: len(ours)]:
        raise ConfigError(
          f"files.prm={files.prm} has another vocabulary than the policy's: "
          "it cannot read its ids."
        )
    return model

  def _rows(self, field: str, record: type) -> Rows:
    """The records of the file that a field of the config names."""
    path, name, mapping = self._files.sources()[field]
    row_format = find_format(name, mapping)
    if row_format.record is not record:
      raise ConfigError(
        f"files.{field}_format={name!r} holds {row_format.record.__name__}, "
        f"but {field} needs {record.__name__}."
      )
    return data_files.read_file(
      row_format,
      path,
      self._folder / "data",
      skip_malformed=self._files.skip_malformed,
    )

  def _problems(self, field: str) -> list[Problem]:
    """Problems whose prompts fit; none where no file is named."""
    path, _, _ = self._files.sources()[field]
    if path is None:
      return []
    rows = list(self._rows(field, Problem))
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
    labelled = self.prm_prompt_format.text(self.tokenizer, problem.problem)
    return (
      len(self.tokenizer.encode(asked)) <= self.prompt_tokens
      and len(self.tokenizer.encode(labelled)) <= self.prm_prompt_tokens
    )

  def grade(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> workspace.Verdicts:
    """Compares answers by math-verify, each within its limits."""
    if self._pool is None:
      self._pool = verify.open_pool(
        self._files.grader.workers, self._files.grader.seconds
      )
    references = [verify.reference_of(problem) for problem in problems]
    known = [i for i, found in enumerate(references) if found is not None]
    verdicts = verify.grade(
      self._pool,
      ["\n\n".join(texts[i]) for i in known],
      [references[i] for i in known],
      [verify.EXTRACTORS[name] for name in self._files.grader.extractors],
    )

    def spread(found: Iterable[bool]) -> np.ndarray:
      rows = np.zeros(len(problems), bool)
      rows[known] = [*found]
      return rows

    return workspace.Verdicts(
      spread(verdict.correct for verdict in verdicts),
      {
        "grader_no_answer": spread(not v.has_answer for v in verdicts),
        "grader_timed_out": spread(v.timed_out for v in verdicts),
        "grader_crashed": spread(v.failure is not None for v in verdicts),
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
      space.layout,
      compute_dtype=self.model.compute_dtype,
      param_dtype=self.model.param_dtype,
    )
    return params

  def start_prm(self, space: workspace.Workspace) -> Any | None:
    """The PRM's weights, where a folder of one is named."""
    if self._files.prm is None:
      return None
    params, _ = huggingface.load_prm(
      self._files.prm,
      space.layout,
      compute_dtype=self.model.compute_dtype,
      param_dtype=self.model.param_dtype,
    )
    return params

  def demonstrations(self, space: workspace.Workspace) -> Demonstrations:
    """A trained policy needs none."""
    raise ConfigError("files.policy is trained already: there is no SFT stage.")

  @functools.cached_property
  def _labelled_file(self) -> Rows:
    """Every labelled solution."""
    if self._files.labelled is None:
      raise ConfigError(
        "A PRM must be trained, but files.labelled names no data; or name a "
        "trained one with files.prm."
      )
    return self._rows("labelled", LabelledSolution)

  def _labelled_rows(
    self,
  ) -> tuple[list[LabelledSolution], list[LabelledSolution]]:
    """Training and held-out rows that share no problem."""
    files, rows = self._files, self._labelled_file
    parts = split_by_problem(rows, files.labelled_one_in)
    if not all(map(len, parts)):
      raise ConfigError(
        f"files.labelled_one_in={files.labelled_one_in} leaves {len(parts[0])} "
        f"rows to train on and {len(parts[1])} held out."
      )
    shown, held_out = (rows.take(part) for part in parts)
    return shown[: files.labelled_rows], held_out[
      : files.labelled_held_out_rows
    ]

  def labelled(
    self, space: workspace.Workspace, policy_params: Any
  ) -> workspace.LabelledResponses:
    """The rows of the file that fit, their steps as a policy writes them."""
    del policy_params
    rows, encoded = self._encode(self._labelled_rows()[0])
    prompts = batches.left_pad(
      encoded.prompts, self.prm_prompt_tokens, self.tokenizer.pad_id
    )
    responses = batches.right_pad(
      encoded.responses, self._limits.response_tokens, self.tokenizer.pad_id
    )
    labels, label_mask = step_labels(rows, self._limits.max_steps)
    space.metrics.rewind("prm_data", 0)
    counts = self._labelled_file.counts
    facts = {
      "file_rows": counts.read,
      "file_malformed": counts.skipped,
      "file_left_out": counts.left_out,
      "responses": len(rows),
      "left_out": len(encoded.left_out),
      "labelled_steps": label_mask.sum(),
      "good_share": labels[label_mask].mean(),
    }
    space.metrics.write("prm_data", 0, facts)
    return workspace.LabelledResponses(
      Demonstrations(*prompts, *responses), labels, label_mask
    )

  @property
  def _limits(self) -> labelled_rows.Limits:
    """What there is room for in a labelled row."""
    return labelled_rows.Limits(
      self.prm_prompt_tokens,
      self._files.response_tokens,
      self._settings.prm.score.max_steps,
    )

  def _encode(
    self, rows: list[LabelledSolution]
  ) -> tuple[list[LabelledSolution], labelled_rows.EncodedRows]:
    """Rows with room for their tokens and steps, and their ids."""
    limits = self._limits
    encoded = labelled_rows.encode_rows(
      self.tokenizer, self.prm_prompt_format, rows, limits
    )
    if not encoded.prompts:
      reasons = collections.Counter(encoded.left_out.values())
      raise ConfigError(
        f"files.prm_prompt_tokens={limits.prompt_tokens}, "
        f"files.response_tokens={limits.response_tokens} and "
        f"prm.score.max_steps={limits.max_steps} have room for none of "
        f"{len(rows)} rows: "
        f"{', '.join(f'{n} {why}' for why, n in reasons.items())}."
      )
    return [rows[i] for i in encoded.index], encoded

  def evaluate_prm(
    self, space: workspace.Workspace, policy_params: Any, params: Any
  ) -> dict[str, float]:
    """Judges the PRM on held-out rows, and as a chooser among solutions."""
    del policy_params
    rows, encoded = self._encode(self._labelled_rows()[1])
    settings, limits = self._settings.prm, self._limits
    score = stages.make_prm_evaluation(
      space.prm_model, space.prm_score_config, space.table, space.layout
    )
    rewards = np.zeros((len(rows), limits.max_steps), np.float32)
    for chosen, batch in labelled_rows.in_batches(
      encoded,
      limits,
      settings.batch_size,
      settings.length_multiple,
      self.tokenizer.pad_id,
    ):
      found = read_everywhere(score(params, space.put(batch)))
      rewards[chosen] = found[: len(chosen)]
    labels, label_mask = step_labels(rows, limits.max_steps)
    lengths = np.asarray([len(row.steps) for row in rows])
    chosen = solution_choice.choose_among_solutions(
      [problem_key(row.problem) for row in rows],
      [row.final_correct for row in rows],
      [verify.last_number(row.steps[-1]) for row in rows],
      rewards,
      np.arange(limits.max_steps) < lengths[:, None],
    )
    numbers = prm_metrics.step_metrics(rewards, labels == 1, label_mask)
    for name, metric in chosen.items():
      numbers[name] = float(metric.value.mean())
      numbers["problems"] = float(len(metric.value))
    return numbers | {"left_out": float(len(encoded.left_out))}

  def close(self) -> None:
    """Ends the graders."""
    if self._pool is not None:
      self._pool.close()


def step_labels(
  rows: Sequence[LabelledSolution], max_steps: int
) -> tuple[np.ndarray, np.ndarray]:
  """Labels as arrays.

  Args:
    rows: n solutions of at most max_steps steps.
    max_steps: S.

  Returns:
    (labels [n, S] int32, 1 good, 0 bad; label_mask [n, S] bool).
  """
  labels = np.zeros((len(rows), max_steps), np.int32)
  label_mask = np.zeros((len(rows), max_steps), bool)
  for index, row in enumerate(rows):
    for step, label in enumerate(row.labels):
      if label is not None:
        labels[index, step], label_mask[index, step] = label, True
  return labels, label_mask
