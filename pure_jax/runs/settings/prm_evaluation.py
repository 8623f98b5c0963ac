"""The settings of an evaluation of a PRM, checked as they are made."""

import dataclasses

from pure_jax.host.data.formats.named import format_names
from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.text.tokenization import PROMPT_FORMATS
from pure_jax.models.config import COMPUTE_DTYPES
from pure_jax.runs.settings.checks import at_least, one_of
from pure_jax.runs.settings.files import Fields, check_format
from pure_jax.runs.settings.mesh import MeshSettings
from pure_jax.settings import ScoreConfig


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """A file of labelled solutions, and its name in the report."""

  name: str
  file: str
  format: str
  fields: Fields = None

  def __post_init__(self):
    """Validates that there is a name, and that the format holds steps."""
    if not self.name.strip():
      raise ValueError(f"name is empty: the report needs one for {self.file}.")
    check_format(self, "", format_names(LabelledSolution))


@dataclasses.dataclass(frozen=True)
class EvaluatePRMSettings:
  """An evaluation of one PRM. See `configs/evaluate_prm.py`."""

  progress: bool
  mesh: MeshSettings
  prm: str | None
  run: str | None
  random_model: str | None
  tokenizer: str | None
  eos_token: str | None
  good_class: int | None
  data: tuple[DataSettings, ...]
  skip_malformed: bool
  prompt_format: str
  prompt_tokens: int
  response_tokens: int
  score: ScoreConfig
  batch_size: int
  length_multiple: int
  compute_dtype: str
  param_dtype: str
  threshold: str
  threshold_data: str | None
  bins: int
  bootstrap_seed: int
  resamples: int

  def __post_init__(self):
    """Validates the source of the PRM, the data and the threshold."""
    at_least(1, self, "prompt_tokens response_tokens batch_size")
    at_least(1, self, "length_multiple bins resamples")
    at_least(0, self, "bootstrap_seed")
    if self.good_class not in (0, 1, None):
      raise ValueError(
        f"good_class must be 0, 1 or None, got {self.good_class}."
      )
    one_of(self, "prompt_format", tuple(PROMPT_FORMATS))
    one_of(self, "compute_dtype param_dtype", COMPUTE_DTYPES)
    self._check_source()
    self._check_data()
    self.mesh.check_rows("batch_size", self.batch_size)

  def _check_source(self) -> None:
    """Validates that one PRM is named."""
    sources = (self.prm, self.run, self.random_model)
    if sum(source is not None for source in sources) != 1:
      raise ValueError(
        "prm names the folder of a Hugging Face model, run the workdir of "
        "train_prm.py: set one of them, or random_model for a trial."
      )
    one_of(self, "random_model", ("tied", "untied"))

  def _check_data(self) -> None:
    """Validates the data sets, and the one that the threshold is chosen on."""
    if self.random_model is None and not self.data:
      raise ValueError(
        "data is empty. Name files: --config.data=\"({'name': 'gsm8k', "
        "'file': 'gsm8k.json', 'format': 'processbench'},)\""
      )
    names = [item.name for item in self.data]
    if len({*names}) < len(names):
      raise ValueError(f"data has a name twice: {names}.")
    one_of(self, "threshold", ("zero", "best_on"))
    if (self.threshold == "best_on") != (self.threshold_data is not None):
      raise ValueError(
        "threshold_data names the data set that threshold='best_on' chooses "
        "on: set both or neither."
      )
    if self.data:
      one_of(self, "threshold_data", tuple(names))
