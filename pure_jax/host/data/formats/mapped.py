"""Files of any source, read by a mapping of field names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pure_jax.host.data.formats import Format, Row, fields
from pure_jax.host.data.formats.labelled_steps import step_texts
from pure_jax.host.data.records import OPTIONAL, LabelledSolution, Problem


def make_format(
  record: type[Problem] | type[LabelledSolution],
  mapping: Mapping[str, str],
  *,
  source: str,
) -> Format:
  """Makes a format for files that only have other field names.

  Every row of a file becomes one record. Values are read by the type of the
  record's field. `answer` may also be a number. `labels` is a list of true or 1
  (good), false or 0 (bad) and null (not labelled). An optional field is None if
  the file has null or, for a text, "". A field without a mapping has the
  record's default; that of `id` is the row's number, and without `labels` no
  step is labelled.

  >>> kind = make_format(Problem, {"problem": "q", "answer": "a"}, source="own")
  >>> kind.parse({"q": "What is 1+1?", "a": 2}, 0)[0].answer
  '2'

  Args:
    record: `Problem` or `LabelledSolution`.
    mapping: names of fields of the record to names of fields of the file.
    source: name of the source and of the data set: letters, digits and
      underscores.

  Raises:
    ValueError: if the mapping names a field that the record does not have,
      or lacks `problem` or `steps`, or if the source has another character.
  """
  record_fields = {field.name: field for field in dataclasses.fields(record)}
  required = {"problem"} | ({"steps"} & record_fields.keys())
  unknown = sorted(
    mapping.keys() - record_fields.keys() | mapping.keys() & {"source"}
  )
  missing = sorted(required - mapping.keys())
  if unknown or missing:
    known = ", ".join(sorted(record_fields.keys() - {"source"}))
    raise ValueError(
      f"A mapping for {record.__name__} names its fields ({known}) and must "
      f"have {' and '.join(sorted(required))}. Unknown: {unknown}; missing: "
      f"{missing}."
    )

  def parse(row: Row, number: int) -> list[Any]:
    values: dict[str, Any] = {"id": f"{source}/{number}", "source": source}
    for name, file_field in mapping.items():
      values[name] = _read(row, file_field, name, record_fields[name].type)
    if record is LabelledSolution and "labels" not in values:
      values["labels"] = (None,) * len(values["steps"])
    return [record(**values)]

  return Format(source, 1, record, parse, f"{record.__name__} {dict(mapping)}")


def _read(row: Row, file_field: str, name: str, field_type: Any) -> Any:
  """Reads a field of the record, by its name and type, from one of a row."""
  kind = OPTIONAL.get(field_type, field_type)
  is_optional = field_type in OPTIONAL
  if name == "steps":
    return step_texts(row, file_field)
  if name == "labels":
    return tuple(_label(label) for label in fields.typed(row, file_field, list))
  if fields.value(row, file_field) is None and is_optional:
    return None
  if kind is bool:
    return fields.typed(row, file_field, bool)
  if kind is int:
    return fields.integer(row, file_field)
  if kind is float:
    return float(fields.number(row, file_field))
  is_number = isinstance(row[file_field], int | float)
  if is_number and name in ("id", "answer", "withheld_answer"):
    return fields.number_text(fields.number(row, file_field))
  if is_optional:
    return fields.optional_text(row, file_field) or None
  return fields.text(row, file_field)


def _label(label: Any) -> int | None:
  """The label of one step."""
  if label is not None and (
    not isinstance(label, bool | int) or label not in (0, 1)
  ):
    raise ValueError(f"the label {label!r} is not true, false, 1, 0 or null")
  return None if label is None else int(label)
