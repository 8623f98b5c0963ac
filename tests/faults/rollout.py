"""Faults of prompts, of sampling and of continuous batching."""

from faults import Fault

FAULTS = (
  Fault(
    "prompts lack the token that begins a text",
    "host.text.huggingface_tokenizer:HuggingFaceTokenizer.encode_prompt",
    "self._beginning + self.encode(text)",
    "self.encode(text)",
    (
      "test_prompt_ids.py::test_prompts_without_chat_have_the_ids_of_transformers",
    ),
  ),
  Fault(
    "a chat begins with the token that its template has written already",
    "host.text.prompt_formats:PromptFormat.ids",
    "if self.chat:",
    "if False:",
    ("test_prompt_ids.py::test_a_chat_has_as_many_bos_as_its_template_writes",),
  ),
  Fault(
    "only the tokenizer's end id ends a response",
    "host.text.huggingface_tokenizer:HuggingFaceTokenizer._eos_ids",
    "for name in EOS_FILES:",
    "for name in ():",
    ("test_huggingface_tokenizer.py::test_all_end_ids_of_a_folder",),
  ),
  Fault(
    "an end id that is also padding is banned",
    "host.text.huggingface_tokenizer:HuggingFaceTokenizer.__init__",
    "{self.pad_id, *unused} - {*self.eos_ids}",
    "{self.pad_id, *unused}",
    ("test_huggingface_tokenizer.py::test_all_end_ids_of_a_folder",),
  ),
  Fault(
    "a group of ids has the logit of its likeliest id",
    "rollout.sampling:_draw",
    "jax.nn.logsumexp(members, axis=1)",
    "jnp.max(members, axis=1)",
    ("test_sampling.py::test_a_large_vocabulary_is_drawn_from_in_two_stages",),
  ),
  Fault(
    "group and id are drawn with the same noise",
    "rollout.sampling:_draw",
    "stages[:, 1]",
    "stages[:, 0]",
    ("test_sampling.py::test_the_two_stages_take_independent_noise",),
  ),
  Fault(
    "only the first end id ends a step",
    "steps:_is_eos",
    "eos_ids[None, None, :]",
    "eos_ids[None, None, :1]",
    ("test_steps.py::test_an_end_id_that_is_also_padding_ends_a_response",),
  ),
  Fault(
    "the sampler may draw banned ids",
    "rollout.sampling:sample_tokens",
    "scores = token_logp.ban_tokens(scores, config.banned_ids)",
    "pass",
    (
      "test_generation.py::test_padding_is_never_sampled_and_the_trainer_knows",
    ),
  ),
  Fault(
    "padding is not among the banned ids",
    "rollout.sampling:SamplingConfig.__post_init__",
    "{*self.banned_ids} | padding",
    "{*self.banned_ids}",
    (
      "test_generation.py::test_padding_is_never_sampled_and_the_trainer_knows",
    ),
  ),
  Fault(
    "min-p is relative to the sum of all probabilities",
    "rollout.sampling:filter_logits",
    "top = jnp.max(scores, axis=-1, keepdims=True)",
    "top = jax.nn.logsumexp(scores, axis=-1, keepdims=True)",
    (
      "test_sampling.py::test_frequencies_and_log_probs_are_those_of_the_filtered_distribution",
    ),
  ),
  Fault(
    "the sampler's positions count the left padding",
    "rollout.generation:prefill",
    "lengths = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)",
    "lengths = jnp.sum(prompts.mask | True, axis=1, dtype=jnp.int32)",
    ("test_generation.py::test_left_padding_changes_nothing",),
  ),
  Fault(
    "EOS is not in the completion mask",
    "rollout.generation:to_rollout",
    "completions.lengths[:, None]",
    "(completions.lengths - completions.stopped)[:, None]",
    (
      "test_generation.py::test_a_stop_id_cuts_the_free_run_after_its_first_occurrence",
    ),
  ),
  Fault(
    "a sequence continues after EOS",
    "rollout.generation:_sample",
    "done=state.done | stopped | (num_generated >= config.max_new_tokens),",
    "done=stopped | (num_generated >= config.max_new_tokens),",
    (
      "test_generation.py::test_a_stop_id_cuts_the_free_run_after_its_first_occurrence",
    ),
  ),
  Fault(
    "a truncated response ends where its padding is an end id",
    "rollout.generation:_sample",
    "(tokens == stop_id) & alive",
    "(tokens == stop_id)",
    ("test_response_ends.py::test_rollouts_of_rl_end_at_every_end_id",),
  ),
  Fault(
    "an inner brace closes a box",
    "host.text.stop_texts:_after",
    "if state.braces and not braces:",
    "if state.braces > braces:",
    ("test_stop_texts.py::test_random_cuts_of_random_texts",),
  ),
  Fault(
    "an empty box ends a response",
    "host.text.stop_texts:_after",
    "if has_content else _State(outer, has_content=outer > 0)",
    "",
    ("test_stop_texts.py::test_random_cuts_of_random_texts",),
  ),
  Fault(
    "a box around an empty box is forgotten",
    "host.text.stop_texts:_after",
    "_State(outer, has_content=outer > 0)",
    "_START",
    ("test_stop_texts.py::test_a_text_cut_in_two_or_into_characters",),
  ),
  Fault(
    "an escaped brace closes a box",
    "host.text.stop_texts:_after",
    "if not escaped:",
    "if True:",
    ("test_stop_texts.py::test_random_cuts_of_random_texts",),
  ),
  Fault(
    "a new sequence samples with the key of its slot",
    "rollout.slots:start_prompts",
    "sampling.row_keys(key, row_ids),",
    "sampling.row_keys(key, jnp.arange(row_ids.shape[0])),",
    ("test_engine.py::test_the_engine_samples_the_tokens_of_one_loop",),
  ),
  Fault(
    "each chunk of decoding overwrites the one before",
    "rollout.slots:write_completions",
    "column = jnp.where(is_new, num_before[None] + step, limit)",
    "column = jnp.where(is_new, step, limit)",
    ("test_engine.py::test_the_engine_samples_the_tokens_of_one_loop",),
  ),
  Fault(
    "a slot without a prompt is unfinished",
    "rollout.slots:start_prompts",
    "state = state.replace(done=state.done | (row_ids == num_rows))",
    "pass",
    ("test_slots.py::test_a_slot_without_a_prompt_is_done",),
  ),
  Fault(
    "a response that was cut at the limit is not truncated",
    "rollout.slots:write_completions",
    'set(state.stopped, mode="drop")',
    'set(state.done, mode="drop")',
    ("test_engine.py::test_the_engine_samples_the_tokens_of_one_loop",),
  ),
)
