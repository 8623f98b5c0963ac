r"""Complete boxes in a text, found by scanning its characters."""

BEGINNING = r"\boxed{"


def end_of_box(text):
  r"""Number of characters up to the end of the first ``\boxed{...}``.

  None without a complete box.
  """
  start = text.find(BEGINNING)
  if start < 0:
    return None
  depth = 0
  for position in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[position], 0)
    if depth == 0 and position >= start + len(BEGINNING):
      return position + 1
  return None
