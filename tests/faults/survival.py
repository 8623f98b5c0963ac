"""Faults of checkpoints and signals."""

from faults import Fault

FAULTS = (
  Fault(
    "a checkpoint is restored without a check of its checksums",
    "host.checkpoints.checkpointer:Checkpoints._restore",
    "processes.broadcast_from_zero(lambda: integrity.find_damage(folder))",
    "None",
    (
      "test_integrity.py::test_a_damaged_checkpoint_falls_back_to_the_one_before",
    ),
  ),
  Fault(
    "deeply nested JSON is no ValueError",
    "host.json_text:parse",
    "except RecursionError:",
    "except KeyError:",
    ("test_json_text.py::test_broken_json_is_a_value_error",),
  ),
  Fault(
    "JSON that a recursive function cannot follow is read",
    "host.json_text:_check_depth",
    "raise ValueError(_TOO_DEEP)",
    "return",
    ("test_json_text.py::test_broken_json_is_a_value_error",),
  ),
  Fault(
    "a number that is not finite is written as 0",
    "host.json_text:to_json",
    "float(value) if math.isfinite(value) else None",
    "float(value) if math.isfinite(value) else 0.0",
    ("test_json_text.py::test_any_number_can_be_written",),
  ),
  Fault(
    "a row of metrics may have any value",
    "host.logs.metrics:MetricsWriter._read",
    "read_metrics(self._path.parent)",
    "read_log(self._path)",
    ("test_metrics.py::test_a_metric_is_a_number",),
  ),
  Fault(
    "the rows of a log are first read when the log is rewound",
    "host.logs.metrics:RowWriter.__init__",
    "self._read()",
    "pass",
    ("test_metrics.py::test_a_damaged_line_is_an_error_and_nothing_is_lost",),
  ),
  Fault(
    "a saved tree is removed before the new one is complete",
    "host.checkpoints.weights:save_tree",
    "step = max(checkpoints.steps(), default=-1) + 1",
    "step = 0",
    (
      "test_checkpoint.py::test_a_tree_that_could_not_be_replaced_is_the_old_one",
    ),
  ),
  Fault(
    "an interim checkpoint counts as a regular one",
    "host.checkpoints.orbax_options:preservation_policy",
    "return None if metrics.interim else metrics.values",
    "return metrics.values",
    (
      "test_preservation.py::test_an_interim_checkpoint_does_not_count_as_regular",
    ),
  ),
  Fault(
    "a signal that comes during a save is lost",
    "host.distributed.preemption:_postpone",
    "handlers[number](number, None)",
    "del number",
    ("test_preemption.py::test_a_deferred_signal_is_raised_at_the_end",),
  ),
  Fault(
    "a signal whose exception was lost is not raised again",
    "host.distributed.preemption:_raise_if",
    "raise exception",
    "del exception",
    ("test_preemption.py::test_a_lost_signal_is_raised_by_the_next_check",),
  ),
  Fault(
    "a signal that is lost while handlers change is forgotten",
    "host.distributed.preemption:_postpone",
    "if signal.signal(number, _note) is _ignore:",
    "if signal.signal(number, _note) is None:",
    ("test_preemption.py::test_a_signal_lost_while_handlers_change_is_raised",),
  ),
  Fault(
    "a script whose signal was lost ends well",
    "host.distributed.preemption:_raise_on",
    "if received:",
    "if False:",
    ("test_preemption.py::test_a_lost_signal_is_raised_at_the_end",),
  ),
  Fault(
    "a second Ctrl-C waits for the end of a compilation",
    "host.distributed.preemption:_exit_after_two",
    "count == 2",
    "count == 2000",
    (
      "test_preemption.py::test_a_second_ctrl_c_ends_code_that_does_not_return_to_python",
    ),
  ),
)
