"""What cannot be written is refused before anything waits for it."""

import errno
import os
import subprocess
import sys
import textwrap

import pytest

from pure_jax.host.checkpoints import full_disk


def test_room_that_is_not_there_is_refused_with_the_numbers(tmp_path):
  full_disk.check_room(tmp_path, 1)
  with pytest.raises(
    OSError, match=r"1,000,000,000,000\.0 MB are needed"
  ) as no:
    full_disk.check_room(tmp_path, 10**18)
  assert full_disk.reason(no.value).startswith("No space left on device: ")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_quota_is_a_full_disk(number):
  """Said by the number, or somewhere in a message of TensorStore."""
  said = full_disk.reason(OSError(number, "words"))
  assert said == "words"
  system = str(OSError(number, os.strerror(number)))
  assert full_disk.reason(ValueError(f"Failed: {system} [file]"))
  assert full_disk.reason(OSError(errno.EIO, "Input/output error")) is None


def test_a_folder_that_takes_no_file_ends_a_run_at_once(tmp_path):
  """Threads of Orbax would wait ten minutes, at exit, for theirs to be made."""
  script = textwrap.dedent(
    f"""
    import pathlib, sys
    import jax
    from pure_jax.host.checkpoints.manager import Checkpoints, CheckpointError
    folder = pathlib.Path({str(tmp_path)!r}) / "rl"
    try:
      with Checkpoints(folder) as checkpoints:
        folder.rmdir()
        folder.touch()  # As good as a file system that is read-only now.
        checkpoints.save(1, {{"a": jax.numpy.ones(3)}})
    except CheckpointError as error:
      sys.exit(f"error: {{error}}")
    """
  )
  done = subprocess.run(
    [sys.executable, "-c", script],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  (said,) = done.stderr.splitlines()
  assert "Not a directory" in said and "can be created and written" in said
