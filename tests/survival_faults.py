"""Faults of what a run survives, for `mutations.py`.

Each is a `mutations.Mutation` as a row: what is wrong, the file below
`pure_jax/`, its text, what stands there instead, the test that should notice.
"""

FAULTS = (
  (
    "a checkpoint is read without its checksums",
    "host/checkpoints/manager.py",
    "damage = processes.broadcast_from_zero(lambda: checksums.damage(folder))",
    "damage = None",
    "test_checkpoint.py::test_any_damaged_file_is_noticed",
  ),
  (
    "a saved tree is removed before the new one is whole",
    "host/checkpoints/weights.py",
    "step = max(checkpoints.steps(), default=-1) + 1",
    "step = 0",
    "test_saved_tree.py::test_a_tree_that_could_not_be_replaced_is_the_old_one",
  ),
  (
    "a stopped run's checkpoint takes the place of a regular one",
    "host/checkpoints/retention.py",
    "[step for step in steps if not standings[step].interim]",
    "steps",
    "test_retention.py::"
    "test_an_interim_checkpoint_takes_no_place_of_a_regular_one",
  ),
  (
    "a signal that came during a save is forgotten",
    "host/distributed/preemption.py",
    "    signal.raise_signal(number)\n",
    "    del number\n",
    "test_interrupts.py::test_held_back_until_the_end",
  ),
)
