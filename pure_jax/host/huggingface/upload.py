"""Uploads the folder of a model to the Hugging Face hub.

`huggingface_hub` does it, with the token of `hf auth login` or HF_TOKEN. All
files go into one commit, so that nobody finds half a model.
"""

import pathlib
from typing import Any

from pure_jax.host.distributed import preemption
from pure_jax.host.huggingface.architectures import HuggingFaceError

# Suffixes of an earlier model's files, which transformers would load with the
# new ones.
_STALE = (".safetensors", ".json", ".jinja", ".model")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def check_upload(repo_id: str) -> None:
  """Checks what can be checked before there is a folder, without the network.

  Args:
    repo_id: ORG/NAME on the hub.

  Raises:
    HuggingFaceError: if it is no such name, if there is no token, or if
      HF_HUB_OFFLINE is set.
  """
  # Imported late: a run without the hub does not need it.
  import huggingface_hub
  from huggingface_hub import constants
  from huggingface_hub.errors import HFValidationError
  from huggingface_hub.utils import validate_repo_id

  try:
    validate_repo_id(repo_id)
    reason = "" if repo_id.count("/") == 1 else "it must be ORG/NAME"
  except HFValidationError as error:
    reason = _reason(error)
  if reason:
    raise HuggingFaceError(
      f"{repo_id!r} is no id of a model on the Hugging Face hub: {reason}."
    )
  if constants.HF_HUB_OFFLINE:
    raise HuggingFaceError(
      "HF_HUB_OFFLINE is set, and an upload needs the Hugging Face hub: unset "
      "it."
    )
  if huggingface_hub.get_token() is None:
    raise HuggingFaceError(
      f"There is no token for the Hugging Face hub: {_LOG_IN}."
    )


def upload_model(
  folder: pathlib.Path, repo_id: str, message: str, *, private: bool
) -> str:
  """Uploads the files of a folder as one commit; makes the repository.

  Files of weights, configs and tokenizers that an existing repository has, and
  the folder does not, are removed in this commit.

  Args:
    folder: the folder. Folders in it are not uploaded.
    repo_id: ORG/NAME on the hub.
    message: of the commit.
    private: whether the repository is private. One that exists stays as it is.

  Returns:
    The address of the repository.

  Raises:
    HuggingFaceError: if the hub refuses or cannot be reached, or if an existing
      repository is public and `private` is asked for. The message says what to
      do. The repository has all files or none.
  """
  import huggingface_hub
  from huggingface_hub import errors

  api = huggingface_hub.HfApi()
  try:
    url = api.create_repo(repo_id, private=private or None, exist_ok=True)
    info = api.repo_info(repo_id)
    if private and not info.private:
      raise HuggingFaceError(
        f"{repo_id} exists and is public: make it private on its page, or "
        "choose another name."
      )
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    stale = [
      sibling.rfilename
      for sibling in info.siblings
      if sibling.rfilename.endswith(_STALE)
      and "/" not in sibling.rfilename
      and sibling.rfilename not in names
    ]
    api.create_commit(
      repo_id,
      [
        *(
          huggingface_hub.CommitOperationAdd(name, folder / name)
          for name in names
        ),
        *(huggingface_hub.CommitOperationDelete(name) for name in stale),
      ],
      commit_message=message,
    )
  except HuggingFaceError:
    raise
  except MemoryError:
    raise
  except errors.HfHubHTTPError as error:
    raise HuggingFaceError(_refusal(repo_id, error)) from error
  # The HTTP client has errors of its own; versions differ in the client.
  except Exception as error:
    preemption.raise_received()  # The client may have lost the signal.
    cause: BaseException = error.__cause__ or error
    if isinstance(cause, errors.HfHubHTTPError):
      raise HuggingFaceError(_refusal(repo_id, cause)) from error
    raise HuggingFaceError(
      f"{repo_id} was not uploaded: the Hugging Face hub cannot be reached, or "
      f"ended the connection ({_reason(cause)})."
    ) from error
  return str(url)


def _refusal(repo_id: str, error: Any) -> str:
  """What the hub refuses, and what to do."""
  status = error.response.status_code
  if status == 401:
    return f"The hub does not accept the token for {repo_id}: {_LOG_IN}."
  if status == 403:
    return (
      f"The token may not write {repo_id}: choose a name in an account that it "
      "may write to, or a token with the role write."
    )
  return f"The Hugging Face hub refuses {repo_id}: {_reason(error)}."


def _reason(error: BaseException) -> str:
  """The beginning of an error message, in one line."""
  text = " ".join(str(error).split())[:300]
  return text.rstrip(".") or type(error).__name__
