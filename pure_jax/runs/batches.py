"""Turns problems into arrays on the devices; processes share the rows."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pure_jax.host.data.batches import left_pad
from pure_jax.host.data.records import LabelledSolution, Problem
from pure_jax.host.distributed import global_batch
from pure_jax.host.text.prompt_formats import PromptFormat
from pure_jax.host.text.tokenization import Tokenizer
from pure_jax.parallel import sharding
from pure_jax.types import Prompts


@dataclasses.dataclass(frozen=True)
class PromptEncoder:
  """Turns problems into prompts of one model.

  Attributes:
    tokenizer: the model's tokenizer.
    prompt_format: the text that the model reads for a problem.
    length: columns of a prompt (L).
  """

  tokenizer: Tokenizer
  prompt_format: PromptFormat
  length: int

  def text(self, problem: Problem | LabelledSolution) -> str:
    """The prompt of a problem, or of a solution's problem, as text."""
    return self.prompt_format.text(self.tokenizer, problem.problem)

  def ids(self, problem: Problem | LabelledSolution) -> list[int]:
    """The prompt of `text` as token ids, BOS included if there is one."""
    return self.prompt_format.ids(self.tokenizer, problem.problem)

  def encode(self, problems: Sequence[Problem | LabelledSolution]) -> Prompts:
    """Encodes n problems whose prompts have at most L tokens.

    Returns:
      Prompts [n, L] on the host, left-padded.
    """
    ids = [self.ids(problem) for problem in problems]
    return Prompts(*left_pad(ids, self.length, self.tokenizer.pad_id))


@dataclasses.dataclass(frozen=True)
class Batches:
  """Makes the batches of a run and distributes them over devices.

  Attributes:
    prompt_encoder: makes the policy's prompts.
    prm_prompt_encoder: makes the PRM's prompts.
    layout: devices over which rows are split.
  """

  prompt_encoder: PromptEncoder
  prm_prompt_encoder: PromptEncoder
  layout: sharding.Layout

  def encode_prompts(self, problems: Sequence[Problem]) -> Prompts:
    """Encodes n policy prompts; row shards must divide n.

    Each process encodes its share. All prompts [n, L], left-padded, come back
    to the host of every process.
    """
    rows = self.share(len(problems))
    prompts = self.prompt_encoder.encode([problems[row] for row in rows])
    return self.gather(len(problems), prompts)

  def put_prm_prompts(self, problems: Sequence[Problem]) -> Prompts:
    """Encodes the PRM's prompts [B, L'] onto the devices, left-padded.

    Each process encodes the rows of its devices; row shards must divide B.
    """
    return self.put_rows(
      len(problems),
      lambda rows: self.prm_prompt_encoder.encode(
        [problems[row] for row in rows]
      ),
    )

  def put_no_prm_prompts(self, count: int) -> Prompts:
    """Puts B prompts [B, L'] of padding, which a run without a PRM ignores."""
    encoder = self.prm_prompt_encoder

    def make(rows: np.ndarray) -> Prompts:
      pad_id = encoder.tokenizer.pad_id
      return Prompts(*left_pad([[]] * len(rows), encoder.length, pad_id))

    return self.put_rows(count, make)

  def put(self, tree: Any) -> Any:
    """Puts host arrays [B, ...], equal in every process, onto the devices."""
    (count,) = {len(leaf) for leaf in jax.tree.leaves(tree)}
    return self.put_rows(count, lambda rows: take_rows(tree, rows))

  def put_rows(self, count: int, make: Callable[[np.ndarray], Any]) -> Any:
    """Puts a batch [B, ...] onto the devices, rows split over the mesh.

    Each process makes the rows of its devices: `make` takes row numbers [b] and
    returns a pytree of host arrays [b, ...].
    """
    return global_batch.make_rows(self._row_sharding, count, make)

  def share(self, count: int) -> np.ndarray:
    """The rows [b] of B, ascending, that this process reads and grades.

    Row shards must divide B. Every row belongs to one process.
    """
    owned = global_batch.owned_rows(self._row_sharding, count)
    return owned[jax.process_index()]

  def gather(self, count: int, tree: Any) -> Any:
    """Gathers host arrays [b, ...] of the processes' shares to all B rows."""
    return global_batch.gather_rows(self._row_sharding, count, tree)

  @property
  def _row_sharding(self) -> jax.sharding.NamedSharding:
    return sharding.batch_sharding(self.layout)


def take_rows(tree: Any, indices: np.ndarray) -> Any:
  """Selects rows of host arrays.

  Args:
    tree: pytree of arrays [n, ...], such as `Demonstrations`.
    indices: [m] int row numbers.
  """
  return jax.tree.map(lambda x: np.asarray(x)[indices], tree)
