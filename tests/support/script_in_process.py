"""Scripts of experiments/ in the process of the tests, without a start."""

import contextlib
import importlib.util
import itertools

from absl import flags
from checkout import EXPERIMENTS


@contextlib.contextmanager
def imported_script(name, *words):
  """Imports a script with flags such as --rows=8; then removes its flags."""
  spec = importlib.util.spec_from_file_location(
    name, EXPERIMENTS / f"{name}.py"
  )
  module, parsed = (
    importlib.util.module_from_spec(spec),
    flags.FLAGS.is_parsed(),
  )
  with _without_flags_of_scripts():
    before = set(flags.FLAGS)
    try:
      spec.loader.exec_module(module)
      flags.FLAGS.mark_as_parsed()
      for word in words:
        flag, _, value = word.removeprefix("--").partition("=")
        flags.FLAGS[flag].parse(value)
      yield module
    finally:
      for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
      if not parsed:
        flags.FLAGS.unparse_flags()


@contextlib.contextmanager
def _without_flags_of_scripts():
  """Takes away the flags of scripts that other tests import.

  Two scripts may have a flag of the same name.
  """
  scripts = {path.stem for path in EXPERIMENTS.glob("*.py")}
  by_module = {
    module: list(flags_of_module)
    for module, flags_of_module in flags.FLAGS.flags_by_module_dict().items()
    if module in scripts
  }
  for flag in itertools.chain(*by_module.values()):
    delattr(flags.FLAGS, flag.name)
  try:
    yield
  finally:
    for module, flags_of_module in by_module.items():
      for flag in flags_of_module:
        flags.FLAGS[flag.name] = flag
        flags.FLAGS.register_flag_by_module(module, flag)
