"""Scripts of experiments/ in the process of the tests, without a start."""

import contextlib
import importlib.util

from absl import flags
from checkout import EXPERIMENTS


@contextlib.contextmanager
def imported_script(name, *words):
  """Imports a script with flags such as --rows=8; then removes its flags."""
  spec = importlib.util.spec_from_file_location(
    name, EXPERIMENTS / f"{name}.py"
  )
  module, before = importlib.util.module_from_spec(spec), set(flags.FLAGS)
  parsed = flags.FLAGS.is_parsed()
  try:
    spec.loader.exec_module(module)
    flags.FLAGS.mark_as_parsed()
    for word in words:
      flag, _, value = word.removeprefix("--").partition("=")
      flags.FLAGS[flag].parse(value)
    yield module
  finally:
    # Another script may have flags of the same names.
    for flag in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, flag)
    if not parsed:
      flags.FLAGS.unparse_flags()
