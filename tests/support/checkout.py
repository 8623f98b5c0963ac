"""Where the checkout is, for tests that run its scripts and read its files."""

import pathlib

SUPPORT = pathlib.Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
EXPERIMENTS = ROOT / "experiments"
