"""The folder of a run: its config, its versions, and its lock."""

import contextlib
import fcntl
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from pure_jax.host import json_text
from pure_jax.host.atomic_files import (
  check_writable,
  is_left_over,
  remove,
  write_json_atomic,
)
from pure_jax.host.checkpoints.orbax_options import is_incomplete
from pure_jax.host.checkpoints.record import config_differences
from pure_jax.host.distributed import processes

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
STAGE_FOLDERS = ("sft", "prm", "rl")

PACKAGES = (
  "pure_jax",
  "array_record",
  "flax",
  "jax",
  "jaxlib",
  "ml_collections",
  "numpy",
  "optax",
  "orbax-checkpoint",
  "sentencepiece",
  "tensorflow-datasets",
  "transformers",
)


class WorkdirError(RuntimeError):
  """A working directory that cannot be used; the message says what to do."""


def prepare_workdir(
  path: str | os.PathLike,
  config: Mapping[str, Any],
  *,
  may_differ: Sequence[str] = (),
) -> pathlib.Path:
  """Creates the folder of a run, or accepts one with an equal config.

  ``config.json`` in the folder holds the config and the result of
  `collect_versions`, at the start and at each resume with other versions.

  Args:
    path: the folder; parents are created.
    config: the resolved config, JSON-like.
    may_differ: dotted names of fields that a resumed run may change.

  Returns:
    The absolute path of the folder.

  Raises:
    WorkdirError: if the folder cannot be created or written, or holds a run
      with another config.
  """
  folder = _create_folder(path)
  versions = collect_versions()
  history = [versions]
  stored = read_record(folder)
  if stored is not None:
    differing = config_differences(stored["config"], config, may_differ)
    if differing:
      raise WorkdirError(
        f"{folder} holds a run with another config:\n  "
        + "\n  ".join(differing)
        + "\nChoose another working directory, or restore those fields."
      )
    history = stored["versions"]
    if history[-1] != versions:
      history.append(versions)
  write_json_atomic(
    folder / CONFIG_FILE, {"config": config, "versions": history}
  )
  return folder


@contextlib.contextmanager
def open_workdir(
  path: str | os.PathLike,
  config: Mapping[str, Any],
  *,
  may_differ: Sequence[str] = (),
) -> Iterator[pathlib.Path]:
  """Locks the folder of a run, then prepares it as `prepare_workdir` does.

  Args:
    path: the folder; parents are created.
    config: the resolved config, JSON-like.
    may_differ: dotted names of fields that a resumed run may change.

  Yields:
    The absolute path of the folder.

  Raises:
    WorkdirError: as `prepare_workdir` and `lock_folder`.
  """
  folder = _create_folder(path)
  read_record(folder)  # Leaves no lock in a folder of something else.
  with lock_folder(folder):
    yield prepare_workdir(folder, config, may_differ=may_differ)


def _create_folder(path: str | os.PathLike) -> pathlib.Path:
  """Creates a folder that can be written; returns its absolute path."""
  if not os.fspath(path):
    raise WorkdirError("The working directory has no name: name a folder.")
  folder = pathlib.Path(path).absolute()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
  except OSError as error:
    raise WorkdirError(
      f"Cannot write to the working directory {folder}: {error}. "
      "Choose a folder that can be created and written."
    ) from error
  return folder


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[None]:
  """Keeps other processes from running in the same folder.

  The lock is released when the process ends, however it ends. Temporary files
  that a killed process left in a folder of a run are removed.

  Args:
    folder: an existing folder.

  Raises:
    WorkdirError: if another process holds the lock.
  """
  with (pathlib.Path(folder) / LOCK_FILE).open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise WorkdirError(
        f"Another process is running in {folder}: wait for it, or choose "
        "another working directory."
      ) from error
    with contextlib.suppress(WorkdirError):  # It is no folder of a run.
      if read_record(folder) is not None:
        _remove_left_over(pathlib.Path(folder))
    yield


def _remove_left_over(folder: pathlib.Path) -> None:
  """Removes what killed processes left in a folder that is locked.

  Folders with a lock of their own are left out: other runs, and prepared data
  sets. Unfinished checkpoints are removed only where runs have checkpoints.
  """
  remove(folder / processes.TOKEN_FILE)
  for name, folders, files in os.walk(folder):
    parent = pathlib.Path(name)
    in_stage = any(parent.is_relative_to(folder / s) for s in STAGE_FOLDERS)
    for path in [parent / child for child in (*folders, *files)]:
      if is_left_over(path) or (in_stage and is_incomplete(path)):
        remove(path)
    folders[:] = [
      child for child in folders if not (parent / child / LOCK_FILE).exists()
    ]


def read_record(folder: str | os.PathLike) -> dict[str, Any] | None:
  """Reads the config and the versions that `prepare_workdir` stored.

  Args:
    folder: folder of the run.

  Returns:
    ``config``, and the list ``versions``; None if the folder holds no run.

  Raises:
    WorkdirError: if ``config.json`` is damaged, or is not of a run.
  """
  path = pathlib.Path(folder) / CONFIG_FILE
  try:
    record = json_text.parse(path.read_bytes())
    parts = record if isinstance(record, dict) else {}
    config, versions = parts.get("config"), parts.get("versions")
    is_valid = isinstance(config, dict) and isinstance(versions, list)
    if not is_valid or not versions:
      raise ValueError("it has no config or no versions")
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (IsADirectoryError, ValueError) as error:
    raise WorkdirError(
      f"{path} is not the record of a run ({error}). Choose another working "
      "directory, or remove that file."
    ) from error
  return record


def collect_versions() -> dict[str, Any]:
  """Collects the versions and devices that results depend on.

  Starts the jax backend.

  Returns:
    A JSON-like dict: ``python``, ``platform``, ``packages`` (versions of the
    installed ones by name), ``backend``, ``devices`` (number by kind, over all
    processes), ``processes``, and ``commit`` of the source checkout: with
    ``+changes`` if tracked files were changed, None outside a checkout.
  """
  packages = {}
  for name in PACKAGES:
    try:
      packages[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  kinds = [device.device_kind for device in jax.devices()]
  return {
    "python": sys.version.split()[0],
    "platform": platform.platform(),
    "packages": packages,
    "backend": jax.default_backend(),
    "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    "processes": jax.process_count(),
    "commit": _source_commit(),
  }


def _source_commit() -> str | None:
  """Returns the commit of the checkout that tracks this file, if any."""

  def git(*arguments: str) -> str | None:
    try:
      done = subprocess.run(
        ["git", *arguments],
        cwd=pathlib.Path(__file__).parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
      )
    except OSError:
      return None
    return done.stdout.strip() if done.returncode == 0 else None

  # This file may be installed inside another project's repository.
  if git("ls-files", "--error-unmatch", pathlib.Path(__file__).name) is None:
    return None
  commit = git("rev-parse", "HEAD")
  if commit is None:
    return None
  changed = git("status", "--porcelain", "--untracked-files=no")
  return f"{commit}+changes" if changed else commit
