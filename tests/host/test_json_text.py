"""Damaged JSON is a ValueError; a number that is not finite is null."""

import json
import math

import jax.numpy as jnp
import numpy as np
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
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_broken_json_is_a_value_error(text):
  for read in (
    lambda: json_text.parse(text),
    lambda: json_text.parse(text.encode()),
    lambda: json_text.parse_start("[1]" + text, 3),
  ):
    with pytest.raises(Exception, match=r".") as raised:
      read()
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("data", [b"\xff", b'"\xed\xa0\x80"', b'["\xc3"]'])
def test_bytes_that_are_not_utf_8_are_a_value_error(data):
  with pytest.raises(ValueError, match="utf-8"):
    json_text.parse(data)


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ('"\\ud83d\\ude00"', "\U0001f600"),
    ('["\\u00e9"]', ["é"]),
    ("[" + ",".join(["[]"] * 200) + "]", [[]] * 200),
    ('{"a": null, "b": [1, 2.5, true]}', {"a": None, "b": [1, 2.5, True]}),
  ],
)
def test_whole_json_is_read(text, value):
  for finite in (False, True):
    assert json_text.parse(text, finite=finite) == value
    assert json_text.parse(text.encode(), finite=finite) == value
  assert json_text.parse_start(f"0,{text},", 2) == (value, 2 + len(text))
  json_text.parse("[" * json_text.MAX_DEPTH + "]" * json_text.MAX_DEPTH)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_only_finite_numbers_pass_where_only_they_may(number):
  assert not math.isfinite(json_text.parse(f'{{"a": [{number}]}}')["a"][0])
  with pytest.raises(ValueError, match=number):
    json_text.parse(f'{{"a": [{number}]}}', finite=True)


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (math.nan, None),
    (-math.inf, None),
    (np.float64("nan"), None),
    (np.float32("inf"), None),
    (jnp.float32(math.nan), None),
    (jnp.bfloat16(math.inf), None),
    (np.float32(0.5), 0.5),
    (jnp.int32(3), 3),
    (np.bool_(True), True),
    (10**400, 10**400),
    ((1, np.arange(2)), [1, [0, 1]]),
    (np.asarray([[math.nan, 1.0]]), [[None, 1.0]]),
    ({"a": {"b": jnp.asarray([math.nan])}}, {"a": {"b": [None]}}),
    ("a\ud800", "a\ud800"),
    (None, None),
  ],
)
def test_any_number_can_be_written(value, expected):
  text = json_text.dump({"value": value, "list": [value]})
  written = json.loads(text, parse_constant=pytest.fail)
  assert written == {"value": expected, "list": [expected]}
  assert type(written["value"]) is type(expected)


@pytest.mark.parametrize("value", [object(), 1j, b"bytes", {1, 2}])
def test_what_is_no_json_is_a_type_error(value):
  with pytest.raises(TypeError):
    json_text.dump([value])
