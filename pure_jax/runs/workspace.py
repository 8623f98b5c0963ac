"""What every stage of a run shares: settings, task, layout, folder.

The stages (`train_sft`, `train_prm`, `train_pure`) know what a run is about by
the interface `Task` alone: a language, problems, and who judges the answers.
`arithmetic_task` makes everything itself, `files_task` reads models and data
that the user names; `launch` opens either.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.checkpoints.manager import CheckpointError
from pure_jax.host.checkpoints.weights import load_tree, save_tree
from pure_jax.host.data import batches
from pure_jax.host.data.records import LabelledSolution, Problem
from pure_jax.host.distributed import processes, shared_rows
from pure_jax.host.logs import curves
from pure_jax.host.logs.metrics import MetricsWriter, NoWriter, SamplesWriter
from pure_jax.host.text.tokenization import PromptFormat, Tokenizer
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import abstract_params
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.settings.mesh import RLLayouts
from pure_jax.runs.settings.run import Settings
from pure_jax.training.score import ScoreConfig
from pure_jax.training.supervised import Demonstrations
from pure_jax.types import Prompts, SeparatorTable

# Fields a resumed run may change, and those a run may change that starts
# from another run's stages. Another mesh, kernels, or other parts that fit
# into its memory, change how sums are rounded.
MAY_DIFFER = (
  *("progress", "mesh", "kernels", "rl.iterations"),
  *("rl.rollout_mesh", "rl.reference_mesh", "rl.prm_mesh"),
  *("rl.micro_batches", "rl.rollout_parts"),
  *("rl.rollout_rows", "rl.rollout_chunk"),
  *("rl.old_logp", "rl.old_logp_check_every", "rl.old_logp_tolerance"),
)
MAY_DIFFER_FROM_START = ("progress", "mesh", "kernels", "rl", "start")


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """What the grader says of a batch of responses.

  Attributes:
    correct: [B] bool; False where the problem has no answer at all.
    unfinished: by name, [B] bool, where grading did not come to an end.
  """

  correct: np.ndarray
  unfinished: dict[str, np.ndarray]

  @property
  def metrics(self) -> dict[str, float]:
    """How often grading did not come to an end, by name."""
    return {name: float(rows.sum()) for name, rows in self.unfinished.items()}


@dataclasses.dataclass(frozen=True)
class LabelledResponses:
  """Responses with labelled steps: what a PRM learns from.

  Attributes:
    responses: n rows.
    labels: [n, S] int32, 1 good, 0 bad.
    label_mask: [n, S] bool, True where a step has a label.
  """

  responses: Demonstrations
  labels: np.ndarray
  label_mask: np.ndarray


class Task(Protocol):
  """A task, opened.

  Attributes:
    tokenizer: of policy and PRM.
    model: the policy's architecture.
    prm_model: the PRM's, which may be another; None where the run has none,
      for it learns from verdicts alone.
    prompt_format: how the policy is asked.
    prm_prompt_format: what the PRM reads before a response.
    prompt_tokens: columns of the policy's prompts (L).
    prm_prompt_tokens: columns of the PRM's.
    train: problems to train on.
    held_out: problems to evaluate on.
  """

  tokenizer: Tokenizer
  model: ModelConfig
  prm_model: ModelConfig | None
  prompt_format: PromptFormat
  prm_prompt_format: PromptFormat
  prompt_tokens: int
  prm_prompt_tokens: int
  train: Sequence[Problem]
  held_out: Sequence[Problem]

  def grade(
    self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
  ) -> Verdicts:
    """Judges answers.

    Args:
      problems: B problems.
      texts: B lists of step texts.
    """
    ...

  def is_vacuous(self, step: str) -> bool:
    """Whether a step claims nothing and concludes nothing.

    Args:
      step: its text.
    """
    ...

  def kind(self, problem: Problem, steps: Sequence[str]) -> str | None:
    """What kind of response this is, None where nobody can tell.

    Args:
      problem: what was asked.
      steps: texts of the response.
    """
    ...

  def start_policy(self, space: "Workspace") -> Any | None:
    """Weights of the policy to start from, None where it is to be trained.

    Args:
      space: the open run.
    """
    ...

  def start_prm(self, space: "Workspace") -> Any | None:
    """Weights of a finished PRM, None where it is to be trained.

    Args:
      space: the open run.
    """
    ...

  def demonstrations(self, space: "Workspace") -> Demonstrations:
    """Responses for the supervised start.

    Args:
      space: the open run.
    """
    ...

  def labelled(
    self, space: "Workspace", policy_params: Any
  ) -> LabelledResponses:
    """What the PRM is trained on.

    Args:
      space: the open run.
      policy_params: weights of the policy, to sample from.
    """
    ...

  def evaluate_prm(
    self, space: "Workspace", policy_params: Any, params: Any
  ) -> dict[str, float]:
    """How good a PRM is on held-out problems.

    Args:
      space: the open run.
      policy_params: weights of the policy, to sample from.
      params: weights of the PRM.
    """
    ...

  def close(self) -> None:
    """Ends what the task has started."""
    ...


@dataclasses.dataclass(frozen=True)
class Workspace:
  """An open run.

  Attributes:
    settings: the resolved config.
    workdir: this run's folder.
    start: the folder whose stages it starts from; often the same.
    layout: devices and rules of what is trained.
    rl_layouts: those of the other models of RL.
    task: language, problems and graders.
    table: which ids end a step, a constant of compiled functions.
    prm_model: the PRM's architecture, None in a run without one.
    sampler: how rollouts are drawn.
    metrics: writes metrics.jsonl and TensorBoard events, in process 0.
    samples: writes samples.jsonl, in process 0.
  """

  settings: Settings
  workdir: pathlib.Path
  start: pathlib.Path
  layout: sharding.Layout
  rl_layouts: RLLayouts
  task: Task
  table: SeparatorTable
  prm_model: ModelConfig | None
  sampler: SamplingConfig
  metrics: MetricsWriter | NoWriter
  samples: SamplesWriter | NoWriter

  @property
  def model(self) -> ModelConfig:
    """The policy's architecture."""
    return self.task.model

  @property
  def rl_model(self) -> ModelConfig:
    """The policy's in RL: with adapters, where those are what is trained."""
    return self.settings.rl.lora.of(self.model)

  @property
  def prm_score_config(self) -> ScoreConfig:
    """How the PRM is trained and evaluated: no guard for empty steps."""
    settings = self.settings
    return ScoreConfig(settings.rl.max_steps, settings.prm.separator)

  def encode_prompts(self, problems: Sequence[Problem]) -> Prompts:
    """Problems as the policy is asked, left-padded ids.

    All rows in every process, each of which encodes its share. They are as
    many as `put` takes.
    """
    task, mine = self.task, self.share(len(problems))
    encoded = self._encode(
      [problems[row] for row in mine], task.prompt_format, task.prompt_tokens
    )
    return self.gather(len(problems), encoded)

  def encode_prm_prompts(
    self, problems: Sequence[Problem | LabelledSolution]
  ) -> Prompts:
    """Problems as the PRM reads them, left-padded ids."""
    task = self.task
    return self._encode(
      problems, task.prm_prompt_format, task.prm_prompt_tokens
    )

  def _encode(
    self,
    problems: Sequence[Problem | LabelledSolution],
    prompt_format: PromptFormat,
    length: int,
  ) -> Prompts:
    """Problems in a format, as ids."""
    tokenizer = self.task.tokenizer
    ids = [
      tokenizer.encode(prompt_format.text(tokenizer, problem.problem))
      for problem in problems
    ]
    return Prompts(*batches.left_pad(ids, length, tokenizer.pad_id))

  def put_prm_prompts(self, problems: Sequence[Problem]) -> Prompts:
    """The same on the devices; each process encodes its rows."""
    return self.put_rows(
      len(problems),
      lambda rows: self.encode_prm_prompts([problems[row] for row in rows]),
    )

  def put(self, tree: Any) -> Any:
    """Host arrays [B, ...] onto the devices, rows split over the mesh."""
    (count,) = {len(leaf) for leaf in jax.tree.leaves(tree)}
    return self.put_rows(count, lambda rows: take(tree, rows))

  def put_rows(self, count: int, make: Callable[[np.ndarray], Any]) -> Any:
    """A batch on the devices, of which each process makes its rows.

    Args:
      count: B, divisible by the row shards.
      make: row numbers [b] -> pytree of host arrays [b, ...].

    Returns:
      The pytree, [B, ...], rows split over the mesh.
    """
    return shared_rows.make_rows(self._rows, count, make)

  def share(self, count: int) -> np.ndarray:
    """The rows of a batch [B] that this process reads and judges."""
    return shared_rows.shares(self._rows, count)[jax.process_index()]

  def gather(self, count: int, tree: Any) -> Any:
    """What each process knows of its `share`, [b, ...], as [B, ...] in all."""
    return shared_rows.gather_rows(self._rows, count, tree)

  @property
  def _rows(self) -> jax.sharding.NamedSharding:
    """How rows are split."""
    return sharding.batch_sharding(self.layout)

  def key(self, stage: int) -> jax.Array:
    """The random key of a stage, on every device."""
    key = jax.random.fold_in(jax.random.key(self.settings.seed), stage)
    return shared_rows.replicate(sharding.replicated(self.layout), key)

  def load_weights(self, stage: str, declared: Any) -> Any:
    """What a finished stage left, sharded as declared.

    Raises:
      CheckpointError: if it is gone or damaged.
    """
    folder = self.start / stage
    try:
      return load_weights(folder / "weights", declared, self.layout)
    except CheckpointError as error:
      raise CheckpointError(
        f"{error}\nFor a finished stage to leave its weights again, from its "
        f"own checkpoints where it has them, remove {folder / 'done.json'}."
      ) from error

  def finish_stage(self, stage: str, weights: Any, facts: dict) -> None:
    """Keeps a stage's weights, then marks it done."""
    save_tree(self.start / stage / "weights", weights)
    processes.on_process_zero(
      lambda: write_json_atomic(self.start / stage / "done.json", facts)
    )

  def draw_curves(self) -> None:
    """Draws what metrics.jsonl holds, all stages so far."""
    processes.on_process_zero(
      lambda: curves.plot_curves(
        self.workdir / "metrics.jsonl", self.workdir / "curves.png"
      )
    )

  @contextlib.contextmanager
  def lock_start(self) -> Iterator[None]:
    """Lets one run at a time make the stages of a start that several share.

    Raises:
      WorkdirError: if another one is at it, or has the folder for its own.
    """
    with contextlib.ExitStack() as opened:
      if self.start != self.workdir:  # Which is locked already.
        processes.on_process_zero(
          lambda: opened.enter_context(workdirs.locked(self.start))
        )
      yield

  def is_done(self, stage: str) -> bool:
    """Whether the stage is finished."""
    return processes.broadcast_from_zero(
      lambda: (self.start / stage / "done.json").exists()
    )

  @property
  def shows_progress(self) -> bool:
    """Whether this process draws bars: the first, if they are wanted."""
    return self.settings.progress and processes.is_process_zero()


def take(tree: Any, indices: np.ndarray) -> Any:
  """Some rows of host arrays.

  Args:
    tree: pytree of arrays [n, ...], such as `Demonstrations`.
    indices: [m] int, which.

  Returns:
    The same pytree, [m, ...].
  """
  return jax.tree.map(lambda x: np.asarray(x)[indices], tree)


def load_weights(
  folder: pathlib.Path, declared: Any, layout: sharding.Layout
) -> Any:
  """What `Workspace.finish_stage` saved.

  Args:
    folder: `weights` of a stage.
    declared: a `Weight` for each leaf.
    layout: devices and rules.

  Returns:
    The weights, sharded as declared.
  """
  abstract = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    abstract_params(declared),
    sharding.weight_shardings(declared, layout),
  )
  return load_tree(folder, abstract)
