"""Formats: how a raw row of a file becomes records.

To add a format:

1. Write a module here with a function `parse(row, number) -> list of records`.
   Read the row with the functions of `fields`: they raise a ValueError that
   names the field. Return [] to leave a row out.
2. Make a `Format` of it, with version 1. Raise the version with every change
   of the results of `parse`: prepared data sets are looked up by it.
3. Add the format to `named.FORMATS`. Configs and flags then accept its name.
4. Test it on rows written by hand: tests/host/data/test_problems.py.
5. If the Hugging Face hub has a file in the format, name it in `public.PUBLIC`
   and in docs/public_data.md. `ORG/NAME` in a config then stands for it.

Files that only have other field names need no format: see `mapped`.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from pure_jax.host.data.records import LabelledSolution, Problem

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Format:
  """How the rows of one kind of file are parsed.

  Attributes:
    name: names the prepared data set: letters, digits and underscores.
    version: raised with every change of the results of `parse`.
    record: the record it makes, `Problem` or `LabelledSolution`.
    parse: (raw row, its number from 0 within the split) -> records. An empty
      list leaves the row out. A ValueError says why the row is malformed.
    options: text that names all other settings that affect `parse`.
  """

  name: str
  version: int
  record: type[Problem] | type[LabelledSolution]
  parse: Callable[[Row, int], list[Any]]
  options: str = ""

  def __post_init__(self):
    """Validates the name, which becomes the name of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", self.name):
      raise ValueError(
        f"The name of a format is letters, digits and _, not {self.name!r}."
      )
