"""Ctrl-C that waits for the end of what must not be torn apart."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def held_back() -> Iterator[None]:
  """Lets what is inside come to its end before Ctrl-C takes effect.

  Python raises KeyboardInterrupt in the middle of any statement of the main
  thread. Orbax, torn out of a save so, complains at exit of a closed event
  loop. Does nothing in other threads, or where a program handles the signal
  in its own way.

  Yields:
    Nothing.

  Raises:
    KeyboardInterrupt: at the end, if Ctrl-C came meanwhile.
  """
  in_main = threading.current_thread() is threading.main_thread()
  if not in_main or (
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler
  ):
    yield
    return
  came = []
  signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  if came:
    raise KeyboardInterrupt
