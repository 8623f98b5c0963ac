"""What the folder of a run says about a model that it trained.

A card may be published, so facts have no paths of this machine: of a folder or
a file only the name.
"""

import dataclasses
import functools
import operator
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from pure_jax.host.logs.metrics import MetricsError, read_metrics
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.rl.roll_backs import read_record as read_roll_backs
from pure_jax.runs.saved_run import SavedRun

Model = Literal["policy", "prm"]

# Fields of the config that say how a model was trained, and how it is prompted.
_OF_BOTH = ("seed", "files.model.param_dtype", "files.model.compute_dtype")
_OF_PRM = (
  *("files.prm_prompt_format", "prm.score.separator", "prm.extra_layers"),
  *("files.labelled_format", "files.neutral_labels", "prm.lora.rank"),
  *("prm.batch_size", "prm.head_steps", "prm.head_optim.learning_rate"),
  *("prm.full_steps", "prm.full_optim.learning_rate"),
)
_OF_POLICY = (
  *("files.prompt_format", "files.response_prefix", "files.eos_token"),
  *("rl.credit.form", "rl.credit.baseline", "rl.credit.process_coef"),
  *("rl.credit.verifiable_coef", "rl.credit.kl_coef", "rl.loss.kl_coef"),
  *("rl.iterations", "rl.prompts", "rl.samples_per_prompt"),
  *("rl.sampler.temperature", "rl.sampler.max_new_tokens"),
  *("rl.optim.learning_rate", "rl.lora.rank"),
)
# Metrics of an evaluation of the policy; those of benchmarks have a slash.
_METRICS = (
  *("accuracy", "greedy_accuracy", "hacked_given_wrong", "response_tokens"),
  *("truncated", "repetition"),
)
# Roles of data that a model is trained on, of those in `_sources`.
_TRAINING_DATA = ("problems", "labelled solutions")
_NO_METRIC = ("stage", "step")


@dataclasses.dataclass(frozen=True)
class Source:
  """A model or a file that a run was given.

  Attributes:
    role: what it was for.
    kind: "model" or "dataset".
    name: its id on the Hugging Face hub, with the path of a file but without
      revision, or its name on this machine.
    repo: ORG/NAME on the hub; None if it is not from there.
    commit: its commit there, or None.
    is_training_data: whether a model was trained on it; of a data set.
  """

  role: str
  kind: str
  name: str
  repo: str | None = None
  commit: str | None = None
  is_training_data: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The last evaluation of a model before it was exported.

  Attributes:
    step: the iteration of RL, or the update of the PRM.
    metrics: values by name; None where there is none.
    first: the same before training; empty for a PRM.
  """

  step: int
  metrics: Mapping[str, float | None]
  first: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a card says about a model.

  Attributes:
    model: which model of the run.
    iteration: of RL, after which the policy was saved; None for a PRM.
    rewards: of RL: "prm", "prm+vr" or "vr".
    roll_backs: how often an alarm rolled RL back; 0 for a PRM.
    sources: what the run was given.
    settings: values by the names of the config's fields.
    evaluation: None if the log of the run has none that can be read.
    held_out: limit on held-out problems of an evaluation of RL.
    versions: what the run last started with, by name.
  """

  model: Model
  iteration: int | None
  rewards: str
  roll_backs: int
  sources: tuple[Source, ...]
  settings: Mapping[str, Any]
  evaluation: Evaluation | None
  held_out: int
  versions: Mapping[str, str]


