r"""Words with which a response looks back at what it has written.

The list is that of PURE's code on its branch `verl`
(github.com/CJReinforce/PURE, verl/utils/monitored_metric), which took it from
Open-Reasoner-Zero and extended it. It is matched there, and here, in the
lowercased text, without word boundaries: "await," has "wait,", and "retry
again" counts twice.
"""

import re

REFLECTION_PATTERNS = tuple(
  re.compile(pattern)
  for pattern in (
    r"wait,",
    r"alternatively,",
    r"however,",
    r"recheck[,\s]",
    r"rethink[,\s]",
    r"retry[,\s]",
    r"try again",
    r"let's check",
    r"let's verify",
  )
)


def count_reflection_words(text: str) -> int:
  """Counts the reflection words of a response.

  Each pattern is counted by itself, so overlapping matches of two patterns
  count twice.

  >>> count_reflection_words("Wait, 3+5=8. However, let's verify: 8-5=3.")
  3
  >>> count_reflection_words("")
  0

  Args:
    text: any text.
  """
  lowered = text.lower()
  return sum(len(pattern.findall(lowered)) for pattern in REFLECTION_PATTERNS)
