"""Renders the chat templates of Hugging Face folders, within limits.

A chat template is a program in the folder of whoever made the model. The
sandbox of jinja bounds what it may reach, but neither its time nor its memory:
nested loops, '%999999999d' % 1, a filter that pads to 10**9 or 10**10**10 each
exhaust one of them. So templates run in a worker (`host.workers.pool`), one for
all tokenizers of this process, which is started when the first template is
rendered. It imports transformers but no jax.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from pure_jax.host.workers.pool import MIB, WorkerPool

# Limits of one conversation. Those of real models take less than a millisecond
# and some KiB; the first one compiles the template.
SECONDS = 10.0
MEMORY_BYTES = 128 * MIB  # A problem of 16 MiB needs most of it.
MAX_ADDED = 1 << 20  # Characters that a template may add to the messages.
_REASON_CHARACTERS = 500


class ChatTemplateError(ValueError):
  """A template that cannot write a conversation; the message says why."""


def render(
  template: str,
  messages: Sequence[Mapping[str, str]],
  special_tokens: Mapping[str, str],
) -> str:
  """Renders a conversation as transformers does, up to the model's answer.

  Args:
    template: the text of the template.
    messages: objects with ``role`` and ``content``.
    special_tokens: texts that the template knows by name, such as
      ``eos_token``.

  Raises:
    ChatTemplateError: if the template raises an error, or exceeds a limit.
    PoolError: if the worker cannot be started.
  """
  try:
    (outcome,) = _worker().run(
      [[template, [dict(m) for m in messages], dict(special_tokens)]]
    )
  except BaseException:
    _worker.cache_clear()  # It has been closed; the next call starts another.
    raise
  if outcome.timed_out:
    raise ChatTemplateError(f"it took more than {SECONDS:g} s")
  if outcome.value is None:
    raise ChatTemplateError(
      f"it needed more than {MEMORY_BYTES // MIB} MiB of memory"
      if outcome.failure == "out of memory"
      else f"its process {outcome.failure}"
    )
  text, fault = outcome.value
  if fault is not None:
    raise ChatTemplateError(fault)
  return text


@functools.cache
def _worker() -> WorkerPool:
  """The process that renders."""
  return WorkerPool(
    render_here,
    import_jinja,
    workers=1,
    timeout_seconds=SECONDS,
    memory_bytes=MEMORY_BYTES,
  )


def import_jinja() -> None:
  """Imports what `render_here` needs, before memory is limited."""
  import transformers.utils.chat_template_utils  # noqa: F401


def render_here(
  template: str, messages: list[dict[str, str]], special_tokens: dict[str, str]
) -> tuple[str | None, str | None]:
  """Renders in this process, without limits of time and memory.

  Args:
    template: as for `render`.
    messages: as for `render`.
    special_tokens: as for `render`.

  Returns:
    (text, None), or (None, why there is none).
  """
  from transformers.utils import chat_template_utils

  try:
    (text,), _ = chat_template_utils.render_jinja_template(
      conversations=[messages],
      chat_template=template,
      add_generation_prompt=True,
      **special_tokens,
    )
  except MemoryError:
    raise
  # A template is a program, which may raise any error.
  except Exception as error:
    return None, _reason(error)
  allowed = MAX_ADDED + sum(len(str(m["content"])) for m in messages)
  if len(text) > allowed:
    return None, f"it writes {len(text):,} characters, {allowed:,} are allowed"
  return text, None


def _reason(error: Exception) -> str:
  """The first line of an error message."""
  lines: Any = str(error)[:_REASON_CHARACTERS].splitlines()
  return lines[0] if lines else repr(error)[:_REASON_CHARACTERS]
