"""The embedded world as the task of a run.

Tokenizer and data are made on first use. The examples to train the PRM on are
made only in a run that trains a PRM.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pure_jax.host.data.batches import each_step_inputs, right_pad
from pure_jax.host.data.records import Problem
from pure_jax.host.data.world import arithmetic, checker, dataset
from pure_jax.host.distributed import preemption, processes
from pure_jax.host.distributed.global_batch import read_everywhere
from pure_jax.host.evaluation import prm_metrics
from pure_jax.host.grading import verify
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.host.text.tokenization import encode_response, split_texts
from pure_jax.models import prm
from pure_jax.runs.batches import Batches, PromptEncoder
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.runs.settings.run import Settings
from pure_jax.runs.spec import RandomStream, RunSpec
from pure_jax.runs.tasks.task import LabelledResponses, Task, Verdicts
from pure_jax.training import rollouts, supervised
from pure_jax.training.supervised import Demonstrations
from pure_jax.types import PRMInputs

SAMPLE_ROWS = 1024  # Responses per call of the sampler.


def prompt_tokens(world: arithmetic.WorldConfig) -> int:
  """Length L of the longest prompt: a problem and a line break.

  Every number and operator is one token, and so is "=?".

  Args:
    world: the settings of the world.
  """
  return 2 * (world.max_operations + 1) + 1


class ArithmeticTask(Task):
  """The embedded world; the run trains policy and PRM."""

  def __init__(self, settings: Settings, folder: pathlib.Path):
    """Opens tokenizer and data in a folder; makes them if they do not exist."""
    world = settings.world
    self._settings, self._folder = settings, folder
    self.tokenizer = dataset.world_tokenizer(world, folder / "tokenizer.model")
    self.model = settings.model.architecture(self.tokenizer.vocab_size)
    self.prm_model = prm.extend_config(self.model, settings.prm.extra_layers)
    self.prompt_encoder = self.prm_prompt_encoder = PromptEncoder(
      self.tokenizer, PROMPT_FORMATS["plain"], prompt_tokens(world)
    )
    rows = self._load(
      train=max(settings.sft.demonstrations, settings.prm.policy_prompts),
      held_out=max(settings.rl.eval_prompts, settings.prm.eval_prompts),
    )
    self._train_rows = rows["train"]
    self.train = _problems(rows["train"])
    self.held_out = _problems(rows["held_out"])

  def _load(self, **sizes: int) -> dict[str, list[dataset.Example]]:
    """Reads the splits that have a size."""
    return dataset.load_world(
      self._settings.world, sizes, self._folder / "data"
    )

  def grade(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> Verdicts:
    """Compares the content of the last box with the value of the chain."""
    parse, separator = arithmetic.parse_problem, arithmetic.SEPARATOR
    right = [
      checker.grade(parse(problem.problem), separator.join(steps))
      for problem, steps in zip(problems, texts, strict=True)
    ]
    return Verdicts(np.asarray(right, bool), {})

  def find_answer(self, texts: Sequence[str]) -> str | None:
    """The content of the last box."""
    return verify.boxed(arithmetic.SEPARATOR.join(texts))

  def is_vacuous(self, step: str) -> bool:
    """Whether a step neither computes nor answers."""
    return checker.is_vacuous(step)

  def step_labels(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> list[list[int | None]]:
    """Labels each step up to the first bad one."""
    parse = arithmetic.parse_problem
    return [
      checker.label_steps(parse(problem.problem), steps)
      for problem, steps in zip(problems, texts, strict=True)
    ]

  def kind(self, problem: Problem, steps: Sequence[str]) -> str:
    """Classifies a response, to show how a policy exploits a reward."""
    return checker.classify(arithmetic.parse_problem(problem.problem), steps)

  def demonstrations(self) -> Demonstrations:
    """The responses of the world's imperfect teachers."""
    rows = self._train_rows[: self._settings.sft.demonstrations]
    return self._encode(rows)[1]

  def labelled(
    self, spec: RunSpec, batches: Batches, policy_params: Any
  ) -> LabelledResponses:
    """Generated examples and samples of the policy, labelled by the checker."""
    settings = self._settings.prm

    def load():
      return self._load(labelled=settings.labelled)["labelled"]

    # Process 0 makes the data set, then the others read it.
    examples = processes.on_process_zero(load)
    examples, generated = self._encode(load() if examples is None else examples)
    problems = self.train[: settings.policy_prompts] * settings.policy_samples
    stream = RandomStream.LABELLED_SAMPLES
    sampled = self._sample(spec, batches, policy_params, problems, stream)
    data = jax.tree.map(lambda *x: np.concatenate(x), generated, sampled)
    texts = [row.problem for row in (*examples, *problems)]
    labels = self._label(texts, data)
    return LabelledResponses(self._prm_batch(data), *labels)

  def evaluate_prm(
    self, spec: RunSpec, batches: Batches, policy_params: Any, params: Any
  ) -> dict[str, float | None]:
    """Evaluates the PRM on samples of the policy for held-out problems.

    Returns:
      The accuracy on all, on good and on bad steps, the mean of the latter two,
      the accuracy of the policy, and the share of responses with a wrong answer
      in which every step has a reward above 0: these can be exploited. A
      metric is None if no step or response counts, or a reward is not finite.
    """
    settings = self._settings.prm
    problems = self.held_out[: settings.eval_prompts] * settings.policy_samples
    stream = RandomStream.PRM_EVALUATION_SAMPLES
    data = self._sample(spec, batches, policy_params, problems, stream)
    labels, label_mask = self._label([p.problem for p in problems], data)
    layout = spec.layouts.training
    score = supervised.make_prm_evaluation(
      spec.prm_model, spec.prm_score_config, spec.table, layout
    )
    batch = self._prm_batch(data)
    rewards = read_everywhere(score(params, batches.put(batch)))
    texts = split_texts(self.tokenizer, data.tokens, data.completion_mask)
    wrong = ~self.grade(problems, texts).correct
    steps_there = np.asarray([min(len(t), rewards.shape[1]) for t in texts])
    exists = np.arange(rewards.shape[1]) < steps_there[:, None]
    finite = np.isfinite(rewards[exists]).all()
    worst = np.where(exists, rewards, np.inf).min(1)
    good, counted = labels == 1, label_mask & finite
    hacked = worst[wrong & finite] > 0
    accuracy, balanced = prm_metrics.accuracy, prm_metrics.balanced_accuracy
    return {
      "step_accuracy": accuracy(rewards, good, counted),
      "good_recall": accuracy(rewards, good, counted & good),
      "bad_recall": accuracy(rewards, good, counted & ~good),
      "policy_accuracy": float(1 - wrong.mean()),
      "balanced_accuracy": balanced(rewards, good, counted),
      "hacked_given_wrong": float(hacked.mean()) if hacked.size else None,
    }

  def _encode(
    self, rows: list[dataset.Example]
  ) -> tuple[list[dataset.Example], Demonstrations]:
    """(the examples that fit the limit of a response, their ids)."""
    limit = self._settings.rl.sampler.max_new_tokens
    steps = [row.response.split(arithmetic.SEPARATOR) for row in rows]
    responses = [
      encode_response(self.tokenizer, texts, finished=True) for texts in steps
    ]
    fits = [len(ids) <= limit for ids in responses]
    if not any(fits):
      raise ConfigError(
        f"rl.sampler.max_new_tokens={limit} has room for none of {len(rows)} "
        f"responses; the shortest has {min(map(len, responses))} tokens."
      )
    rows = [row for row, fit in zip(rows, fits, strict=True) if fit]
    responses = [ids for ids, fit in zip(responses, fits, strict=True) if fit]
    prompts = self.prm_prompt_encoder.encode(_problems(rows))
    tokens, mask = right_pad(responses, limit, self.tokenizer.pad_id)
    return rows, Demonstrations(prompts.tokens, prompts.mask, tokens, mask)

  def _prm_batch(self, data: Demonstrations) -> Demonstrations | PRMInputs:
    """What the PRM reads of responses, as `prm.score.separator` says."""
    config, encoder = self._settings.prm.score, self.prm_prompt_encoder
    if config.separator != "each":
      return data
    pairs = zip(data.prompt_tokens, data.prompt_mask, strict=True)
    new_tokens = self._settings.rl.sampler.max_new_tokens
    return each_step_inputs(
      self.tokenizer,
      [tokens[mask].tolist() for tokens, mask in pairs],
      split_texts(self.tokenizer, data.tokens, data.completion_mask),
      encoder.length + new_tokens + config.inserted_tokens,
      config.max_steps,
    )

  def _label(
    self, problems: list[str], data: Demonstrations
  ) -> tuple[np.ndarray, np.ndarray]:
    """(labels [n, S] by the checker, label_mask [n, S])."""
    return checker.label_rollout(
      self.tokenizer,
      problems,
      data.tokens,
      data.completion_mask,
      self._settings.prm.score.max_steps,
      self._settings.prm.score.read_end,
    )

  def _sample(
    self,
    spec: RunSpec,
    batches: Batches,
    params: Any,
    problems: list[Problem],
    stream: RandomStream,
  ) -> Demonstrations:
    """Samples one response to each problem; problems may repeat."""
    layout, count = spec.layouts.training, len(problems)
    generate = rollouts.make_generate(self.model, spec.sampler, 1, layout)
    key, shards = spec.key(stream), layout.row_shards
    rows = -(-min(SAMPLE_ROWS, count) // shards) * shards
    samples = []
    for first in range(0, count, rows):
      preemption.raise_received()
      # The last batch is filled up with the first problems: one shape only.
      batch = [problems[i % count] for i in range(first, first + rows)]
      rollout = generate(
        params, batches.encode_prompts(batch), jax.random.fold_in(key, first)
      )
      responses = Demonstrations(
        rollout.prompt_tokens,
        rollout.prompt_mask,
        rollout.tokens,
        rollout.completion_mask,
      )
      samples.append(read_everywhere(responses))
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *samples)


def _problems(rows: list[dataset.Example]) -> list[Problem]:
  """Converts examples to the records that every task has."""
  return [
    Problem(str(number), "arithmetic", row.problem, answer=str(row.answer))
    for number, row in enumerate(rows)
  ]
