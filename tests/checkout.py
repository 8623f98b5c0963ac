"""Where the checkout is, for tests that run its scripts and read its files."""

import pathlib

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
EXPERIMENTS = ROOT / "experiments"
