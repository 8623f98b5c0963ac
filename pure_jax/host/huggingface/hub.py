"""Models and files of data sets on the Hugging Face hub, by their names.

`huggingface_hub` fetches them into its own cache (HF_HOME), with its own
progress bars. Of a model only safetensors, configs and tokenizer files are
fetched, no pickle and no code. Each file that was fetched is compared with the
hash that the hub says it has.

The hub is asked for a name each time, unless the name has a commit and the
cache has all of its files, with a tokenizer. If the hub cannot be
reached, the cache is used, and a line on stderr says so. Files are fetched one
after another in the calling thread, so that Ctrl-C takes effect at once. Whole
files stay in the cache; an interrupted one is fetched anew.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pure_jax.host.distributed import preemption
from pure_jax.host.huggingface import files
from pure_jax.host.huggingface.architectures import HuggingFaceError
from pure_jax.host.huggingface.config import CONFIG_FILE
from pure_jax.host.huggingface.hub_names import DATA_FILES, HubName
from pure_jax.host.logs import console

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors", re.ASCII)
_MOST_LISTED = 10  # Names of files in a message.


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """Files of a commit in the cache.

  Attributes:
    path: the folder of a model, or the file of a data set.
    commit: hash of the commit.
  """

  path: pathlib.Path
  commit: str


def fetch_model(
  name: HubName, commit: str | None = None, *, weights: bool = True
) -> Snapshot:
  """Fetches what is missing of a model.

  Args:
    name: its name.
    commit: the commit to take; None takes the one that the revision names now.
    weights: False leaves the safetensors out, for the tokenizer alone.

  Returns:
    The folder. It has config.json and, with `weights`, all weights.

  Raises:
    HuggingFaceError: if the hub has no such model, or no access to it is
      granted; if it has no config.json or no safetensors; if a file is damaged;
      if the hub cannot be reached and the cache does not have all of it.
    OSError: if the cache cannot be written.
  """

  return _fetch(
    name,
    commit,
    CONFIG_FILE,
    lambda listed: _model_files(name, listed, weights=weights),
    lambda folder: not weights or _has_weights(folder),
    _has_tokenizer,
  )


def fetch_file(name: HubName, path: str, commit: str | None = None) -> Snapshot:
  """Fetches a file of a data set, unless the cache has it.

  Args:
    name: the name of the data set.
    path: of the file in the data set.
    commit: the commit to take; None takes the one that the revision names now.

  Returns:
    The file.

  Raises:
    HuggingFaceError: as for `fetch_model`, and if the data set has no such
      file; the message lists those that it has.
    OSError: if the cache cannot be written.
  """

  def choose(listed: Collection[str]) -> list[str]:
    if path not in listed:
      known = [file for file in listed if file.endswith(DATA_FILES)]
      raise HuggingFaceError(
        f"{name.description} has no file {path}. It has {_listing(known)}."
      )
    return [path]

  folder = _fetch(
    name, commit, path, choose, lambda folder: True, lambda folder: True
  )
  return dataclasses.replace(folder, path=folder.path / path)


class _Unreachable(Exception):  # noqa: N818 -- a reason to use the cache
  """The hub does not answer, or must not be asked; the text says why."""


def _fetch(
  name: HubName,
  commit: str | None,
  first: str,
  choose: Callable[[Collection[str]], list[str]],
  is_complete: Callable[[pathlib.Path], bool],
  has_options: Callable[[pathlib.Path], bool],
) -> Snapshot:
  """Fetches files of a commit; `path` of the result is their folder.

  Args:
    name: the name.
    commit: the commit to take, or None.
    first: the file that is fetched first.
    choose: the files to fetch, in order, of those of the repository.
    is_complete: whether a folder of the cache that has `first` has all files
      without which it cannot be used.
    has_options: whether it also has what some repositories lack. Of a commit
      without it, the hub is asked.
  """
  revision = commit or name.revision or "main"
  cached = _cached(name, first, revision)
  if cached is not None and not is_complete(cached.path):
    cached = None
  is_commit = _COMMIT.fullmatch(revision)
  if cached is not None and is_commit and has_options(cached.path):
    return cached
  try:
    info = _describe(name, revision)
  except _Unreachable as error:
    if cached is None:
      raise HuggingFaceError(
        f"{error}, and the cache lacks {name.description}, or a part of it, at "
        f"{revision}: let this machine reach the hub, or copy the files here "
        "and name them by their path."
      ) from error
    console.tell(
      f"{error}: {name.description} is taken from the cache, commit "
      f"{cached.commit}."
    )
    return cached
  listed = {sibling.rfilename: sibling for sibling in info.siblings}
  for file in choose(listed):
    preemption.raise_received()
    _fetch_file(name, info.sha, listed[file])
  # Notes that the cache has this commit of the branch, now that it is whole.
  _download(name, first, revision)
  snapshot = _cached(name, first, info.sha)
  if snapshot is None or not is_complete(snapshot.path):
    raise HuggingFaceError(
      f"{name.description} lacks files that its {files.INDEX_FILE} names: name "
      "another revision or id."
    )
  return snapshot


def _cached(name: HubName, first: str, revision: str) -> Snapshot | None:
  """The folder in the cache that has a file of a revision."""
  # Imported late: a run without names on the hub does not need it.
  import huggingface_hub

  path = huggingface_hub.try_to_load_from_cache(
    name.repo_id, first, revision=revision, repo_type=name.kind
  )
  if not isinstance(path, str):
    return None
  folder = pathlib.Path(path).parents[first.count("/")]
  return Snapshot(folder, folder.name)


def _describe(name: HubName, revision: str) -> Any:
  """Asks the hub for the commit of a revision, and for its files."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return huggingface_hub.HfApi().repo_info(
      name.repo_id, repo_type=name.kind, revision=revision, files_metadata=True
    )
  except errors.OfflineModeIsEnabled as error:
    raise _Unreachable("HF_HUB_OFFLINE is set") from error
  except errors.HfHubHTTPError as error:
    raise _refusal(name, revision, error) from error
  # The HTTP client has errors of its own; versions differ in the client.
  except Exception as error:
    preemption.raise_received()  # The client may have lost the signal.
    raise _Unreachable(
      f"the Hugging Face hub cannot be reached ({_reason(error)})"
    ) from error


