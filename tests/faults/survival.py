"""Faults of what a run survives: damage, signals, full disks."""

from faults import Fault

FAULTS = (
  Fault(
    "a checkpoint is read without its checksums",
    "host.checkpoints.checkpointer:Checkpoints._restore",
    "damage = processes.first_says(lambda: integrity.damage(folder))",
    "damage = None",
    ("test_checkpoint.py::test_any_damaged_file_is_noticed",),
  ),
  Fault(
    "a saved tree is removed before the new one is whole",
    "host.checkpoints.weights:save_tree",
    "step = max(checkpoints.steps(), default=-1) + 1",
    "step = 0",
    (
      "test_saved_tree.py::test_a_tree_that_could_not_be_replaced_is_the_old_one",
    ),
  ),
  Fault(
    "a stopped run's checkpoint takes the place of a regular one",
    "host.checkpoints.retention:Retention.should_preserve",
    "[step for step in steps if not standings[step].interim]",
    "steps",
    (
      "test_retention.py::test_an_interim_checkpoint_takes_no_place_of_a_regular_one",
    ),
  ),
  Fault(
    "a signal that came during a save is forgotten",
    "host.distributed.preemption:defer_signals",
    "signal.raise_signal(number)",
    "del number",
    ("test_interrupts.py::test_held_back_until_the_end",),
  ),
)
