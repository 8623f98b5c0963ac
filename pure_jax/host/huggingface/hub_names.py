"""Names of models and data sets on the Hugging Face hub."""

import dataclasses
import re

# Suffixes of files of rows.
DATA_FILES = (".jsonl", ".ndjson", ".json", ".parquet")
_PART = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
# The hub forbids these in the middle of an id, and at its end.
_ID = rf"(?!.*(?:--|\.\.))({_PART}/{_PART})(?<!\.git)"
_REVISION = r"(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?"
_MODEL = re.compile(_ID + _REVISION, re.ASCII)
_DATA = re.compile(rf"{_ID}((?:/[\w .,()+=-]+)*){_REVISION}", re.ASCII)


@dataclasses.dataclass(frozen=True)
class HubName:
  """A name on the hub, parsed.

  Attributes:
    kind: "model" or "dataset".
    repo_id: ORG/NAME.
    revision: a branch, a tag or a commit; None is the branch main.
    path: of a file in a data set; None for a model, or if no file is named.
  """

  kind: str
  repo_id: str
  revision: str | None = None
  path: str | None = None

  @property
  def key(self) -> str:
    """Names what a commit is recorded for: the repository and the revision."""
    revision = "" if self.revision is None else f"@{self.revision}"
    return f"{self.kind}s/{self.repo_id}{revision}"

  @property
  def description(self) -> str:
    """The repository in a message."""
    what = "model" if self.kind == "model" else "data set"
    return f"the {what} {self.repo_id} of the Hugging Face hub"


def parse_model(text: str) -> HubName | None:
  """Parses ORG/NAME or ORG/NAME@REVISION.

  >>> parse_model("Qwen/Qwen2.5-Math-1.5B@main").revision
  'main'

  Args:
    text: the text of a config.

  Returns:
    The name; None if the text has another form.
  """
  match = _MODEL.fullmatch(text)
  return match and HubName("model", match[1], match[2])


def parse_data(text: str) -> HubName | None:
  """Parses ORG/NAME or ORG/NAME/PATH, with or without @REVISION at its end.

  >>> parse_data("openai/gsm8k/main/test-00000-of-00001.parquet").path
  'main/test-00000-of-00001.parquet'
  >>> parse_data("data/test.jsonl") is None
  True

  Args:
    text: the text of a config.

  Returns:
    The name; None if the text has another form. PATH has one of `DATA_FILES`,
    and NAME has none: data/test.jsonl is a file in a folder.
  """
  match = _DATA.fullmatch(text)
  if match is None:
    return None
  path = match[2].removeprefix("/") or None
  is_file = (path or match[1]).endswith(DATA_FILES)
  if is_file != (path is not None):
    return None
  return HubName("dataset", match[1], match[3], path)
