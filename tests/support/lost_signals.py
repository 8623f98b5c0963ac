"""Signals whose exception Python or a library does not let through."""

import contextlib
import gc
import signal


def in_garbage_collection(number):
  """Sends a signal to a callback of the garbage collector, as jax has one."""

  def send(phase, info):
    del phase, info
    gc.callbacks.remove(send)
    signal.raise_signal(number)

  gc.callbacks.append(send)
  gc.collect(0)


def in_a_finalizer(number):
  """Sends a signal to `__del__`."""

  class Finalized:
    def __del__(self):
      signal.raise_signal(number)

  Finalized()


def in_code_that_swallows(number):
  """Sends a signal to code that lets no exception through."""
  with contextlib.suppress(BaseException):
    signal.raise_signal(number)


WAYS = (in_garbage_collection, in_a_finalizer, in_code_that_swallows)
