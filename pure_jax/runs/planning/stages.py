"""What a plan compiles: jitted functions and what they are called with."""

import dataclasses
from collections.abc import Callable
from typing import Any

from pure_jax.rollout.engine_programs import EnginePrograms
from pure_jax.types import Prompts


@dataclasses.dataclass(frozen=True)
class Stage:
  """A jitted function and what it is called with.

  Attributes:
    name: "reshard", "rollout", "score" or "update".
    function: as `pure_jax.training` makes it.
    arguments: abstract.
  """

  name: str
  function: Callable[..., Any]
  arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class EngineStage:
  """A rollout with continuous batching: several jitted functions.

  Attributes:
    name: "rollout".
    programs: the jitted functions of the engine.
    arguments: params, prompts and key, abstract and in their places.
    prompts: that begin together.
    samples: of each prompt.
    shards: contiguous parts of the rows.
    new_tokens: of a response, at most.
    chunk: tokens between two host syncs.
    ring_length: length of the ring for so many tokens, see
      `rollout.engine_programs.EngineSpec.ring_length`.
  """

  name: str
  programs: EnginePrograms
  arguments: tuple[Any, Prompts, Any]
  prompts: int
  samples: int
  shards: int
  new_tokens: int
  chunk: int
  ring_length: Callable[[int], int]
