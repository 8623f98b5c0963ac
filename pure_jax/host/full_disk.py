"""Whether an error says that there is no room left for a file."""

import errno
import os

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reason(error: BaseException) -> str | None:
  """Why there is no room, in the system's words.

  Args:
    error: whatever writing raised. TensorStore says what the system said
      somewhere in its own message.

  Returns:
    Such as "No space left on device"; None for an error of another kind.

  >>> reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file"))
  'No space left on device'
  """
  for number in _NUMBERS:
    said = os.strerror(number)
    if getattr(error, "errno", None) == number or said in str(error):
      return said
  return None
