"""Ctrl-C in a script: one line and exit status 130, from its first lines on.

A script begins with

  if __name__ == "__main__":
    import interrupts

    interrupts.exit_on_ctrl_c()

and has its other imports below, because they take seconds. It ends with
`cli.run(main)`, or with `interrupts.run(main)` if it has flags of its own.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

# Exit status that a shell reports for a program ended by Ctrl-C.
STATUS = 130


def exit_on_ctrl_c() -> None:
  """Lets Ctrl-C end the process while there is nothing to save or clean up.

  Nothing changes if Ctrl-C is ignored, as in a background job of a shell.
  """
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _exit)


def _exit(number: int, frame: Any) -> None:
  """Ends the process; Python would ignore an exception in some callbacks."""
  del number, frame
  os.write(2, b"stopped\n")
  os._exit(STATUS)


def run(call: Callable[..., Any], *arguments: Any) -> None:
  """Runs the main function of a script; Ctrl-C ends it with one line.

  So does memory that runs out, with exit status 1. Control characters in log
  messages and stack traces are escaped.

  Args:
    call: `app.run` of absl, or a function that reads its own command line.
    *arguments: arguments of the call.
  """
  from pure_jax.host.distributed import preemption, processes
  from pure_jax.host.logs import console
  from pure_jax.runs.memory import exhausted

  console.guard_terminal()
  try:
    with preemption.raise_on_ctrl_c():
      call(*arguments)
  except KeyboardInterrupt:
    # A regular exit would wait for threads that still compile, or crash.
    processes.exit_immediately("stopped", STATUS)
  except Exception as error:
    advice = "Take smaller files or models, or a machine with more memory."
    reason = exhausted.explain(error, advice)
    if reason is None:
      raise
    console.tell(f"error: {reason}")
    sys.exit(1)
