"""What a plan compiles: jitted functions and what they are called with."""

import dataclasses
from collections.abc import Callable
from typing import Any

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
  """A rollout whose rows take turns: several jitted functions.

  Attributes:
    name: "rollout".
    parts: as `rollout.engine.Engine.parts` gives them.
    arguments: params, prompts and key, abstract and in their places.
    prompts: that begin together.
    samples: of each prompt.
    shards: contiguous parts of the rows.
    new_tokens: of a response, at most.
    chunk: tokens between two looks of the host.
    ring_slots: how long the ring is for so many tokens, as
      `rollout.engine.Engine.ring_slots` says.
  """

  name: str
  parts: dict[str, Callable[..., Any]]
  arguments: tuple[Any, Prompts, Any]
  prompts: int
  samples: int
  shards: int
  new_tokens: int
  chunk: int
  ring_slots: Callable[[int], int]
