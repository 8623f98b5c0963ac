"""Faults of scores, updates and packed rows."""

from faults import Fault

FAULTS = (
  Fault(
    "the update forgets the batch's count",
    "training.gradients:policy_gradients",
    "new_logp, entropy, advantages, experience, loss, denominator",
    "new_logp, entropy, advantages, experience, loss, None",
    ("test_train.py::test_four_micro_batches_equal_one_batch",),
  ),
  Fault(
    "the update forgets the banned ids",
    "training.score:rollout_logp",
    "banned_ids=sampler.banned_ids,",
    "banned_ids=(),",
    ("test_train.py::test_at_the_first_iteration_ratios_are_1_and_kl_is_0",),
  ),
  Fault(
    "the update forgets the temperature",
    "training.score:rollout_logp",
    "temperature=sampler.temperature or 1.0,",
    "temperature=1.0,",
    ("test_train.py::test_the_update_reads_the_sampled_distribution",),
  ),
  Fault(
    "the sampler's weights are made of log-probs read again",
    "training.score:experience_from",
    "sampled_logp=rollout.sampled_logp,",
    "sampled_logp=scores.old_logp,",
    ("test_importance.py::test_the_update_is_given_what_the_sampler_said",),
  ),
  Fault(
    "a check of the sampler changes the update",
    "training.score:make_score",
    "old = read[0] if own else sampled",
    "old = read[0] if read else sampled",
    ("test_score.py::test_a_check_finds_a_sampler_that_is_off",),
  ),
  Fault(
    "texts of a packed row see each other",
    "training.packing:read_part",
    "segment_ids=jnp.where(held, text + 1, 0),",
    "segment_ids=held.astype(jnp.int32),",
    ("test_packed.py::test_packed_equals_unpacked",),
  ),
  Fault(
    "positions go on from text to text",
    "training.packing:read_part",
    "positions=gather(packing.ranks, source, act_sharding),",
    "positions=positions_from_mask(held),",
    ("test_packing.py::test_texts_lie_one_after_the_other",),
  ),
  Fault(
    "a text that does not fit is written over others",
    "training.packing:pack",
    "fits = jnp.all(lengths <= W)",
    "fits = jnp.all(lengths >= 0)",
    ("test_packing.py::test_a_text_that_does_not_fit_gives_no_number",),
  ),
  Fault(
    "a packed part is left out",
    "training.packing:pack",
    "(last_row // R + 1)",
    "jnp.maximum(last_row // R, 1)",
    (
      "test_packed.py::test_packed_equals_unpacked",
      "test_packing.py::test_texts_lie_one_after_the_other",
    ),
  ),
  Fault(
    "packed rows forget what the sampler said",
    "training.packed:policy_gradients",
    "read(experience.sampled_logp) if weighs",
    "read(experience.old_logp) if weighs",
    ("test_importance.py::test_parts_and_packed_rows_weigh_as_one_batch",),
  ),
)
