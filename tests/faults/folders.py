"""Faults of reading untrusted folders: models, tokenizers, rows."""

from faults import Fault

FAULTS = (
  Fault(
    "NaN is within every range of config.json",
    "host.huggingface.json_fields:Rule.accepts",
    "self.low <= value <= self.high",
    "not (value < self.low or value > self.high)",
    ("test_hostile_configs.py::test_a_wrong_value_is_refused_with_its_field",),
  ),
  Fault(
    "a bool is a number of config.json",
    "host.huggingface.json_fields:Rule.accepts",
    "type(value) not in kinds",
    "not isinstance(value, kinds)",
    ("test_hostile_configs.py::test_a_wrong_value_is_refused_with_its_field",),
  ),
  Fault(
    "weights that are not finite are loaded",
    "host.huggingface.load:_load",
    "if fault is not None:",
    "if False:",
    ("test_hostile_files.py::test_weights_that_are_not_finite_are_named",),
  ),
  Fault(
    "weights that are not finite are exported",
    "host.huggingface.export:_export",
    "if fault is not None:",
    "if False:",
    (
      "test_hostile_files.py::test_weights_that_are_not_finite_are_not_exported",
    ),
  ),
  Fault(
    "negative values that are not finite are not found",
    "host.huggingface.files:not_finite",
    "unsigned[block].max() < limit + sign",
    "True",
    (
      "test_hostile_files.py::test_values_that_are_not_finite_are_found_as_numpy_finds_them",
    ),
  ),
  Fault(
    "weights that overflow in bfloat16 are loaded",
    "host.huggingface.files:not_finite",
    'if stored == "float32" and "bfloat16" in dtypes:',
    "if False:",
    (
      "test_hostile_files.py::test_what_overflows_in_bfloat16_is_what_jax_rounds_to_infinity",
    ),
  ),
  Fault(
    "a tokenizer may put any ids before a text",
    "host.text.huggingface_tokenizer:_read",
    "if unknown:",
    "if False:",
    (
      "test_hostile_tokenizers.py::test_wrong_values_of_the_tokenizer_are_refused",
    ),
  ),
  Fault(
    "a level beyond what is stored has no row",
    "host.data.records:Problem.__post_init__",
    "not -(2**31) <= self.level < 2**31",
    "False",
    ("test_hostile_rows.py::test_a_number_that_cannot_be_stored_has_its_row",),
  ),
)
