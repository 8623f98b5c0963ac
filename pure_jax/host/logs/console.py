"""Messages to whoever started the script."""

import sys


def tell(message: object) -> None:
  """Writes one message to standard error, on lines of its own.

  Args:
    message: its text.
  """
  sys.stderr.write(f"{message}\n")
  sys.stderr.flush()
