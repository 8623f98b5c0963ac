"""Faults of architectures and of the evaluation's numbers, for `mutations.py`.

Each is a `mutations.Mutation` as a row: what is wrong, the file below
`pure_jax/`, its text, what stands there instead, the test that should notice.
"""

FAULTS = (
  (
    "queries and keys are not normalised",
    "models/transformer.py",
    "    if config.qk_norm:\n",
    "    if False:\n",
    "test_transformer.py::test_logits_are_those_of_the_torch_implementation",
  ),
  (
    "rotary frequencies are not scaled",
    "models/rotary.py",
    "  if scaling is None:\n",
    "  if True:\n",
    "test_rotary.py::test_scaled_frequencies_by_their_wavelengths",
  ),
  (
    "chunked logits give the entropy half its gradient",
    "models/token_logp.py",
    "    above = logp + of_chunk(entropy)[..., None]\n",
    "    above = logp\n",
    "test_token_logp.py::test_each_output_has_its_own_gradient",
  ),
  (
    "chunks of padding are computed",
    "models/token_logp.py",
    "  return jnp.max(jnp.where(mask, slot // chunk + 1, 0))\n",
    "  return jnp.max(slot // chunk + 1)\n",
    "test_token_logp.py::"
    "test_masked_slots_are_zero_and_chunks_of_padding_are_not_computed",
  ),
  (
    "texts of a packed row see each other",
    "training/packing.py",
    "    segment_ids=jnp.where(held, text + 1, 0),\n",
    "    segment_ids=held.astype(jnp.int32),\n",
    "test_packed.py::test_packed_equals_unpacked",
  ),
  (
    "positions go on from text to text",
    "training/packing.py",
    "    positions=gather(packing.ranks, source, placement),\n",
    "    positions=positions_from_mask(held),\n",
    "test_packing.py::test_texts_lie_one_after_the_other",
  ),
  (
    "a packed token is read from its own state",
    "models/policy.py",
    "  return back(logp), back(entropy)\n",
    "  return logp, entropy\n",
    "test_packed.py::test_packed_equals_unpacked",
  ),
  (
    "a mean over shared rows is one over responses",
    "losses.py",
    "    response_tokens = experience.response_tokens\n",
    "    response_tokens = None\n",
    "test_packed.py::test_losses_of_shared_rows_weigh_responses_as_before",
  ),
  (
    "a text that does not fit is written over others",
    "training/packing.py",
    "  fits = jnp.all(lengths <= W)\n",
    "  fits = jnp.all(lengths >= 0)\n",
    "test_packing.py::test_a_text_that_does_not_fit_gives_no_number",
  ),
  (
    "a packed part is left out",
    "training/packing.py",
    "(last_row // R + 1)",
    "jnp.maximum(last_row // R, 1)",
    "test_packed.py::test_packed_equals_unpacked",
    "test_packing.py::test_texts_lie_one_after_the_other",
  ),
  (
    "pass@k draws with replacement",
    "host/answer_metrics.py",
    "value[row] = (subsets - math.comb(wrong[row], k)) / subsets",
    "value[row] = 1 - (wrong[row] / total[row]) ** k",
    "test_answer_metrics.py::test_pass_at_k_draws_without_replacement",
  ),
  (
    "a tied answer wins the majority outright",
    "host/answer_metrics.py",
    "tie = np.arange(1, draw.shape[1])",
    "tie = np.ones(draw.shape[1] - 1)",
    "test_answer_metrics.py::test_ties_of_the_majority_are_expectations",
  ),
  (
    "votes are counted by spelling",
    "host/evaluation.py",
    "key=equivalence.vote_key,",
    "key=None,",
    "test_evaluation.py::test_every_number_by_enumeration",
  ),
  (
    "the average counts large benchmarks more",
    "host/intervals.py",
    "value=float(np.mean([value.mean() for value in values])),",
    "value=float(np.concatenate(values).mean()),",
    "test_evaluation.py::test_every_number_by_enumeration",
  ),
  (
    "a list is read as one number",
    "host/equivalence.py",
    "if several:",
    "if several and False:",
    "test_equivalence.py::test_lists_have_no_order_and_tolerance_is_exact",
  ),
  (
    "the AUC ranks tied scores by the highest",
    "host/prm_metrics.py",
    "rank = (np.cumsum(ties) - (ties - 1) / 2)[place]",
    "rank = np.cumsum(ties)[place]",
    "test_prm_metrics.py::test_auc_counts_a_tie_as_half",
  ),
  (
    "the first error is one step late",
    "host/prm_metrics.py",
    "np.where(found, untouched.sum(-1), 0)",
    "np.where(found, untouched.sum(-1) + 1, 0)",
    "test_prm_metrics.py::test_the_first_error_is_the_first_of_several",
  ),
  (
    "the bootstrap draws each problem once",
    "host/intervals.py",
    "drawn = (statistic(rng.integers(0, count, count))",
    "drawn = (statistic(rng.permutation(count))",
    "test_intervals.py::test_responses_stay_with_their_problem",
  ),
)
