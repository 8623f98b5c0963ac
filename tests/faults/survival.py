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
    "host.distributed.preemption:defer_signals",
    "signal.raise_signal(number)",
    "del number",
    ("test_preemption.py::test_a_deferred_signal_is_raised_at_the_end",),
  ),
  Fault(
    "temporary files of killed processes stay",
    "runs.workdir:_remove_left_over",
    "is_left_over(path) or is_incomplete(path)",
    "is_incomplete(path)",
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
    "what a killed export left stays beside the next one",
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
