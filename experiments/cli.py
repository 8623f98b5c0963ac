"""Command lines of the scripts: flags, errors and exit status.

A script calls `run(main)`. An expected failure ends it with a message instead
of a traceback. The value None unsets any field of a config whose settings allow
it, as in --config.rl.answer_fraction=None.
"""

import ast
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from pure_jax.host.distributed import cluster, preemption, watchdog
from pure_jax.host.logs import console
from pure_jax.runs import compilation_cache, exit_status
from pure_jax.runs.run import Run, open_run
from pure_jax.runs.settings.conversion import ConfigError, settings_from_config


class _NoneOr(flags.ArgumentParser):
  """Parses the text None as None, and anything else as another parser does.

  A flag of a config has the parser of the field's type, and the parsers of
  numbers, texts and groups know no None. The settings that are made of the
  config refuse it where they need a value.
  """

  def __init__(self, parser: flags.ArgumentParser):
    super().__init__()
    self._parser = parser
    self.syntactic_help = parser.syntactic_help

  def parse(self, argument: Any) -> Any:
    """The value of a flag; a field's default, which is no text, stays."""
    if argument == "None":
      return None
    return self._parser.parse(argument)

  def flag_type(self) -> str:
    """The name of the other parser's type."""
    return self._parser.flag_type()


class _GroupParser(flags.ArgumentParser):
  """Parses a dict, such as "{'data': 4}", as a group of fields."""

  def parse(self, argument: Any) -> ConfigDict:
    """The group of a flag; a field's default stays."""
    if isinstance(argument, ConfigDict):
      return argument
    group = _literal(argument)
    if not isinstance(group, dict):
      raise ValueError(
        "A group of fields is a dict, such as \"{'data': 4}\", or None."
      )
    return ConfigDict(group)

  def flag_type(self) -> str:
    """The name of the type."""
    return "group of fields"


class _TupleParser(flags.ArgumentParser):
  """Parses a tuple, such as "(2, 4)"; a single value is a tuple of one."""

  def parse(self, argument: Any) -> tuple[Any, ...]:
    """The tuple of a flag; a field's default stays."""
    if isinstance(argument, tuple):
      return argument
    value = _literal(argument)
    return tuple(value) if isinstance(value, list | tuple) else (value,)

  def flag_type(self) -> str:
    """The name of the type."""
    return "tuple"


class _AnyParser(flags.ArgumentParser):
  """Parses a number, a tuple or a dict as Python does; all else is a text."""

  def parse(self, argument: Any) -> Any:
    """The value of a flag."""
    return _literal(argument)

  def flag_type(self) -> str:
    """The name of the type."""
    return "any value"


def _literal(argument: str) -> Any:
  """The value that a text is in Python, or the text itself."""
  try:
    return ast.literal_eval(argument)
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return argument  # The last two errors mean that it nests too deeply.


for _type, _parser in {
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  str: flags.ArgumentParser(),
  tuple: _TupleParser(),
  ConfigDict: _GroupParser(),
  # A config file has set the field to None, which leaves no other type.
  type(None): _AnyParser(),
}.items():
  config_flags.register_flag_parser_for_type(_type, _NoneOr(_parser))

_LARGEST = 2**31 - 1  # Of whole numbers, in flags as in configs.
_CONFIG = config_flags.DEFINE_config_file(
  "config", lock_config=True, help_string="A file of experiments/configs."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_START = flags.DEFINE_string(
  "start",
  None,
  "Another run's workdir whose data, policy and PRM this one starts from.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "host:port of process 0, if several processes run; needs --processes and "
  "--process_id. Without the three flags, jax detects its cluster.",
)
_PROCESSES = flags.DEFINE_integer(
  "processes",
  None,
  "Number of processes; 1 detects no cluster.",
  upper_bound=_LARGEST,
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id",
  None,
  "Index of this process, from 0.",
  upper_bound=_LARGEST,
)
_CONNECT_TIMEOUT = flags.DEFINE_integer(
  "connect_timeout_seconds",
  300,
  "How long to wait for the other processes at the start.",
  lower_bound=1,
  upper_bound=_LARGEST,
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
  "heartbeat_timeout_seconds",
  100,
  "After how long without a heartbeat a process counts as dead.",
  lower_bound=1,
  upper_bound=_LARGEST,
)
_COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache",
  None,
  "Folder that keeps compiled programs for the next start, or 'off'. "
  "The default is JAX_COMPILATION_CACHE_DIR, else a folder in ~/.cache.",
)

