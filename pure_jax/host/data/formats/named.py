"""Every format of files by its name, as configs and command lines say it."""

from collections.abc import Mapping

from pure_jax.host.data.formats import (
  gsm8k_steps,
  labelled_steps,
  prm800k,
  problems,
)
from pure_jax.host.data.formats.fields import Format
from pure_jax.host.data.formats.mapped import make_format
from pure_jax.host.data.records import LabelledSolution, Problem

FORMATS: dict[str, Format] = {
  found.name: found
  for found in (
    problems.GSM8K,
    problems.MATH8K,
    problems.MATH500,
    problems.MINERVA_MATH,
    problems.OLYMPIADBENCH,
    problems.AIME24,
    problems.AMC23,
    labelled_steps.STEPWISE,
    labelled_steps.MATH_SHEPHERD,
    labelled_steps.PROCESSBENCH,
    prm800k.make_format(),
    gsm8k_steps.make_format(),
  )
}
# The same file with bolder labels, see `gsm8k_steps.make_format`.
FORMATS["gsm8k_departures"] = gsm8k_steps.make_format(departures=True)
# Any other file, whose fields the user names: see `mapped_format`.
MAPPED: dict[str, type[Problem] | type[LabelledSolution]] = {
  "mapped_problems": Problem,
  "mapped_steps": LabelledSolution,
}


def format_names(
  record: type[Problem] | type[LabelledSolution],
) -> tuple[str, ...]:
  """Names of the formats of one kind of rows.

  Args:
    record: `Problem` or `LabelledSolution`.

  Returns:
    The names, those of `MAPPED` last.
  """
  return (
    *(name for name, found in FORMATS.items() if found.record is record),
    *(name for name, kind in MAPPED.items() if kind is record),
  )


def find_format(name: str, fields: Mapping[str, str] | None = None) -> Format:
  """A format by its name.

  >>> find_format("gsm8k").record.__name__
  'Problem'
  >>> find_format("mapped_problems", {"problem": "question"}).name
  'mapped_problems'

  Args:
    name: a key of `FORMATS` or `MAPPED`.
    fields: for one of `MAPPED`, name of a field of the record -> its name in
      the file, see `mapped_format.make_format`; None for any other.

  Returns:
    The format.

  Raises:
    ValueError: for a name that nothing has, or a mapping that is missing, does
      not fit the record, or is not asked for.
  """
  if name in MAPPED:
    if fields is None:
      raise ValueError(
        f"format {name!r} needs a mapping from the fields of "
        f"{MAPPED[name].__name__} to those of the file, such as "
        "{'problem': 'question'}"
      )
    return make_format(MAPPED[name], fields, source=name)
  if name not in FORMATS:
    raise ValueError(
      f"there is no format {name!r}, only {', '.join([*FORMATS, *MAPPED])}"
    )
  if fields is not None:
    raise ValueError(
      f"format {name!r} knows its fields: leave the mapping out, or choose one "
      f"of {', '.join(MAPPED)}"
    )
  return FORMATS[name]
