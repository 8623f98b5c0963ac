"""Faults that the check of an accelerator sees."""

from faults import Fault

_STEP = "test_check_accelerator.py::test_a_step_in_float32_is_that_of_numpy"

FAULTS = (
  Fault(
    "a new token attends to padding and to slots that hold nothing",
    "models.decoding:_segment_scores",
    "scores = jnp.where(mask_PM[:, None, None], scores, MASKED_SCORE)",
    "pass",
    (_STEP,),
  ),
  Fault(
    "a row samples with the key of the row after it",
    "rollout.sampling:row_keys",
    "in_axes=(None, 0))(key, row_ids)",
    "in_axes=(None, 0))(key, row_ids + 1)",
    (_STEP,),
  ),
  Fault(
    "norms and biases decay in the update that is checked",
    "training.optim:make_optimizer",
    "mask=None if declared is None else decaying(declared)",
    "mask=None",
    (_STEP,),
  ),
  Fault(
    "the decode kernel attends to masked slots of a block",
    "kernels.decode_attention:_add_block",
    "row_mask = (mask[g : g + 1] != 0) & (slot < slots)",
    "row_mask = slot < slots",
    (
      "test_check_accelerator.py::test_a_kernel_is_compared_with_its_reference",
    ),
  ),
  Fault(
    "prompts that wait start with the keys of the first ones",
    "rollout.slots:start_prompts",
    "sampling.row_keys(key, row_ids)",
    "sampling.row_keys(key, jnp.arange(row_ids.size))",
    ("test_check_accelerator.py::test_the_engine_samples_what_one_loop_does",),
  ),
)