def collect_facts(run: SavedRun, model: Model, iteration: int | None) -> Facts:
  """Collects the facts about a model of a run.

  Args:
    run: a run on models and data that the user named.
    model: which model.
    iteration: of the policy's checkpoint; None for a PRM.

  Raises:
    WorkdirError: if the run's config.json is damaged.
  """
  record = workdirs.read_record(run.workdir)
  if record is None:
    raise workdirs.WorkdirError(f"{run.workdir} is not the workdir of a run.")
  config = record["config"]
  names = (*_OF_BOTH, *(_OF_POLICY if model == "policy" else _OF_PRM))
  # The PRM may be that of another run, from which this one started.
  log = run.workdir if model == "policy" else run.start
  try:
    versions = _versions(record["versions"][-1])
  except (KeyError, TypeError, AttributeError) as error:
    raise workdirs.WorkdirError(
      f"{run.workdir / workdirs.CONFIG_FILE} is damaged: it has no versions."
    ) from error
  return Facts(
    model=model,
    iteration=iteration,
    rewards=run.settings.rl.reward_mode,
    roll_backs=len(read_roll_backs(run.workdir)) if model == "policy" else 0,
    sources=tuple(_sources(config, model)),
    settings={
      name: functools.reduce(operator.getitem, name.split("."), config)
      for name in names
    },
    evaluation=_evaluation(log, model, iteration),
    held_out=run.settings.rl.eval_prompts,
    versions=versions,
  )


def _versions(recorded: Mapping[str, Any]) -> dict[str, str]:
  """The versions that `workdir.collect_versions` recorded, as texts."""
  devices = [f"{count} x {kind}" for kind, count in recorded["devices"].items()]
  return {
    "commit of pure_jax": str(recorded["commit"] or "not known"),
    "python": str(recorded["python"]),
    **{name: str(version) for name, version in recorded["packages"].items()},
    "devices": ", ".join(devices),
  }


def _sources(config: Mapping[str, Any], model: Model) -> list[Source]:
  """What a run was given for a model."""
  files = config["files"]
  # Commits by what is on the hub: "models/ORG/NAME@REVISION".
  commits = config.get("commits") or {}
  if files["random_model"] is not None:
    name = f"a tiny random model ({files['random_model']})"
    return [Source("base model", "model", name)]
  named = [("base model", "model", files["policy"])]
  if model == "policy":
    weights = config["rl"]["credit"]["process_coef"]
    if weights > 0 and files["prm"] is not None:
      named.append(("process reward model", "model", files["prm"]))
    named += [
      ("problems", "dataset", files["train"]),
      ("held-out problems", "dataset", files["held_out"]),
      *(
        (f"benchmark {name}", "dataset", benchmark["file"])
        for name, benchmark in sorted(files["benchmarks"].items())
      ),
    ]
  if model == "prm" or files["prm"] is None:
    named.append(("labelled solutions", "dataset", files["labelled"]))
  return [
    _source(role, kind, text, commits)
    for role, kind, text in named
    if text is not None
  ]


def _source(
  role: str, kind: str, text: str, commits: Mapping[str, str]
) -> Source:
  """Reads a text of the config: an id on the hub, or a path."""
  name, _, revision = text.partition("@")
  repo = "/".join(name.split("/")[:2])
  commit = commits.get(f"{kind}s/{repo}" + (f"@{revision}" if revision else ""))
  if commit is None:
    name, repo = pathlib.PurePath(text).name or "a folder", None
  return Source(role, kind, name, repo, commit, role in _TRAINING_DATA)


def _evaluation(
  folder: pathlib.Path, model: Model, iteration: int | None
) -> Evaluation | None:
  """The last evaluation of a model, with what an evaluation of it measures."""
  try:
    rows = read_metrics(folder, "rl_eval" if model == "policy" else "prm_eval")
  except MetricsError:
    return None
  if model == "prm":
    return _of_rows(rows[-1:], None)
  rows = [row for row in rows if row["step"] <= iteration]
  names = {name for row in rows for name in row if "/" in name}
  return _of_rows(rows, (*_METRICS, *sorted(names)))


def _of_rows(
  rows: list[dict[str, Any]], names: tuple[str, ...] | None
) -> Evaluation | None:
  """The evaluation of the last row; the first is before training."""
  if not rows:
    return None
  first, last = rows[0], rows[-1]
  if names is None:
    names = tuple(name for name in last if name not in _NO_METRIC)
  before = first if first["step"] == 0 and len(rows) > 1 else {}
  return Evaluation(
    step=last["step"],
    metrics={name: last[name] for name in names if name in last},
    first={name: before[name] for name in names if name in before},
  )
