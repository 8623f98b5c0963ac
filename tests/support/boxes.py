r"""The end of the first answer in a box, by the grader's own rule."""

from pure_jax.host.grading import verify


def end_of_box(text):
  r"""Characters up to the first place where the grader finds an answer.

  None if it finds none in any beginning of the text.
  """
  for end in range(1, len(text) + 1):
    if verify.first_of(text[:end], [verify.boxed]) is not None:
      return end
  return None