_Kind = TypeVar("_Kind")


@contextlib.contextmanager
def from_flags(*stages: str) -> Iterator[Run]:
  """Opens the run of --config, --workdir and --start, to run some stages."""
  settings = settings_from_config(_CONFIG.value)
  with open_run(settings, _WORKDIR.value, _START.value, stages) as opened:
    yield opened


def config_and_workdir(kind: type[_Kind]) -> tuple[_Kind, str]:
  """Reads --config and --workdir, for a script that trains nothing."""
  if _START.value is not None:
    raise ConfigError("--start is for training: nothing is started from here.")
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    raise ConfigError(
      f"This script runs in one process, not in {jax.process_count()}: start "
      "it once, or with --processes=1 by itself."
    )
  return settings_from_config(_CONFIG.value, kind), _WORKDIR.value


def run(
  main: Callable[[list[str]], None],
  required: Sequence[str] = ("config", "workdir"),
  keeps_programs: bool = True,
) -> None:
  """Runs a script; expected failures end it with a message and no traceback.

  Ctrl-C ends it with exit status 130, a loop after its current step at the
  latest; a second Ctrl-C ends it at once. SIGTERM ends it with 75 ("try again
  later") if a loop was running, whose last step is then saved, and with 143
  otherwise. In each case the same command continues the run. `keeps_programs`
  keeps compiled programs for the next start.
  """
  flags.mark_flags_as_required(list(required))
  console.guard_terminal()

  def parsed(argv):
    try:
      words = flags.FLAGS(argv)
      _CONFIG.value.to_dict()  # Raises if the file cannot be read.
      return words
    except flags.Error as error:
      console.tell(f"error: {_first_cause(error)}")
      sys.exit(1)
    # ml_collections raises these for a missing field or file.
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
      # A KeyError's text is quoted by repr, sometimes twice.
      reason = str(error.args[0] if error.args else error)
      for quoted in ("\\n", "\n"):
        reason = reason.replace(quoted, " ")
      reason = reason.replace("\\", "").strip("\"' ")
      console.tell(
        f"error: --config or an override of it cannot be used: {reason} "
        "(The file lists every field, or the one in its folder that it begins "
        "with.)"
      )
      sys.exit(1)

  def guarded(argv):
    if len(argv) > 1:
      raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    logging.getLogger("absl").setLevel(logging.WARNING)
    if keeps_programs:
      _keep_programs()
    with exit_status.report_errors():
      membership = cluster.ClusterConfig(
        _COORDINATOR.value,
        _PROCESSES.value,
        _PROCESS_ID.value,
        _CONNECT_TIMEOUT.value,
        _HEARTBEAT_TIMEOUT.value,
      )
      with (
        preemption.raise_on_ctrl_c(),
        watchdog.join_cluster(membership),
        preemption.raise_on_sigterm(),
      ):
        main(argv)

  app.run(guarded, flags_parser=parsed)


def _first_cause(error: flags.Error) -> Exception:
  """The `ConfigError` that a config file raised, else the error of the flag.

  The flags library puts the traceback of such an error into its own.
  """
  cause = error
  while cause is not None and not isinstance(cause, ConfigError):
    cause = cause.__context__
  while cause is not None and isinstance(cause.__context__, ConfigError):
    cause = cause.__context__
  return error if cause is None else cause


def _keep_programs() -> None:
  """Keeps compiled programs. The script runs even if the folder cannot."""
  try:
    compilation_cache.enable(_COMPILATION_CACHE.value)
  except OSError as error:
    console.tell(
      f"compiled programs are not kept: {error}. The next start compiles "
      "again; --compilation_cache names another folder."
    )
