"""The embedded world as the task of a run: everything made on first use.

What a stage does not use is neither made nor read: the responses written to be
labelled wait for the training of the PRM.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pure_jax.host.data import batches
from pure_jax.host.data.records import Problem
from pure_jax.host.data.world import arithmetic, dataset
from pure_jax.host.distributed import processes
from pure_jax.host.distributed.shared_rows import read_everywhere
from pure_jax.host.text.tokenization import (
  PROMPT_FORMATS,
  encode_response,
  split_texts,
)
from pure_jax.models import prm
from pure_jax.runs import workspace
from pure_jax.runs.settings.run import ConfigError, Settings
from pure_jax.training import rollouts, supervised
from pure_jax.training.supervised import Demonstrations

SAMPLE_ROWS = 1024  # Responses sampled at a time.


def prompt_tokens(world: arithmetic.WorldConfig) -> int:
  """Columns of a prompt: the longest problem there can be, and a line break."""
  return 2 * (world.max_operations + 1) + 1


class ArithmeticTask:
  """See `workspace.Task`."""

  def __init__(self, settings: Settings, folder: pathlib.Path):
    """Makes or reads tokenizer and data.

    Args:
      settings: the run's; `world` and `model` are set.
      folder: where they are kept.
    """
    world = settings.world
    self._settings, self._folder = settings, folder
    self.tokenizer = dataset.world_tokenizer(world, folder / "tokenizer.model")
    self.model = settings.model.architecture(self.tokenizer.vocab_size)
    self.prm_model = prm.extend_config(self.model, settings.prm.extra_layers)
    self.prompt_format = self.prm_prompt_format = PROMPT_FORMATS["plain"]
    self.prompt_tokens = prompt_tokens(world)
    self.prm_prompt_tokens = self.prompt_tokens
    rows = self._load(
      train=max(settings.sft.demonstrations, settings.prm.policy_prompts),
      held_out=max(settings.rl.eval_prompts, settings.prm.eval_prompts),
    )
    self._train_rows = rows["train"]
    self.train = _problems(rows["train"])
    self.held_out = _problems(rows["held_out"])

  def _load(self, **sizes: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of the splits that are named."""
    return dataset.load_world(
      self._settings.world, sizes, self._folder / "data"
    )

  def grade(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> workspace.Verdicts:
    """Compares the last box with the value of the chain."""
    right = [
      arithmetic.grade(
        arithmetic.parse_problem(problem.problem),
        arithmetic.SEPARATOR.join(steps),
      )
      for problem, steps in zip(problems, texts, strict=True)
    ]
    return workspace.Verdicts(np.asarray(right, bool), {})

  def is_vacuous(self, step: str) -> bool:
    """Whether a step neither computes nor answers."""
    return arithmetic.is_vacuous(step)

  def kind(self, problem: Problem, steps: Sequence[str]) -> str:
    """What kind of response this is, to see how a reward was hacked."""
    return arithmetic.classify(arithmetic.parse_problem(problem.problem), steps)

  def start_policy(self, space: workspace.Workspace) -> None:
    """The world has no trained policy: it starts with demonstrations."""
    return

  def start_prm(self, space: workspace.Workspace) -> None:
    """The world has no trained PRM."""
    return

  def demonstrations(self, space: workspace.Workspace) -> Demonstrations:
    """Responses of the world's imperfect teachers."""
    rows = self._train_rows[: self._settings.sft.demonstrations]
    return self._encode(space, rows)[1]

  def labelled(
    self, space: workspace.Workspace, policy_params: Any
  ) -> workspace.LabelledResponses:
    """LabelledResponses responses and policy samples with the checker's
    labels."""
    settings = self._settings.prm

    def load():
      return self._load(labelled=settings.labelled)["labelled"]

    # Process 0 makes the files that the others then find.
    made = processes.on_process_zero(load)
    rows, shown = self._encode(space, load() if made is None else made)
    asked = self.train[: settings.policy_prompts] * settings.policy_samples
    sampled = self._sample(space, policy_params, asked, space.key(1))
    data = jax.tree.map(lambda *x: np.concatenate(x), shown, sampled)
    problems = [row["problem"] for row in rows] + [p.problem for p in asked]
    return workspace.LabelledResponses(data, *self._label(problems, data))

  def evaluate_prm(
    self, space: workspace.Workspace, policy_params: Any, params: Any
  ) -> dict[str, float]:
    """Judges the PRM on the policy's samples for held-out prompts.

    Returns:
      Step accuracy, its mean over the two classes, and the share of wrong
      answers whose every step scores above 0: the door to hacking.
    """
    settings = self._settings.prm
    problems = self.held_out[: settings.eval_prompts] * settings.policy_samples
    data = self._sample(space, policy_params, problems, space.key(2))
    labels, label_mask = self._label([p.problem for p in problems], data)
    score = supervised.make_prm_evaluation(
      space.prm_model, space.prm_score_config, space.table, space.layout
    )
    rewards = read_everywhere(score(params, space.put(data)))
    good = labels == 1
    right = (rewards > 0) == good
    texts = split_texts(self.tokenizer, data.tokens, data.completion_mask)
    wrong = ~self.grade(problems, texts).correct
    steps_there = np.asarray([min(len(t), rewards.shape[1]) for t in texts])
    exists = np.arange(rewards.shape[1]) < steps_there[:, None]
    worst = np.where(exists, rewards, np.inf).min(1)
    numbers = {
      "step_accuracy": right[label_mask].mean(),
      "good_recall": right[label_mask & good].mean(),
      "bad_recall": right[label_mask & ~good].mean(),
      "policy_accuracy": 1 - wrong.mean(),
    }
    numbers["balanced_accuracy"] = (
      numbers["good_recall"] + numbers["bad_recall"]
    ) / 2
    if wrong.any():
      numbers["hacked_given_wrong"] = (worst[wrong] > 0).mean()
    return {name: float(value) for name, value in numbers.items()}

  def close(self) -> None:
    """Nothing is open."""

  def _encode(
    self, space: workspace.Workspace, rows: list[dict[str, Any]]
  ) -> tuple[list[dict[str, Any]], Demonstrations]:
    """Rows that fit the response limit, and their ids."""
    limit = self._settings.rl.max_new_tokens
    responses = [
      encode_response(
        self.tokenizer,
        row["response"].split(arithmetic.SEPARATOR),
        finished=True,
      )
      for row in rows
    ]
    fits = [len(ids) <= limit for ids in responses]
    if not any(fits):
      raise ConfigError(
        f"rl.max_new_tokens={limit} has room for none of {len(rows)} "
        f"responses; the shortest has {min(map(len, responses))} tokens."
      )
    rows = [row for row, fit in zip(rows, fits, strict=True) if fit]
    responses = [ids for ids, fit in zip(responses, fits, strict=True) if fit]
    prompts = space.encode_prm_prompts(_problems(rows))
    tokens, mask = batches.right_pad(responses, limit, self.tokenizer.pad_id)
    return rows, Demonstrations(prompts.tokens, prompts.mask, tokens, mask)

  def _label(
    self, problems: list[str], data: Demonstrations
  ) -> tuple[np.ndarray, np.ndarray]:
    """The checker's labels and their mask, [n, S]."""
    return dataset.label_rollout(
      self.tokenizer,
      problems,
      data.tokens,
      data.completion_mask,
      self._settings.rl.max_steps,
    )

  def _sample(
    self,
    space: workspace.Workspace,
    params: Any,
    problems: list[Problem],
    key: jax.Array,
  ) -> Demonstrations:
    """One response to each problem; a repeated one gets another each time."""
    generate = rollouts.make_generate(
      self.model, space.sampler, group_size=1, layout=space.layout
    )
    devices = space.layout.row_shards
    rows = -(-min(SAMPLE_ROWS, len(problems)) // devices) * devices
    parts = []
    for first in range(0, len(problems), rows):
      # The last part is filled up with problems of the first: one shape only.
      count = len(problems)
      chosen = [problems[i % count] for i in range(first, first + rows)]
      part = generate(
        params, space.encode_prompts(chosen), jax.random.fold_in(key, first)
      )
      parts.append(
        read_everywhere(
          Demonstrations(
            part.prompt_tokens,
            part.prompt_mask,
            part.tokens,
            part.completion_mask,
          )
        )
      )
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(problems)], *parts)


def _problems(rows: list[dict[str, Any]]) -> list[Problem]:
  """Rows of the data set as problems."""
  return [
    Problem(
      id=str(number),
      source="arithmetic",
      problem=row["problem"],
      answer=str(row["answer"]),
    )
    for number, row in enumerate(rows)
  ]
