"""Makes the page: a template with the data of the runs in it."""

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from pure_jax.host import json_text
from pure_jax.runs.run_report.token_credit import FORMS

_DATA = "/*DATA*/"
_TITLES = {
  "sum": "sum",
  "min": "suffix min",
  "min_eq3": "Eq. 3 min",
  "softmin": "softmin",
}


def make_page(runs: Sequence[Mapping[str, Any]]) -> str:
  """Makes the page.

  Args:
    runs: the data of each run, from `run_data.read_run`.
  """
  template = importlib.resources.files(__package__).joinpath("page.html")
  forms = [{"name": form, "title": _TITLES[form]} for form in FORMS]
  data = json_text.dump({"forms": forms, "runs": runs})
  # Texts of models must not end the script that they are in.
  data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028")
  page = template.read_text(encoding="utf-8")
  return page.replace(_DATA, data.replace("\u2029", "\\u2029"))
