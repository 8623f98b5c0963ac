"""Faults of the decoder, its log-probs, its cache and its adapters."""

from faults import Fault

FAULTS = (
  Fault(
    "a value is read at the token that it is the baseline of",
    "models.critic:token_values",
    "before = values[:, prompt_tokens.shape[1] - 1 : -1]",
    "before = values[:, prompt_tokens.shape[1] :]",
    ("test_critic.py::test_a_value_is_the_head_at_the_token_before",),
  ),
  Fault(
    "packed values are read at their own token",
    "models.critic:packed_values",
    "[jnp.zeros_like(values[:, :1]), values[:, :-1]]",
    "[values]",
    (
      "test_critic.py::test_packed_values_equal_those_of_texts_with_their_own_rows",
    ),
  ),
  Fault(
    "a token's log-prob is read from its own position",
    "models.policy:token_logp",
    "hidden = hidden[:, start:-1]",
    "hidden = hidden[:, start + 1 :]",
    ("test_policy.py::test_log_probs_are_those_of_growing_prefixes",),
  ),
  Fault(
    "the trainer gives banned ids a probability",
    "models.policy:_read_logp",
    "ban_tokens(scores / readout.temperature, readout.banned_ids)",
    "ban_tokens(scores / readout.temperature, ())",
    (
      "test_policy.py::test_banned_ids_take_no_probability_however_large_their_logit",
    ),
  ),
  Fault(
    "a packed token's log-prob is read from its own position",
    "models.policy:packed_logp",
    "return back(logp), back(entropy)",
    "return logp, entropy",
    ("test_packed.py::test_packed_equals_unpacked",),
  ),
  Fault(
    "positions count the left padding",
    "models.transformer:positions_from_mask",
    "jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)",
    "jnp.cumsum(mask | True, axis=-1, dtype=jnp.int32) - 1, 0)",
    ("test_transformer.py::test_positions_count_the_kept_tokens",),
  ),
  Fault(
    "attention crosses segment boundaries",
    "models.transformer:attention_mask",
    "same = segment_ids[:, :, None] == segment_ids[:, None, :]",
    "same = (segment_ids[:, :, None] > 0) == (segment_ids[:, None, :] > 0)",
    ("test_transformer.py::test_packed_segments_are_separate_rows",),
  ),
  Fault(
    "queries and keys are not normalised",
    "models.transformer:_attention",
    "if config.qk_norm:",
    "if False:",
    ("test_transformer.py::test_logits_are_those_of_the_torch_implementation",),
  ),
  Fault(
    "adapters are added without their scale",
    "models.transformer:_project",
    "return y + config.lora.scale * low",
    "return y + low",
    ("test_lora.py::test_adapters_compute_what_merged_weights_do",),
  ),
  Fault(
    "rotary frequencies are not scaled",
    "models.rotary:rotary_frequencies",
    "if scaling is None:",
    "if True:",
    ("test_transformer.py::test_scaled_frequencies_by_their_wavelengths",),
  ),
  Fault(
    "adapters change the model before training",
    "models.params:_declare_adapters",
    "(axes[0], None, *axes[inputs:]),\n      ZEROS,",
    "(axes[0], None, *axes[inputs:]),\n      ONES,",
    ("test_lora.py::test_the_base_is_initialised_as_without_adapters",),
  ),
  Fault(
    "chunked logits give the entropy half its gradient",
    "models.token_logp:_chunked_backward",
    "above = logp + of_chunk(entropy)[..., None]",
    "above = logp",
    ("test_token_logp.py::test_each_output_has_its_own_gradient",),
  ),
  Fault(
    "chunks of padding are computed",
    "models.token_logp:_used_chunks",
    "return jnp.max(jnp.where(mask, slot // chunk + 1, 0))",
    "return jnp.max(slot // chunk + 1)",
    ("test_token_logp.py::test_chunks_of_padding_are_not_computed",),
  ),
  Fault(
    "int8 weights are rounded toward zero",
    "models.int8:quantize",
    "jnp.round(steps)",
    "jnp.trunc(steps)",
    ("test_int8.py::test_every_output_has_a_step_of_its_own",),
  ),
  Fault(
    "a new sequence attends to the previous one of its slot",
    "models.kv_cache:put_rows",
    "((0, 0), (0, cache.ring_length)))",
    "((0, 0), (0, cache.ring_length)), constant_values=True)",
    ("test_engine.py::test_the_engine_samples_the_tokens_of_one_loop",),
  ),
  Fault(
    "a ring that has wrapped around grows out of order",
    "models.kv_cache:grow_ring",
    "ring = jnp.roll(ring, start - cache.write_index, axis=axis)",
    "pass",
    ("test_kv_cache.py::test_a_ring_may_grow_at_any_time",),
  ),
  Fault(
    "slots that are kept get other keys and values",
    "models.kv_cache:take_rows",
    "lambda x: take_by_shard(x, index), act_sharding",
    "lambda x: take_by_shard(x, 0 * index), act_sharding",
    ("test_engine.py::test_the_engine_samples_the_tokens_of_one_loop",),
  ),
  Fault(
    "a masked hidden state reaches the table's gradient",
    "models.token_logp:_read_states",
    "masked.zero_masked(_read_chunk(hidden, index, chunk), kept)",
    "_read_chunk(hidden, index, chunk)",
    (
      "test_hostile_values.py::test_what_is_masked_changes_neither_value_nor_gradient",
    ),
  ),
)
