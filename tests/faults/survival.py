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
  Fault(
    "a run is opened whatever it needs",
    "runs.run:_check_sizes",
    "check_memory(run, stages)",
    "None",
    ("test_needs.py::test_a_finished_stage_is_not_checked_again",),
  ),
  Fault(
    "the config of a stage that does not run refuses one that does",
    "runs.memory.of_run:stage_needs",
    'if "rl" in stages:',
    "if True:",
    ("test_needs.py::test_a_stage_that_does_not_run_needs_nothing",),
  ),
  Fault(
    "the estimate counts the keys and values of all devices on each",
    "runs.memory.of_run:_rollout",
    "rows = rl.responses // shards",
    "rows = rl.responses",
    ("test_needs.py::test_half_of_the_rows_at_a_time_need_half",),
  ),
  Fault(
    "the estimate counts moments of frozen weights",
    "runs.memory.of_run:_trained",
    "model = run.settings.rl.lora.of(run.model)",
    "model = run.model",
    ("test_needs.py::test_adapters_need_less_than_all_weights",),
  ),
  Fault(
    "the estimate counts the activations of all micro-batches",
    "runs.memory.of_run:_update",
    "rows = min(limit, mini_batch) // shards",
    "rows = rl.responses // shards",
    ("test_needs.py::test_half_of_the_rows_at_a_time_need_half",),
  ),
  Fault(
    "a container may use the memory of its machine",
    "host.machine_memory:machine_bytes",
    "*_cgroup_limits()",
    "",
    ("test_machine_memory.py::test_a_container_has_its_limit",),
  ),
  Fault(
    "a seed repeats the run of another",
    "runs.settings.conversion:_check_32_bits",
    "if is_seed and not 0 <= value < SEEDS:",
    "if is_seed and value < 0:",
    ("test_absurd_sizes.py::test_a_seed_that_repeats_another_is_refused",),
  ),
  Fault(
    "memory that ran out behind another error keeps its advice",
    "runs.memory.exhausted:_causes",
    "current = current.__cause__ or context",
    "current = None",
    ("test_endings.py::test_memory_that_ran_out_is_one_line",),
  ),
  Fault(
    "a state that is not finite is saved",
    "host.checkpoints.checkpointer:Checkpoints.save",
    "if not_finite is not None:",
    "if False:",
    (
      "test_finite_checkpoints.py::test_a_state_that_is_not_finite_is_refused_and_the_one_before_stays",
    ),
  ),
  Fault(
    "a checkpoint that is not finite is restored",
    "host.checkpoints.checkpointer:Checkpoints._restore",
    "if not_finite is not None:",
    "if False:",
    (
      "test_finite_checkpoints.py::test_a_checkpoint_that_is_not_finite_counts_as_damaged",
    ),
  ),
  Fault(
    "a stage starts from weights that are not finite",
    "runs.loop:StageCheckpoints._check_start",
    "if bad is not None:",
    "if False:",
    (
      "test_supervised.py::test_a_stage_does_not_start_from_weights_that_are_not_finite",
    ),
  ),
  Fault(
    "temporary files of killed processes stay",
    "runs.workdir:_remove_left_over",
    "is_left_over(path) or (",
    "(",
    (
      "test_workdir.py::"
      "test_what_killed_processes_left_is_removed_when_it_is_opened",
    ),
  ),
  Fault(
    "a file that another process writes is removed",
    "host.atomic_files:is_left_over",
    "not _is_running(pid)",
    "True",
    (
      "test_workdir.py::"
      "test_what_killed_processes_left_is_removed_when_it_is_opened",
    ),
  ),
  Fault(
    "a file that another machine writes is removed",
    "host.atomic_files:is_left_over",
    "match[3] != _MACHINE",
    "False",
    (
      "test_workdir.py::"
      "test_what_killed_processes_left_is_removed_when_it_is_opened",
    ),
  ),
  Fault(
    "unfinished checkpoints of another program are removed",
    "runs.workdir:_remove_left_over",
    "(in_stage and is_incomplete(path))",
    "is_incomplete(path)",
    (
      "test_workdir.py::"
      "test_what_killed_processes_left_is_removed_when_it_is_opened",
    ),
  ),
  Fault(
    "a folder of another program is searched",
    "runs.workdir:lock_folder",
    "read_record(folder) is not None",
    "True",
    ("test_workdir.py::test_a_folder_that_is_no_run_is_not_searched",),
  ),
  Fault(
    "a run removes temporary files of another one in its folder",
    "runs.workdir:_remove_left_over",
    "if not (parent / child / LOCK_FILE).exists()",
    "",
    (
      "test_workdir.py::"
      "test_what_killed_processes_left_is_removed_when_it_is_opened",
    ),
  ),
  Fault(
    "what a killed export left stays after the next one",
    "host.atomic_files:_temporary",
    "_completed_name(name) == path.name and is_left_over(other)",
    "False",
    ("test_workdir.py::test_the_same_command_removes_what_a_killed_one_left",),
  ),
  Fault(
    "a command opens a folder that another one uses",
    "runs.workdir:open_workdir",
    "lock_folder(folder)",
    "contextlib.nullcontext()",
    ("test_workdir.py::test_a_folder_in_use_keeps_its_config",),
  ),
  Fault(
    "unfinished data sets of killed runs stay",
    "host.data.storage:_only_process",
    "remove(path)",
    "pass",
    (
      "test_world_dataset.py::"
      "test_what_a_killed_run_left_of_a_data_set_is_removed",
    ),
  ),
  Fault(
    "checkpoints that a killed save left to remove stay",
    "host.checkpoints.orbax_options:superseded",
    "if not keep",
    "if False",
    (
      "test_preservation.py::test_what_a_killed_save_left_to_remove_is_removed",
    ),
  ),
)
