"""The interface between a run and its task: tokenizer, data, graders."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pure_jax.host.data.records import Problem
from pure_jax.host.text.tokenization import Tokenizer
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.runs.batches import Batches, PromptEncoder
from pure_jax.runs.evaluation.benchmarks import Benchmark
from pure_jax.runs.spec import RunSpec
from pure_jax.training.supervised import Demonstrations
from pure_jax.types import PRMInputs


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """The grader's verdicts on a batch of responses.

  Attributes:
    correct: [B] bool; False if the problem has no answer.
    unfinished: by reason, [B] bool, True where grading did not finish.
  """

  correct: np.ndarray
  unfinished: dict[str, np.ndarray]

  @property
  def metrics(self) -> dict[str, float]:
    """The number of responses whose grading did not finish, by reason."""
    return {name: float(rows.sum()) for name, rows in self.unfinished.items()}


@dataclasses.dataclass(frozen=True)
class LabelledResponses:
  """Responses with labelled steps: training data of a PRM.

  Attributes:
    responses: n responses; `PRMInputs` if every step is encoded by itself.
    labels: [n, S] int32, 1 for a good step, 0 for a bad one.
    label_mask: [n, S] bool, True where a step has a label.
    metrics: facts about the data, logged as stage ``prm_data``; may be empty.
  """

  responses: Demonstrations | PRMInputs
  labels: np.ndarray
  label_mask: np.ndarray
  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def tokens_per_response(self) -> float:
    """Mean number of tokens; with prompts if they are part of the inputs."""
    if isinstance(self.responses, PRMInputs):
      return self.responses.mask.sum(1).mean()
    return self.responses.completion_mask.sum(1).mean()


class Task(Protocol):
  """An open task. A task that inherits from it defines what its runs use.

  Attributes:
    tokenizer: of the policy, and of labelled solutions.
    model: the policy's architecture.
    prm_model: the PRM's architecture, which may differ from the policy's; None
      in a run without a PRM, which learns from outcome rewards only.
    prompt_encoder: makes the policy's prompts.
    prm_prompt_encoder: makes the PRM's prompts.
    train: problems to train on.
    held_out: problems to evaluate on.
    benchmarks: further problems that RL evaluates on.
  """

  tokenizer: Tokenizer
  model: ModelConfig
  prm_model: ModelConfig | None
  prompt_encoder: PromptEncoder
  prm_prompt_encoder: PromptEncoder
  train: Sequence[Problem]
  held_out: Sequence[Problem]
  benchmarks: Sequence[Benchmark] = ()

  def grade(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> Verdicts:
    """Grades answers."""
    raise NotImplementedError

  def find_answer(self, texts: Sequence[str]) -> str | None:
    """The answer that a response gives, as it is graded; None without one."""
    raise NotImplementedError

  def is_vacuous(self, step: str) -> bool:
    """Whether a step neither claims nor concludes anything."""
    raise NotImplementedError

  def step_labels(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> list[list[int | None]]:
    """Labels the steps of responses by a checker: 1 (good), 0 (bad) or None."""
    raise NotImplementedError

  def kind(self, problem: Problem, steps: Sequence[str]) -> str | None:
    """The kind of a response; None if the task cannot tell."""
    return None

  def start_policy(self, layout: sharding.Layout) -> Any | None:
    """Weights the policy starts from; None if the run has to train them."""
    return None

  def start_prm(self, layout: sharding.Layout) -> Any | None:
    """Weights of a finished PRM; None if the run has to train them."""
    return None

  def demonstrations(self) -> Demonstrations:
    """Responses for the supervised start."""
    raise NotImplementedError

  def labelled(
    self, spec: RunSpec, batches: Batches, policy_params: Any
  ) -> LabelledResponses:
    """Training data of the PRM; the policy may be sampled for it."""
    raise NotImplementedError

  def evaluate_prm(
    self, spec: RunSpec, batches: Batches, policy_params: Any, params: Any
  ) -> dict[str, float | None]:
    """Metrics of a PRM on held-out problems; the policy may be sampled.

    A metric is None if no step or response counts, or a reward is not finite.
    """
    raise NotImplementedError

  def close(self) -> None:
    """Closes the resources of the task, if it has some."""
