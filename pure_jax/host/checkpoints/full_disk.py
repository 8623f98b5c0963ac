"""Whether there is room for a file, and whether an error says there is not."""

import errno
import os
import shutil
import tempfile

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
    if getattr(error, "errno", None) == number:
      return error.strerror or said
    if said in str(error):
      return said
  return None


def check_room(folder: str | os.PathLike, needed: int) -> None:
  """Refuses what cannot be written or will not fit, before it is begun.

  Args:
    folder: where it is to be written.
    needed: bytes.

  Raises:
    OSError: if the folder takes no file, or fewer bytes are free.
  """
  with tempfile.TemporaryFile(dir=folder):
    pass  # Orbax's threads wait ten minutes for a folder that never comes.
  free = shutil.disk_usage(folder).free
  if free < needed:
    said = os.strerror(errno.ENOSPC)
    raise OSError(
      errno.ENOSPC,
      f"{said}: {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are "
      "free",
      os.fspath(folder),
    )
