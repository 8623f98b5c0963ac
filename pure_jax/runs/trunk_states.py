"""States of a PRM's frozen trunk, computed once and kept in files.

While the head is trained, the trunk does not change. So the states that the
head reads of a response, those at its scores, are computed once, and any number
of updates train on them. States are cached by the token ids, the score
positions and the trunk's weights. New labels, another split or more texts
compute only missing states. Each batch is written as soon as it is computed.

A batch has the missing texts of about one length, padded to the longest of
them. So the rounding of a text's states depends on which other texts were
missing, most of all in bfloat16. A pass that was interrupted goes on with the
batches that it had left, and gets the same states.
"""

import dataclasses
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pure_jax.host.atomic_files import replace_atomic
from pure_jax.host.checkpoints.integrity import check_free_space
from pure_jax.host.data.batches import pad_prm_texts
from pure_jax.host.distributed import preemption, processes
from pure_jax.host.distributed.global_batch import read_everywhere
from pure_jax.host.logs import console
from pure_jax.host.logs.console import Progress
from pure_jax.host.machine_memory import machine_bytes
from pure_jax.host.text.tokenization import PRMText
from pure_jax.parallel import sharding
from pure_jax.runs.batches import Batches, take_rows
from pure_jax.runs.memory.needs import Need, check_bytes
from pure_jax.runs.spec import RunSpec
from pure_jax.training import supervised
from pure_jax.training.score import prm_inputs
from pure_jax.training.supervised import Demonstrations, StepStates
from pure_jax.types import PRMInputs

