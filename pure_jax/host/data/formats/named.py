"""The formats by the names that configs and command lines use."""

from collections.abc import Mapping

from pure_jax.host.data.formats import (
  Format,
  gsm8k_steps,
  labelled_steps,
  mapped,
  prm800k,
  problems,
)
from pure_jax.host.data.records import LabelledSolution, Problem

FORMATS: dict[str, Format] = {
  "gsm8k": problems.GSM8K,
  "math8k": problems.MATH8K,
  "math500": problems.MATH500,
  "minerva_math": problems.MINERVA_MATH,
  "olympiadbench": problems.OLYMPIADBENCH,
  "aime24": problems.AIME24,
  "amc23": problems.AMC23,
  "stepwise": labelled_steps.STEPWISE,
  "math_shepherd": labelled_steps.MATH_SHEPHERD,
  "processbench": labelled_steps.PROCESSBENCH,
  "prm800k": prm800k.make_format(),
  "gsm8k_steps": gsm8k_steps.make_format(),
  # These read the same file, but label more steps as bad.
  "gsm8k_departures": gsm8k_steps.make_format(departures=True),
  "gsm8k_departures_and_answers": gsm8k_steps.make_format(
    departures=True, answers=True
  ),
}
# Formats that need a mapping of field names, see `mapped`.
MAPPED: dict[str, type[Problem] | type[LabelledSolution]] = {
  "mapped_problems": Problem,
  "mapped_steps": LabelledSolution,
}


def format_names(
  record: type[Problem] | type[LabelledSolution],
) -> tuple[str, ...]:
  """Returns the names of the formats that make one kind of record.

  Args:
    record: `Problem` or `LabelledSolution`.
  """
  return (
    *(n for n, row_format in FORMATS.items() if row_format.record is record),
    *(name for name, kind in MAPPED.items() if kind is record),
  )


def find_format(
  name: str,
  fields: Mapping[str, str] | None = None,
  neutral_labels: str = "good",
) -> Format:
  """Looks a format up by its name.

  >>> find_format("gsm8k").record.__name__
  'Problem'
  >>> find_format("mapped_problems", {"problem": "question"}).name
  'mapped_problems'

  Args:
    name: a key of `FORMATS` or `MAPPED`.
    fields: the mapping that a format of `MAPPED` needs: names of fields of the
      record to names of fields of the file. None for all other formats.
    neutral_labels: label of the neutral steps of PRM800K, one of
      `prm800k.NEUTRAL_LABELS`. No other format has neutral steps.

  Raises:
    ValueError: if the name is unknown, or if the mapping is missing, does not
      fit the record, or is given to a format that takes none; if
      neutral_labels is unknown, or is given to another format than PRM800K's.
  """
  is_default = neutral_labels == "good"
  if not is_default and name != "prm800k":
    raise ValueError(
      f"neutral_labels={neutral_labels!r} needs the format 'prm800k', not "
      f"{name!r}, which has no neutral steps: leave it at 'good'."
    )
  if name in MAPPED:
    if fields is None:
      raise ValueError(
        f"format {name!r} needs a mapping from the fields of "
        f"{MAPPED[name].__name__} to those of the file, such as "
        "{'problem': 'question'}"
      )
    return mapped.make_format(MAPPED[name], fields, source=name)
  if name not in FORMATS:
    raise ValueError(
      f"there is no format {name!r}, only {', '.join([*FORMATS, *MAPPED])}"
    )
  if fields is not None:
    raise ValueError(
      f"format {name!r} knows its fields: leave the mapping out, or choose one "
      f"of {', '.join(MAPPED)}"
    )
  if is_default:
    return FORMATS[name]
  return prm800k.make_format(neutral_labels=neutral_labels)
