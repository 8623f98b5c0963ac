"""Faults of texts: what is printed, chat templates, files that expand."""

from faults import Fault

FAULTS = (
  Fault(
    "replacements of a tokenizer count once, however many there are",
    "host.text.huggingface_tokenizer:_growth",
    "math.prod(map(_growth, steps))",
    "max(map(_growth, steps), default=1)",
    (
      "test_huggingface_tokenizer.py::test_a_tokenizer_that_multiplies_texts_raises",
    ),
  ),
  Fault(
    "printed texts keep what a terminal obeys",
    "host.logs.visible:visible",
    "_COMMANDS.sub(_escape, text)",
    "text",
    (
      "test_visible.py::test_no_way_to_print_lets_a_command_through",
      "test_visible.py::test_a_file_for_people_can_be_shown",
    ),
  ),
  Fault(
    "warnings keep what a terminal obeys",
    "host.logs.console:guard_terminal",
    "warnings.showwarning = _tell_warning",
    "pass",
    ("test_visible.py::test_no_way_to_print_lets_a_command_through",),
  ),
  Fault(
    "transformers reads damaged files of a tokenizer",
    "host.text.huggingface_tokenizer:_check_files",
    "name in _JSON_FILES}",
    "name in _OWN_FILES}",
    ("test_hostile_tokenizers.py::test_a_damaged_file_is_named",),
  ),
  Fault(
    "a character that the encoding of stdout lacks is lost",
    "host.logs.console:_writable",
    '"backslashreplace"',
    '"replace"',
    ("test_visible.py::test_no_encoding_of_a_stream_stops_a_run",),
  ),
  Fault(
    "a template that exceeds the limit of its output has no text",
    "host.text.chat_template:render",
    "if fault is not None:",
    "if False:",
    ("test_chat_template.py::test_an_expensive_template_costs_a_sentence",),
  ),
  Fault(
    "the third batch of a Parquet file has the rows of the second",
    "host.data.parquet:row_texts",
    "number += len(texts)",
    "number = len(texts)",
    (
      "test_sources.py::test_a_small_file_of_many_long_texts_is_read_a_few_rows_at_a_time",
    ),
  ),
  Fault(
    "a line is read as a whole, however long",
    "host.data.sources:_bounded_lines",
    "line if is_whole else None",
    "line",
    ("test_sources.py::test_a_line_that_is_too_long_is_malformed",),
  ),
  Fault(
    "the stem of a separator with more blank lines has line breaks",
    "host.text.tokenization:separator_table",
    "text.removesuffix(_blank_end(text))",
    "text.removesuffix(SEPARATOR)",
    (
      "test_tokenization.py::test_a_prm_reads_no_more_blank_lines_than_in_its_training",
    ),
  ),
  Fault(
    "content that is no id itself keeps all its blank lines",
    "host.text.tokenization:separator_table",
    "first_id.get(content + SEPARATOR, i)",
    "i",
    (
      "test_tokenization.py::test_a_prm_reads_no_more_blank_lines_than_in_its_training",
    ),
  ),
  Fault(
    "texts of steps end with the blank lines behind them",
    "host.text.tokenization:split_texts",
    "text.removesuffix(_blank_end(piece))",
    "text.removesuffix(SEPARATOR)",
    (
      "test_tokenization.py::test_a_prm_reads_no_more_blank_lines_than_in_its_training",
    ),
  ),
  Fault(
    "white space is the content of a step",
    "steps:_is_content",
    "~(bare | jnp.asarray(table.blank)[tokens])",
    "~bare",
    ("test_tokenization.py::test_steps_of_white_space_are_empty",),
  ),
)