# Fields that change memory and rounding, but not the function.
ROUNDING_ONLY = {"remat": "none", "logits_chunk": None, "attention_chunk": None}
_ROWS_AT_A_TIME = 1024  # Of responses that are laid out for the PRM.
# What numpy raises for a damaged file. Not OSError: the file may be intact.
_DAMAGED = (ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class TrunkStates:
  """The states of n responses, one after another.

  Attributes:
    hidden: for each response, [number of its steps, D] float32.
    max_steps: S.
  """

  hidden: Sequence[np.ndarray]
  max_steps: int

  def take(self, indices: np.ndarray) -> StepStates:
    """Collects the states of some responses.

    Args:
      indices: [B] int, numbers of responses; at least one.

    Returns:
      Host arrays [B, S, D] and [B, S].
    """
    rows = [self.hidden[index] for index in indices]
    counts = np.asarray([len(row) for row in rows])
    mask = np.arange(self.max_steps) < counts[:, None]
    hidden = np.zeros((*mask.shape, rows[0].shape[1]), np.float32)
    hidden[mask] = np.concatenate(rows)
    return StepStates(hidden, mask)


def load_or_compute(
  spec: RunSpec,
  batches: Batches,
  folder: pathlib.Path,
  trunk: Any,
  responses: Demonstrations | PRMInputs,
) -> TrunkStates:
  """Reads the states of responses from `prm.trunk_states`, computes the rest.

  Every process must call it. States that are computed are written, batch by
  batch, so that an interrupted run loses at most one batch.

  Args:
    spec: the run's specification.
    batches: distributes batches over the devices.
    folder: the folder in which `prm.trunk_states` is, if that is relative.
    trunk: the trunk's weights, as `supervised.split_prm_params` gives them.
    responses: n responses.

  Returns:
    The states of all of them.

  Raises:
    ConfigError: if the host has too little memory for them.
    FloatingPointError: if a state is not finite.
    OSError: if the folder cannot be written.
  """
  texts = texts_for_prm(spec, responses)
  num_steps = sum(len(text.steps) for text in texts)
  what = f"keeping the trunk's states at {num_steps} steps"
  num_bytes = 4 * num_steps * spec.prm_model.width
  need = Need(what, num_bytes, ("prm.score.max_steps",), on_host=True)
  check_bytes(spec.settings, what, [need], machine_bytes(), "this machine")
  keys = [_key(text) for text in texts]
  folder = folder / spec.settings.prm.trunk_states
  folder /= _fingerprint(spec, trunk)[:16]
  states = _read_folder(folder, set(keys))
  missing = {
    key: text
    for key, text in zip(keys, texts, strict=True)
    if key not in states
  }
  if missing:
    states |= _compute(spec, batches, folder, trunk, missing)
  return TrunkStates(
    [states[key] for key in keys], spec.settings.prm.score.max_steps
  )


def compact(spec: RunSpec, responses: Demonstrations | PRMInputs) -> PRMInputs:
  """Makes the PRM's inputs of responses with all padding on the right.

  A batch of prompts and responses is as wide as its longest prompt and its
  longest response together; these inputs are as wide as its longest text.

  Args:
    spec: the run's specification.
    responses: n responses, at least one.

  Returns:
    Host arrays of n rows, as wide as the longest text or a little wider.
  """
  texts, settings = texts_for_prm(spec, responses), spec.settings.prm
  longest = max(text.num_tokens for text in texts)
  return pad_prm_texts(
    texts,
    -(-longest // settings.length_multiple) * settings.length_multiple,
    settings.score.max_steps,
    int(spec.table.pad_id),
  )


def texts_for_prm(
  spec: RunSpec, responses: Demonstrations | PRMInputs
) -> list[PRMText]:
  """The texts that the PRM reads of responses, without padding.

  Args:
    spec: the run's specification.
    responses: n responses.

  Returns:
    n texts. The prompt is part of the first step, so that a step ends where
    its score is read.
  """
  make = jax.jit(
    lambda batch: prm_inputs(spec.prm_score_config, spec.table, batch),
    out_shardings=sharding.replicated(spec.layouts.training),
  )
  texts, count = [], len(jax.tree.leaves(responses)[0])
  for first in range(0, count, _ROWS_AT_A_TIME):
    rows = np.arange(first, min(first + _ROWS_AT_A_TIME, count))
    inputs = jax.device_get(make(take_rows(responses, rows)))
    texts += [
      _without_padding(*row)
      for row in zip(
        inputs.tokens,
        inputs.mask,
        inputs.score_position,
        inputs.score_mask,
        strict=True,
      )
    ]
  return texts


def _without_padding(
  tokens: np.ndarray,
  mask: np.ndarray,
  score_position: np.ndarray,
  score_mask: np.ndarray,
) -> PRMText:
  """A row of `PRMInputs` as a text; what follows its last score is dropped."""
  ends = np.cumsum(mask)[score_position[score_mask]]
  *steps, _ = np.split(tokens[mask], ends)
  return PRMText([], [step.tolist() for step in steps])


def _key(text: PRMText) -> str:
  """Identifies what the trunk reads."""
  return hashlib.sha256(json.dumps(text.steps).encode()).hexdigest()


def _fingerprint(spec: RunSpec, trunk: Any) -> str:
  """Identifies the trunk: its weights and how they are computed."""
  model = dataclasses.replace(spec.prm_model, **ROUNDING_ONLY)
  digest = hashlib.sha256(repr(model).encode())
  for path, leaf in jax.tree.leaves_with_path(trunk):
    digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
    digest.update(np.ascontiguousarray(read_everywhere(leaf)).data)
  return digest.hexdigest()


def _compute(
  spec: RunSpec,
  batches: Batches,
  folder: pathlib.Path,
  trunk: Any,
  missing: Mapping[str, PRMText],
) -> dict[str, np.ndarray]:
  """Computes and writes the states of texts."""
  settings, model = spec.settings.prm, spec.prm_model
  forward = supervised.make_trunk_forward(model, spec.layouts.training)
  num_steps = sum(len(text.steps) for text in missing.values())
  processes.on_process_zero(
    lambda: _prepare(folder, 4 * num_steps * model.width)
  )
  # Texts of about one length share a batch, which saves padding.
  keys = sorted(missing, key=lambda key: missing[key].num_tokens)
  computed = {}
  shows = spec.settings.progress and processes.is_process_zero()
  with Progress("trunk", len(keys), enabled=shows) as bar:
    for first in range(0, len(keys), settings.batch_size):
      preemption.raise_received()
      batch = keys[first : first + settings.batch_size]
      rows = [missing[key] for key in np.resize(batch, settings.batch_size)]
      longest = max(text.num_tokens for text in rows)
      inputs = pad_prm_texts(
        rows,
        -(-longest // settings.length_multiple) * settings.length_multiple,
        settings.score.max_steps,
        int(spec.table.pad_id),
      )
      hidden = read_everywhere(forward(trunk, batches.put(inputs)))
      # Copies: a view would keep the whole batch, with its padding.
      states = {
        key: row[: len(missing[key].steps)].copy()
        for key, row in zip(batch, hidden, strict=False)
      }
      _check_finite(states.values())
      processes.on_process_zero(lambda states=states: _write(folder, states))
      computed |= states
      bar.advance(len(batch))
  return computed


def _check_finite(states: Iterable[np.ndarray]) -> None:
  """Raises FloatingPointError for states from which no head can learn."""
  if not all(np.isfinite(rows).all() for rows in states):
    raise FloatingPointError(
      "The trunk's states are not finite: check the weights of the policy, or "
      "set files.model.compute_dtype to 'float32'. States already written "
      "are valid."
    )


# ===== Files =====


def _prepare(folder: pathlib.Path, num_bytes: int) -> None:
  """Makes the folder; raises an OSError if there is no room for the states."""
  folder.mkdir(parents=True, exist_ok=True)
  check_free_space(folder, num_bytes)


def _write(folder: pathlib.Path, states: Mapping[str, np.ndarray]) -> None:
  """Writes the states of a batch into a file of its own."""
  name = hashlib.sha256("".join(states).encode()).hexdigest()[:16]
  with replace_atomic(folder / f"{name}.npz") as file:
    np.savez(
      file,
      keys=np.asarray([*states]),
      counts=np.asarray([len(rows) for rows in states.values()]),
      hidden=np.concatenate([*states.values()]),
    )


def _read_folder(folder: pathlib.Path, keys: set[str]) -> dict[str, np.ndarray]:
  """Reads the states with these keys, in every process the same ones."""

  def readable() -> list[str]:
    return [
      path.name
      for path in sorted(folder.glob("*.npz"))
      if _read_or_remove(path) is not None
    ]

  known = {}
  for name in processes.broadcast_from_zero(readable):
    states = _read(folder / name)
    # Copies, or one of them would keep all states of its file.
    known |= {key: states[key].copy() for key in keys & states.keys()}
  return known


def _read_or_remove(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  """Reads a file of states; removes it, and says so, if it is damaged."""
  try:
    return _read(path)
  except _DAMAGED as error:
    console.tell(
      f"{path} is damaged and removed, its states are computed again: {error}"
    )
    path.unlink(missing_ok=True)
    return None


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a file of states: by key, [number of steps, D] float32."""
  with np.load(path, allow_pickle=False) as file:
    keys, counts, hidden = file["keys"], file["counts"], file["hidden"]
  if len(hidden) != counts.sum() or len(keys) != len(counts):
    raise ValueError("its arrays have other lengths")
  rows = np.split(hidden, np.cumsum(counts)[:-1])
  return dict(zip(keys.tolist(), rows, strict=True))
