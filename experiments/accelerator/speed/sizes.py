"""The sizes of the speed pieces, on a CPU and on an accelerator."""

import dataclasses
from collections.abc import Mapping, Sequence

from benchmarks.cases import Case, Options
from configs import files

from accelerator.pieces import Context
from pure_jax.runs.settings.models import compute_dtype_of

# What a run does if no config says otherwise.
_DEFAULTS = files.computation()
SHAPES = ("0.5B", "1.5B", "7B")


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Models and batches.

  Attributes:
    models: names in `benchmarks.cases.MODELS` by the shape they stand for.
    decode_rows: rows of the loops that decode, by shape.
    decode_lengths: L, C of these loops.
    prefill: prompts and L of a prefill.
    texts: rows and L, C of scores and updates.
    samples: most samples of a prompt.
    rows_at_a_time: rows of a micro-batch of scores and updates.
    remats: values of `ModelConfig.remat` to compare.
    attention_chunks: values of `ModelConfig.attention_chunk` to compare.
    logits_chunks: values of `ModelConfig.logits_chunk` to compare.
    int8_matrices: shape and rows of the loops with matrices in int8.
    int8_cache: shape, rows, L and C of the loops with a cache in int8.
    baseline: shape and rows of the loop that is compared with transformers'
      and rows of the update that is compared with torch's.
  """

  models: Mapping[str, str]
  decode_rows: Mapping[str, Sequence[int]]
  decode_lengths: tuple[int, int]
  prefill: tuple[int, int]
  texts: tuple[int, int, int]
  samples: int
  rows_at_a_time: int
  remats: Sequence[str]
  attention_chunks: Sequence[int]
  logits_chunks: Sequence[int]
  int8_matrices: tuple[str, int]
  int8_cache: tuple[str, int, int, int]
  baseline: tuple[str, int, int]


SIZES = {
  # Every path of the code once, in seconds.
  "tiny": Sizes(
    models=dict.fromkeys(SHAPES, "tiny"),
    decode_rows={"0.5B": (1,), "1.5B": (1, 2), "7B": (2,)},
    decode_lengths=(8, 4),
    prefill=(2, 8),
    texts=(4, 8, 12),
    samples=2,
    rows_at_a_time=2,
    remats=("dots",),
    attention_chunks=(8,),
    logits_chunks=(6,),
    int8_matrices=("7B", 1),
    int8_cache=("1.5B", 2, 8, 4),
    baseline=("1.5B", 2, 4),
  ),
  # For a GPU of 80 GB or more. Responses of GSM8K have a few hundred tokens.
  "full": Sizes(
    models={
      "0.5B": "qwen2p5_0p5b",
      "1.5B": "qwen2p5_math_1p5b",
      "7B": "qwen2p5_7b",
    },
    decode_rows=dict.fromkeys(SHAPES, (1, 8, 64, 256)),
    decode_lengths=(128, 128),
    prefill=(32, 512),
    texts=(32, 256, 768),
    samples=8,
    rows_at_a_time=8,
    remats=("dots", "attention", "none"),
    attention_chunks=(128, 256),
    logits_chunks=(256,),
    int8_matrices=("7B", 8),
    int8_cache=("1.5B", 256, 1024, 64),
    baseline=("1.5B", 64, 32),
  ),
}


@dataclasses.dataclass(frozen=True)
class Cases:
  """Makes the cases of a check.

  Attributes:
    sizes: models and batches.
    options: the project's defaults on the device.
  """

  sizes: Sizes
  options: Options

  def decode(self, shape: str, rows: int) -> Case:
    """A rollout of short prompts."""
    return self._rollout(shape, rows, *self.sizes.decode_lengths)

  def int8_cache(self) -> Case:
    """A rollout that reads more of the cache than of the weights."""
    shape, rows, prompt, new = self.sizes.int8_cache
    return self._rollout(shape, rows, prompt, new)

  def prefill(self, shape: str) -> Case:
    """Prompts with one sample each."""
    prompts, length = self.sizes.prefill
    model = self.sizes.models[shape]
    return Case("rollout", model, prompts, 1, length, 1, options=self.options)

  def texts(self, suite: str, shape: str, rows: int | None = None) -> Case:
    """Responses of the full length, for a score or an update."""
    usual, prompt, new = self.sizes.texts
    return Case(
      suite,
      self.sizes.models[shape],
      rows or usual,
      self.sizes.samples,
      prompt,
      new,
      options=self.options,
    )

  def _rollout(self, shape: str, rows: int, prompt: int, new: int) -> Case:
    """Up to `Sizes.samples` responses for each prompt."""
    return Case(
      "rollout",
      self.sizes.models[shape],
      rows,
      min(rows, self.sizes.samples),
      prompt,
      new,
      options=self.options,
    )


def make_cases(context: Context) -> Cases:
  """Makes the cases for a device.

  Args:
    context: what a piece is told.

  Returns:
    The cases, with the defaults of `configs/files.py`: bfloat16 on an
    accelerator, float32 on a CPU.
  """
  sizes = SIZES[context.size]
  options = Options(
    dtype=compute_dtype_of(context.platform),
    rows_at_a_time=sizes.rows_at_a_time,
    remat=_DEFAULTS["remat"],
    logits_chunk=None,
    attention_chunk=None,
  )
  return Cases(sizes, options)


def change(case: Case, **options: object) -> Case:
  """The case with other options."""
  changed = dataclasses.replace(case.options, **options)
  return dataclasses.replace(case, options=changed)
