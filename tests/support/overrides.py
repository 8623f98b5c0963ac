"""Configs with some fields replaced, for tests."""

from typing import Any


def with_changes(config: Any, **changes: Any) -> dict[str, Any]:
  """A config as a dict, with other values.

  Args:
    config: a ConfigDict.
    **changes: by name; `a__b` is field b of group a.

  Returns:
    A new dict. Fields that the config does not have are added.
  """
  fields = config.to_dict()
  for name, value in changes.items():
    *groups, field = name.split("__")
    target = fields
    for group in groups:
      target = target[group]
    target[field] = value
  return fields
