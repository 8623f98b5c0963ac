"""Writes a page about a run: curves, alarms, and samples with their credit.

  python experiments/report.py --workdir=DIR
  python experiments/report.py --workdir=DIR --compare=OTHER --page=FILE.html

The page is one file of HTML, DIR/report.html by default, which opens without a
server and without a network. Curves have marks where an alarm was raised or the
run was rolled back. Each response is shown with its steps, coloured by score,
return or advantage, under each form of credit. Responses can be filtered, and
those to the same problem compared, before and after, and between two runs. The
address of the page keeps what is shown.

The run may still be going on; the command can be repeated.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import pathlib
import sys

import jax
from absl import app, flags

from pure_jax.host.atomic_files import write_text_atomic
from pure_jax.host.logs import console
from pure_jax.host.logs.metrics import MetricsError
from pure_jax.runs.run_report.page import make_page
from pure_jax.runs.run_report.run_data import read_run
from pure_jax.runs.workdir import WorkdirError

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run.", allow_override=True
)
_COMPARE = flags.DEFINE_multi_string(
  "compare", [], "Folder of another run to compare with; may be repeated."
)
_PAGE = flags.DEFINE_string(
  "page", None, "The file to write; report.html in the workdir by default."
)


def main(argv: list[str]) -> None:
  """Reads the runs and writes the page."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  folders = [pathlib.Path(x) for x in (_WORKDIR.value, *_COMPARE.value)]
  output = pathlib.Path(_PAGE.value or folders[0] / "report.html")
  # Accelerators may be in use by the run.
  jax.config.update("jax_platforms", "cpu")
  try:
    page = make_page([read_run(folder) for folder in folders])
  except (WorkdirError, MetricsError) as error:
    console.tell(f"error: {error}")
    sys.exit(1)
  try:
    write_text_atomic(output, page)
  except OSError as error:
    console.tell(f"error: --page: {output} cannot be written: {error}.")
    sys.exit(1)
  console.show(f"open {output}")


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  interrupts.run(app.run, main)
