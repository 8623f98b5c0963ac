"""Command lines of scripts, parsed in the process of the tests."""

import contextlib
import sys
from unittest import mock

from absl import flags
from absl.testing import flagsaver
from checkout import ROOT

CONFIGS = ROOT / "experiments" / "configs"


@contextlib.contextmanager
def parsed(config, workdir, *options):
  """Parses a command line; afterwards all flags have their former values.

  `config` is a file of experiments/configs, `options` are words such as
  --config.rl.iterations=1. The script must have been imported.
  """
  words = [f"--config={CONFIGS / config}", f"--workdir={workdir}", *options]
  argv = ["script", *words]
  # Flags of a config read their values from sys.argv.
  with mock.patch.object(sys, "argv", argv), flagsaver.flagsaver():
    flags.FLAGS(argv)
    yield
