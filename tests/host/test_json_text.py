"""Tests of reading JSON that others wrote."""

import pytest

from pure_jax.host import json_text

BROKEN = {
  "empty": "",
  "cut short": '{"step": ',
  "NUL bytes": "\0" * 9,
  "nested, unclosed": "[" * 200_000,
  "nested, closed": "[" * 200_000 + "]" * 200_000,
  "nested objects": '{"a":' * 200_000 + "1" + "}" * 200_000,
  # Python itself reads this one; a recursive reader of the result cannot.
  "nested 101 deep": "[" * 101 + "]" * 101,
  "huge integer": "1" * 5000,
  "half of a surrogate pair": '["\\ud800"]',
  "half of a surrogate pair in a name": '{"\\udfff": 1}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("kind", [str, str.encode], ids=["text", "bytes"])
def test_broken_json_is_a_value_error(text, kind):
  with pytest.raises(ValueError, match=r"."):
    json_text.parse(kind(text))


@pytest.mark.parametrize("data", [b"\xff", b'"\xed\xa0\x80"', b'["\xc3"]'])
def test_bytes_that_are_not_utf_8_are_a_value_error(data):
  with pytest.raises(ValueError, match="utf-8"):
    json_text.parse(data)


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ('"\\ud83d\\ude00"', "\U0001f600"),
    ('["\\u00e9"]', ["é"]),
    ("[" * 100 + "]" * 100, None),
    ("[" + ",".join(["[]"] * 200) + "]", [[]] * 200),
    ('{"a": null, "b": [1, 2.5, true]}', {"a": None, "b": [1, 2.5, True]}),
  ],
)
def test_whole_json_is_read(text, value):
  for kind in (text, text.encode()):
    parsed = json_text.parse(kind)
    assert value is None or parsed == value
