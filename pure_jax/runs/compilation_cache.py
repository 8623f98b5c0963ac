"""Compiled programs, kept on disk for the next start to find.

What XLA made of a function depends on the function, the shapes, the versions
and the devices, and jax files it under all of these: a program that is found
is the one that would have been compiled, down to the last bit.
"""

import hashlib
import os
import pathlib
import platform
import tempfile

import jax

OFF = "off"
_DIRECTORY_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SECONDS_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# All of them: dozens of small programs together keep a second start waiting.
_MIN_COMPILE_SECONDS = 0.0
# Of the folder that nobody chose: nobody would think of emptying it.
MOST_BYTES = 4 * 10**9


def enable(folder: str | None = None) -> pathlib.Path | None:
  """Lets jax keep what it compiles from now on, and look there first.

  Call it before anything is compiled. Several processes may share a folder.
  It must belong to the user alone: whoever writes to it decides what this
  program runs. An entry that was cut short is compiled again each time, with
  a warning; a folder that is full only keeps nothing more.

  Args:
    folder: where; "off" keeps nothing, however jax is set; None takes what
      jax is set to (JAX_COMPILATION_CACHE_DIR), and without that
      `default_folder`, of which the oldest programs go when it holds more
      than `MOST_BYTES`.

  Returns:
    The folder, or None where nothing is kept.

  Raises:
    OSError: if a file cannot be written there. jax is left as it was: without
      programs on disk a run is as right, and begins later.
  """
  if folder == OFF:
    jax.config.update("jax_enable_compilation_cache", False)
    return None
  if not jax.config.jax_enable_compilation_cache:
    return None
  if _SECONDS_VARIABLE not in os.environ:
    jax.config.update(
      "jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS
    )
  chosen = folder or jax.config.jax_compilation_cache_dir
  if chosen and "://" in chosen:  # A bucket, which jax asks by itself.
    jax.config.update("jax_compilation_cache_dir", chosen)
    return pathlib.Path(chosen)
  path = pathlib.Path(chosen).expanduser() if chosen else default_folder()
  path = path.absolute()
  path.mkdir(mode=0o700, parents=True, exist_ok=True)
  with tempfile.TemporaryFile(dir=path):
    pass
  if not chosen:
    remove_oldest(path, MOST_BYTES)
  jax.config.update("jax_compilation_cache_dir", str(path))
  return path


def default_folder() -> pathlib.Path:
  """Where programs are kept if nobody says where.

  Returns:
    pure_jax/compiled in the user's cache folder (XDG_CACHE_HOME, else
    ~/.cache), and in it a folder of this kind of processor: programs use the
    instructions of the one they were compiled on, and several may share a
    home.

  Raises:
    OSError: if the user has no home.
  """
  home = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(home):  # The standard has such values ignored.
    try:
      home = pathlib.Path.home() / ".cache"
    except RuntimeError as error:
      raise OSError(str(error)) from error
  return pathlib.Path(home) / "pure_jax" / "compiled" / _processor()


def _processor() -> str:
  """A name for the instructions that this machine has."""
  known = [platform.machine(), platform.system()]
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    if line.split(":")[0].strip() in ("model name", "flags", "Features"):
      known.append(line)
  # Once each: machines of one kind may show other numbers of cores.
  text = "\n".join(dict.fromkeys(known))
  return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def remove_oldest(folder: pathlib.Path, most: int) -> int:
  """Removes programs, those not read for longest first.

  Args:
    folder: of compiled programs.
    most: bytes that may stay; where there are more, half of it does.

  Returns:
    How many were removed.
  """
  found = []
  for path in folder.glob("*-cache"):
    try:
      facts = path.stat()
    except OSError:
      continue  # Another process was here.
    found.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
  total, removed = sum(size for _, size, _ in found), 0
  if total <= most:
    return 0
  for _, size, path in sorted(found):
    if total <= most // 2:
      break
    path.unlink(missing_ok=True)
    total, removed = total - size, removed + 1
  return removed
