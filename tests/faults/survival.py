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
)
