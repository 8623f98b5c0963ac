"""Compiled programs kept on disk, so that the next start need not compile them.

jax's persistent compilation cache does the work. It keys a program by the
function, shapes, versions and devices, so a program from the cache is bit for
bit the one that would be compiled. This module chooses the folder.
"""

import hashlib
import os
import pathlib
import platform

import jax

from pure_jax.host.atomic_files import check_writable

# jax's default skips programs that compile in under a second, but a run has
# dozens of them.
_MIN_COMPILE_SECONDS = 0.0
_MIN_COMPILE_SECONDS_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# Limit of the default folder, which no user chose and none would clean up.
_MAX_BYTES = 4 * 10**9


def enable(folder: str | None = None) -> pathlib.Path | None:
  """Makes jax store and reuse the programs that it compiles from now on.

  Call it before anything is compiled. Several processes may share a folder.
  Only the user may write to it, because the cached programs are executed. A
  truncated entry is compiled again, with a warning; if the disk is full,
  nothing more is kept.

  Args:
    folder: to keep programs in. "off" disables the cache, however jax is
      configured. None takes the folder that jax is configured with
      (JAX_COMPILATION_CACHE_DIR), or else a folder of the user's cache, which
      is limited to `_MAX_BYTES`.

  Returns:
    The folder, or None if nothing is kept.

  Raises:
    OSError: if no file can be written there. jax's folder is unchanged: the
      run gives the same results without the cache, and starts later.
  """
  if folder == "off":
    jax.config.update("jax_enable_compilation_cache", False)
    return None
  if not jax.config.jax_enable_compilation_cache:
    return None
  if _MIN_COMPILE_SECONDS_VARIABLE not in os.environ:
    jax.config.update(
      "jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS
    )
  chosen = folder or jax.config.jax_compilation_cache_dir
  if chosen and "://" in chosen:  # A bucket, which jax opens itself.
    jax.config.update("jax_compilation_cache_dir", chosen)
    return pathlib.Path(chosen)
  path = pathlib.Path(chosen).expanduser() if chosen else _default_folder()
  path = path.absolute()
  path.mkdir(mode=0o700, parents=True, exist_ok=True)
  check_writable(path)
  if not chosen:
    remove_oldest(path, _MAX_BYTES)
  jax.config.update("jax_compilation_cache_dir", str(path))
  return path


def _default_folder() -> pathlib.Path:
  """Returns pure_jax/compiled in the user's cache folder, for this processor.

  The user's folder is XDG_CACHE_HOME, else ~/.cache. Programs use instructions
  of their processor, and different machines may share a home. Raises an OSError
  if the user has no home folder.
  """
  cache = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(cache):  # The XDG standard ignores such values.
    try:
      cache = pathlib.Path.home() / ".cache"
    except RuntimeError as error:
      raise OSError(str(error)) from error
  return pathlib.Path(cache) / "pure_jax" / "compiled" / _processor_name()


def _processor_name() -> str:
  """Returns a name that machines with the same instructions share."""
  description = [platform.machine(), platform.system()]
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    if line.split(":")[0].strip() in ("model name", "flags", "Features"):
      description.append(line)
  # Without duplicates: such machines may have different numbers of cores.
  text = "\n".join(dict.fromkeys(description))
  return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def remove_oldest(folder: pathlib.Path, max_bytes: int) -> int:
  """Removes the least recently used programs; returns how many.

  jax's own limit (jax_compilation_cache_max_size) lists the folder whenever it
  writes a program. It also keeps nothing more once it finds a program without
  its time stamp, which a process killed in between leaves.

  Args:
    folder: folder of compiled programs.
    max_bytes: above this size, programs are removed until half of it is left.
  """
  programs = []
  for path in folder.glob("*-cache"):
    try:
      status = path.stat()
    except OSError:
      continue  # Another process removed it.
    last_used = max(status.st_atime, status.st_mtime)
    programs.append((last_used, status.st_size, path))
  total, removed = sum(size for _, size, _ in programs), 0
  if total <= max_bytes:
    return 0
  for _, size, path in sorted(programs):
    if total <= max_bytes // 2:
      break
    path.unlink(missing_ok=True)
    total, removed = total - size, removed + 1
  return removed
