"""Does a test notice each planted fault?

  python tests/mutations.py [--jobs=N] [--only=WORD]

Every fault of `tests/faults` is planted by itself in a process that runs the
tests named with it. A fault is caught if one of them fails by an assertion; a
crash, a missing test or a green run is an error. Without a fault the same
tests must be green. Exits with 0 if all faults are caught.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import re
import subprocess
import sys

from checkout import ROOT, TESTS
from faults import Fault, FaultError
from faults.tables import FAULTS

# "FAILED tests/method/test_x.py::test_name[case] - AssertionError: ..."
_FAILED = re.compile(r"^FAILED \S*?::(\w+)(?:\[.*?\])? - (.*)$", re.MULTILINE)
_ASSERTIONS = ("AssertionError", "assert ", "Failed: DID NOT")


def node_id(test: str) -> str:
  """A test's path and name, from the name of its file and its own."""
  name, _, function = test.partition("::")
  (file,) = TESTS.rglob(name)
  return f"{file.relative_to(ROOT)}::{function}"


def run_tests(tests: list[str], fault: Fault | None = None) -> tuple[int, str]:
  """Runs tests until one fails, with a fault or without.

  Returns:
    (exit status, output).
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
  """Runs the tests without a fault: a red one would "catch" anything.

  Raises:
    FaultError: if a test fails.
  """
  code, output = run_tests(list({t for fault in faults for t in fault.tests}))
  if code:
    raise FaultError(f"Red without a fault:\n{output}")


def caught_by(fault: Fault) -> str:
  """The name of the test that notices the fault.

  Raises:
    FaultError: if none does, or not by an assertion.
  """
  code, output = run_tests(list(fault.tests), fault)
  failed = _FAILED.search(output)
  if code == 0:
    raise FaultError(f"{fault.name!r} survives {fault.tests}.")
  if code != 1 or not failed or not failed[2].startswith(_ASSERTIONS):
    raise FaultError(f"{fault.name!r} breaks the tests:\n{output}")
  return failed[1]


def main() -> int:
  """Plants all faults and prints what caught them."""
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
