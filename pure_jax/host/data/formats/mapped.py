"""Any JSON-lines, JSON or Parquet file, by a mapping of field names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pure_jax.host.data.formats import fields as formats
from pure_jax.host.data.formats.fields import Format, Row
from pure_jax.host.data.formats.labelled_steps import step_texts
from pure_jax.host.data.records import LabelledSolution, Problem


def make_format(
  record: type[Problem] | type[LabelledSolution],
  mapping: Mapping[str, str],
  *,
  source: str,
) -> Format:
  """How to read files whose fields only need other names.

  Texts are read as they are; an `answer` may be a number; `labels` is a list
  of true or 1 (good), false or 0 (bad), null (no label). An optional field
  that is null, or "" where it is a text, is None. Fields without a mapping
  keep the record's default; `id` becomes the row's number, and without
  `labels` no step is labelled.

  >>> kind = make_format(Problem, {"problem": "q", "answer": "a"}, source="own")
  >>> kind.parse({"q": "What is 1+1?", "a": 2}, 0)[0].answer
  '2'

  Args:
    record: `Problem` or `LabelledSolution`.
    mapping: name of a field of the record -> its name in the files.
    source: names the rows and the data set; letters, digits, underscores.

  Returns:
    The format; a line becomes one row.

  Raises:
    ValueError: for a field the record does not have, `problem` (or `steps`)
      left without a mapping, or another kind of name.
  """
  fields = {field.name: field for field in dataclasses.fields(record)}
  required = {"problem"} | ({"steps"} & fields.keys())
  unknown = sorted(mapping.keys() - fields.keys() | mapping.keys() & {"source"})
  missing = sorted(required - mapping.keys())
  if unknown or missing:
    known = ", ".join(sorted(fields.keys() - {"source"}))
    raise ValueError(
      f"A mapping for {record.__name__} names its fields ({known}) and must "
      f"have {' and '.join(sorted(required))}. Unknown: {unknown}; missing: "
      f"{missing}."
    )

  def parse(row: Row, number: int) -> list[Any]:
    values: dict[str, Any] = {"id": f"{source}/{number}", "source": source}
    for name, theirs in mapping.items():
      values[name] = _convert(fields[name].type, name, row, theirs)
    if record is LabelledSolution and "labels" not in values:
      values["labels"] = (None,) * len(values["steps"])
    return [record(**values)]

  return Format(source, 1, record, parse, f"{record.__name__} {dict(mapping)}")


def _convert(kind: Any, name: str, row: Row, theirs: str) -> Any:
  """A raw field as the record's field of that type wants it."""
  if name == "steps":
    return step_texts(row, theirs)
  if name == "labels":
    return tuple(_label(found) for found in formats.items(row, theirs))
  if formats.value(row, theirs) is None and _is_optional(kind):
    return None
  if kind in (bool, bool | None):
    return formats.flag(row, theirs)
  if kind == int | None:
    return formats.integer(row, theirs)
  if kind == float | None:
    return float(formats.number(row, theirs))
  is_number = isinstance(row[theirs], int | float)
  if is_number and name in ("id", "answer", "withheld_answer"):
    return formats.number_text(formats.number(row, theirs))
  if _is_optional(kind):
    return formats.optional_text(row, theirs) or None
  return formats.text(row, theirs)


def _is_optional(kind: Any) -> bool:
  """Whether a field's type has None."""
  return kind in (str | None, bool | None, int | None, float | None)


def _label(found: Any) -> int | None:
  """One label of a step."""
  if found is not None and (
    not isinstance(found, bool | int) or found not in (0, 1)
  ):
    raise ValueError(f"the label {found!r} is not true, false, 1, 0 or null")
  return None if found is None else int(found)
