"""Where the models and data of a config are: on this machine, or on the hub.

A text that is the path of an existing folder (a model) or file (data) stands
for it. Any other text must be an id of the Hugging Face hub:

* a model: ORG/NAME or ORG/NAME@REVISION;
* a file: ORG/NAME/PATH or ORG/NAME/PATH@REVISION;
* the file that `formats.public` has for the format and the use: ORG/NAME or
  ORG/NAME@REVISION.

What is missing here is fetched, see `host.huggingface.hub`.

A run records the commit of each id (`commits` in config.json), and takes it
again when it is resumed, even if the branch has moved on. Processes of one run
take the commits of process 0, which fetches first. Then each of the others
fetches what its own cache lacks: nothing if they share one.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pure_jax.host.data.formats.public import PUBLIC
from pure_jax.host.distributed import processes
from pure_jax.host.huggingface import HuggingFaceError, hub, hub_names
from pure_jax.runs import workdir as workdirs
from pure_jax.runs.settings.checks import ConfigError
from pure_jax.runs.settings.evaluation import (
  DataSettings,
  EvaluatePRMSettings,
  EvaluationSettings,
)
from pure_jax.runs.settings.files import Benchmarks, FilesSettings

COMMITS = "commits"  # Field of a recorded config.
# Hashes by `HubName.key`.
Commits = dict[str, str]
_Settings = TypeVar("_Settings")


class Locator:
  """Finds models and files, and notes the commits of those on the hub.

  Attributes:
    commits: of the names that were resolved on the hub.
  """

  def __init__(self, known: Mapping[str, str]):
    """Starts with the commits that names stand for already."""
    self._known = known
    self.commits: Commits = {}

  def model(self, field: str, text: str, *, weights: bool = True) -> str:
    """The folder of a model.

    Args:
      field: name of the config's field, for messages.
      text: a folder, or an id of the hub.
      weights: False needs its tokenizer alone.

    Raises:
      ConfigError: if the text is neither, or the model cannot be fetched.
    """
    if pathlib.Path(text).is_dir():
      return text
    name = hub_names.parse_model(text)
    if name is None:
      raise ConfigError(
        f"{field}={text} is no folder, and no id of a model on the Hugging "
        "Face hub, which is ORG/NAME or ORG/NAME@REVISION."
      )
    return self._fetch(
      f"{field}={text} is no folder here, and",
      name,
      lambda commit: hub.fetch_model(name, commit, weights=weights),
    )

  def data(
    self, field: str, text: str, row_format: str, *, for_training: bool = False
  ) -> str:
    """The file of a data set.

    Args:
      field: name of the config's field, for messages.
      text: a file, or an id of the hub.
      row_format: name of the format of its rows.
      for_training: whether it is trained on.

    Raises:
      ConfigError: if the text is neither, does not say which file is meant, or
        names a data set without a file for this use; if the file cannot be
        fetched.
    """
    if pathlib.Path(text).exists():
      return text
    name = hub_names.parse_data(text)
    if name is None:
      raise ConfigError(
        f"{field}={text} is no file, and no id of a data set on the Hugging "
        "Face hub, which is ORG/NAME or ORG/NAME/PATH, with or without "
        "@REVISION."
      )
    path, public = name.path, PUBLIC.get(row_format)
    if path is None and public is not None:
      path = public.file(for_training=for_training)
    if path is None:
      known = ("PATH",) if public is None else public.files()
      examples = ", ".join(f"{name.repo_id}/{file}" for file in known)
      why = f"it does not say which file is meant: name it, as in {examples}."
      if public is not None and (for_training or not public.parts):
        use = "train" if for_training else "evaluate"
        why = (
          f"it has no file to {use} on. To {use} on another of its files all "
          f"the same, name that file, as in {examples}."
        )
      raise ConfigError(
        f"{field}={text} is no file here, and as an id of the Hugging Face hub "
        f"{why}"
      )
    return self._fetch(
      f"{field}={text} is no file here, and",
      name,
      lambda commit: hub.fetch_file(name, path, commit),
    )

  def _fetch(
    self,
    beginning: str,
    name: hub_names.HubName,
    fetch: Callable[[str | None], hub.Snapshot],
  ) -> str:
    """Fetches a name at its commit; `beginning` is that of messages."""
    commit = self.commits.get(name.key, self._known.get(name.key))
    try:
      snapshot = fetch(commit)
    except HuggingFaceError as error:
      raise ConfigError(f"{beginning} {error}") from error
    self.commits[name.key] = snapshot.commit
    return str(snapshot.path)


def locate_files(files: FilesSettings, locator: Locator) -> FilesSettings:
  """Finds the models and data of a training run.

  Args:
    files: settings as the user wrote them.
    locator: finds them.

  Returns:
    The settings with paths in place of names on the hub.

  Raises:
    ConfigError: if something that is named cannot be found.
  """
  paths: dict[str, Any] = {
    field: locator.model(f"files.{field}", text)
    for field in ("policy", "prm")
    if (text := getattr(files, field)) is not None
  }
  for field, (text, row_format, _) in files.sources().items():
    if text is not None:
      paths[field] = locator.data(
        f"files.{field}", text, row_format, for_training=field != "held_out"
      )
  paths["benchmarks"] = _locate_benchmarks(
    "files.benchmarks", files.benchmarks, locator
  )
  return dataclasses.replace(files, **paths)


def _locate_benchmarks(
  field: str, benchmarks: Benchmarks, locator: Locator
) -> Benchmarks:
  """Finds the files of the benchmarks that have one."""
  return {
    name: benchmark
    if benchmark.file is None
    else dataclasses.replace(
      benchmark,
      file=locator.data(
        f"{field}.{name}.file", benchmark.file, benchmark.format
      ),
    )
    for name, benchmark in benchmarks.items()
  }


def locate_evaluation(
  settings: EvaluationSettings, locator: Locator
) -> EvaluationSettings:
  """Finds the models and data of an evaluation of a policy.

  Args:
    settings: settings as the user wrote them.
    locator: finds them.

  Returns:
    The settings with paths in place of names on the hub.

  Raises:
    ConfigError: if something that is named cannot be found.
  """
  models = {
    field: locator.model(f"config.{field}", text)
    for field in ("policy", "prm")
    if (text := getattr(settings, field)) is not None
  }
  benchmarks = _locate_benchmarks(
    "config.benchmarks", settings.benchmarks, locator
  )
  return dataclasses.replace(settings, benchmarks=benchmarks, **models)


def locate_prm_evaluation(
  settings: EvaluatePRMSettings, locator: Locator
) -> EvaluatePRMSettings:
  """Finds the models and data of an evaluation of a PRM.

  Args:
    settings: settings as the user wrote them.
    locator: finds them.

  Returns:
    The settings with paths in place of names on the hub.

  Raises:
    ConfigError: if something that is named cannot be found.
  """
  models = {
    field: locator.model(f"config.{field}", text, weights=field == "prm")
    for field in ("prm", "tokenizer")
    if (text := getattr(settings, field)) is not None
  }
  data = tuple(_locate_labelled(item, locator) for item in settings.data)
  return dataclasses.replace(settings, data=data, **models)


def _locate_labelled(data: DataSettings, locator: Locator) -> DataSettings:
  """Finds the files of a data set of labelled solutions.

  Problems that a training run holds out are in the file that it trains on.
  """
  field, problems = f"data.{data.name}", data.problems
  if problems is not None:
    problems = locator.data(f"{field}.problems", problems, data.problems_format)
  file = locator.data(
    f"{field}.file",
    data.file,
    data.format,
    for_training=data.held_out_one_in is not None,
  )
  return dataclasses.replace(data, file=file, problems=problems)


def recorded_commits(*folders: str | os.PathLike) -> Commits:
  """Reads the commits that runs have recorded.

  Args:
    *folders: workdirs, which need not exist. The first that has a commit for a
      name counts.

  Raises:
    WorkdirError: if a record is damaged.
  """
  commits: Commits = {}
  for folder in reversed(folders):
    record = workdirs.read_record(folder)
    stored = {} if record is None else record["config"].get(COMMITS, {})
    if not isinstance(stored, dict) or not all(
      isinstance(commit, str) for commit in stored.values()
    ):
      raise workdirs.WorkdirError(
        f"{pathlib.Path(folder) / workdirs.CONFIG_FILE} is damaged: {COMMITS} "
        "must be a group of texts."
      )
    commits |= stored
  return commits


def locate(
  find: Callable[[_Settings, Locator], _Settings],
  settings: _Settings,
  *folders: str | os.PathLike,
) -> tuple[_Settings, Commits]:
  """Finds what settings name, at the same commits in all processes.

  Every process must call it.

  Args:
    find: `locate_files`, or another function of this module like it.
    settings: settings as the user wrote them.
    *folders: workdirs whose recorded commits are taken, see
      `recorded_commits`.

  Returns:
    (the settings with paths, the commits of the names on the hub).

  Raises:
    ConfigError: if something that is named cannot be found.
    ProcessesError: in the other processes, if process 0 fails.
    WorkdirError: if a record is damaged.
  """

  def find_at(known: Commits) -> tuple[_Settings, Commits]:
    locator = Locator(known)
    return find(settings, locator), locator.commits

  located = processes.on_process_zero(
    lambda: find_at(recorded_commits(*folders))
  )
  commits = processes.broadcast_from_zero(lambda: located[1])
  return located or find_at(commits)
