"""Plants faults in the library, one at a time, and checks that a test fails.

  python tests/mutations.py [--jobs=N] [--only=WORD]

The tables of `tests/faults` list the faults. A fault names a function of the
library, a piece of its source, the text that replaces the piece, and the tests
that should fail. Each fault is planted in a process of its own, which runs
these tests. The fault is caught if one of them fails by an assertion. A crash,
a missing test or a green run is an error. Without a fault all the tests must
be green. The exit status is 0 if every fault is caught.

A fault takes 5 to 30 seconds. `--only` selects the faults whose name contains
WORD. With PURE_JAX_TEST_CACHE=FOLDER, compiled programs are used again.

`tests/project/test_mutations.py`, which runs with the other tests, fails if
the function, the piece or a test of a fault no longer exists. The fault then
has to follow the code: its name says what must stay wrong. If none of its
tests fails any more, the tests have a hole, and one is missing.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

from faults import Fault, FaultError
from faults.tables import FAULTS

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent

# "FAILED tests/method/test_x.py::test_name[case] - AssertionError: ..."
_FAILED = re.compile(r"^FAILED \S*?::(\w+)(?:\[.*?\])? - (.*)$", re.MULTILINE)
_ASSERTIONS = ("AssertionError", "assert ", "Failed: DID NOT")


def node_id(test: str) -> str:
  """Returns the id of a test for pytest, from the name of its file."""
  name, _, function = test.partition("::")
  (file,) = TESTS.rglob(name)
  return f"{file.relative_to(ROOT)}::{function}"


def run_tests(tests: list[str], fault: Fault | None = None) -> tuple[int, str]:
  """Runs tests until one fails, with a fault or without.

  Returns:
    (exit status of pytest, its output).
  """
  environment = os.environ | {"COLUMNS": "240"}  # Failures in full.
  plugin = []
  if fault is not None:
    environment["PURE_JAX_FAULT"] = json.dumps(dataclasses.asdict(fault))
    environment["PYTHONPATH"] = os.pathsep.join(
      [str(TESTS), os.environ.get("PYTHONPATH", "")]
    )
    plugin = ["-p", "faults.plugin"]
  done = subprocess.run(
    [
      *(sys.executable, "-m", "pytest", "-x", "--tb=line"),
      *("-p", "no:cacheprovider", "-n", "0"),
      *plugin,
      *sorted(node_id(test) for test in tests),
    ],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout + done.stderr


def check_green(faults: list[Fault]) -> None:
  """Runs the tests of faults without a fault: a red test "catches" any.

  Raises:
    FaultError: if a test fails.
  """
  code, output = run_tests(list({t for fault in faults for t in fault.tests}))
  if code:
    raise FaultError(f"Red without a fault:\n{output}")


def caught_by(fault: Fault) -> str:
  """Returns the name of the test that fails with the fault.

  Raises:
    FaultError: if none fails, or one does otherwise than by an assertion.
  """
  code, output = run_tests(list(fault.tests), fault)
  failed = _FAILED.search(output)
  if code == 0:
    raise FaultError(f"{fault.name!r} survives {fault.tests}.")
  if code != 1 or not failed or not failed[2].startswith(_ASSERTIONS):
    raise FaultError(f"{fault.name!r} breaks the tests:\n{output}")
  return failed[1]


def main() -> int:
  """Plants the selected faults and prints which test caught each."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
  parser.add_argument("--only", default="", help="part of the names to run")
  arguments = parser.parse_args()
  chosen = [fault for fault in FAULTS if arguments.only in fault.name]
  errors = 0
  with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
    green = pool.submit(check_green, chosen)
    results = [pool.submit(caught_by, fault) for fault in chosen]
    try:
      green.result()
    except FaultError as error:
      pool.shutdown(cancel_futures=True)
      print(error, file=sys.stderr)
      return 1
    print("| fault | function | test that went red |\n|---|---|---|")
    for fault, result in zip(chosen, results, strict=True):
      try:
        test = f"`{result.result()}`"
      except FaultError as error:
        test, errors = "**NONE**", errors + 1
        print(error, file=sys.stderr)
      print(f"| {fault.name} | {fault.function} | {test} |", flush=True)
  print(f"{len(chosen) - errors} of {len(chosen)} caught")
  return 1 if errors else 0


if __name__ == "__main__":
  sys.exit(main())