def _refusal(name: HubName, revision: str, error: Any) -> Exception:
  """The error that says what the hub refuses, and what to do."""
  from huggingface_hub import errors

  log_in = "log in with `hf auth login`, or set HF_TOKEN"
  match error:
    case errors.GatedRepoError():
      reason = (
        f"{name.description} is gated: ask for access on its page, and {log_in}"
      )
    case errors.RepositoryNotFoundError():
      reason = (
        f"{name.description} does not exist, or is private: correct the id, or "
        f"{log_in}"
      )
    case errors.RevisionNotFoundError():
      reason = (
        f"{name.description} has no revision {revision}: name a branch, a tag "
        "or a commit that it has"
      )
    case _ if error.response.status_code in (408, 429, *range(500, 600)):
      return _Unreachable(
        f"the Hugging Face hub does not answer ({_reason(error)})"
      )
    case _:
      reason = f"{name.description} is refused: {_reason(error)}"
  return HuggingFaceError(f"{reason}.")


def _fetch_file(name: HubName, commit: str, listed: Any) -> None:
  """Fetches a file unless the cache has it, and compares its hash.

  The client compares its size alone.
  """
  file = listed.rfilename
  if _cached(name, file, commit) is not None:
    return
  path = pathlib.Path(_download(name, file, commit))
  if listed.lfs is not None:
    expected, digest = listed.lfs.sha256, hashlib.sha256()
  else:  # git hashes the size as well.
    expected, digest = listed.blob_id, hashlib.sha1()
    digest.update(b"blob %d\0" % path.stat().st_size)
  with path.open("rb") as opened:
    hashlib.file_digest(opened, lambda: digest)
  if digest.hexdigest() != expected:
    # The cache has links to files.
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise HuggingFaceError(
      f"{file} of {name.description} is damaged: its hash is not {expected}. "
      "It is removed from the cache, and the same command fetches it again."
    )


def _download(name: HubName, file: str, revision: str) -> str:
  """Fetches a file unless the cache has it; its path."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return huggingface_hub.hf_hub_download(
      name.repo_id, file, repo_type=name.kind, revision=revision
    )
  except Exception as error:
    preemption.raise_received()  # The client may have lost the signal.
    if isinstance(error, OSError) and error.errno is not None:
      raise  # Of the file system.
    reason: Exception = error
    if isinstance(error, errors.HfHubHTTPError):
      reason = _refusal(name, revision, error)
    if isinstance(reason, HuggingFaceError):
      raise reason from error
    raise HuggingFaceError(
      f"{file} of {name.description} was not fetched to its end "
      f"({_reason(reason)}): the same command goes on, and whole files stay in "
      "the cache."
    ) from error


def _model_files(
  name: HubName, listed: Collection[str], *, weights: bool
) -> list[str]:
  """The files of a model that are read, weights last."""
  if CONFIG_FILE not in listed:
    raise HuggingFaceError(
      f"{name.description} has no {CONFIG_FILE}: it is no model that "
      "transformers saved. Name another one."
    )
  # Files in subfolders are of other programs.
  own = sorted(file for file in listed if "/" not in file)
  shards = [file for file in own if _SHARD.fullmatch(file)]
  is_single = files.SINGLE_FILE in own
  chosen = [
    file
    for file in own
    if file.endswith(files.TOKENIZER_FILES) and file != files.INDEX_FILE
  ]
  if not weights:
    return chosen
  if is_single:
    return [*chosen, files.SINGLE_FILE]
  if files.INDEX_FILE in own and shards:
    return [*chosen, files.INDEX_FILE, *shards]
  pickles = [file for file in own if file.endswith(files.PICKLES)]
  advice = "Name another revision or id"
  if pickles:
    advice = (
      f"It has {_listing(pickles)}: pickled weights can run code and are not "
      f"fetched. {advice}, or convert them with save_pretrained of transformers"
    )
  raise HuggingFaceError(
    f"{name.description} has no weights as safetensors. {advice}."
  )


def _has_weights(folder: pathlib.Path) -> bool:
  """Whether a folder has all weights that it should have."""
  if (folder / files.SINGLE_FILE).exists():
    return True
  index = folder / files.INDEX_FILE
  return index.exists() and all(
    (folder / shard).exists() for shard in files.read_index(index).values()
  )


def _has_tokenizer(folder: pathlib.Path) -> bool:
  """Whether a folder has a vocabulary: another program may fetch no more."""
  return any((folder / file).exists() for file in files.VOCABULARIES)


def _listing(names: Sequence[str]) -> str:
  """Some names in a message."""
  shown = ", ".join(sorted(names)[:_MOST_LISTED]) or "none that can be read"
  more = len(names) - _MOST_LISTED
  return f"{shown} and {more} more" if more > 0 else shown


def _reason(error: BaseException) -> str:
  """The beginning of an error message, in one line."""
  text = " ".join(str(error).split())[:300]
  return text.rstrip(".") or type(error).__name__
