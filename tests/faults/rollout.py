"""Faults of sampling and of continuous batching."""

from faults import Fault

FAULTS = (
  Fault(
    "the sampler may draw padding",
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
    "{*self.banned_ids, self.pad_id}",
    "{*self.banned_ids}",
    (
      "test_generation.py::test_padding_is_never_sampled_and_the_trainer_knows",
    ),
  ),
  Fault(
    "min-p keeps what is as likely as a share of everything",
    "rollout.sampling:filter_logits",
    "top = jnp.max(scores, axis=-1, keepdims=True)",
    "top = jax.nn.logsumexp(scores, axis=-1, keepdims=True)",
    (
      "test_sampling.py::test_frequencies_and_log_probs_are_those_of_the_filtered_distribution",
    ),
  ),
  Fault(
    "the sampler's positions count the left padding",
    "rollout.generation:begin",
    "lengths = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)",
    "lengths = jnp.sum(prompts.mask | True, axis=1, dtype=jnp.int32)",
    ("test_generation.py::test_left_padding_changes_nothing",),
  ),
  Fault(
    "EOS is not in the completion mask",
    "rollout.generation:generate",
    "completion_mask=slot[None] < state.ages[:, None],",
    "completion_mask=slot[None] < (state.ages - state.stopped)[:, None],",
    (
      "test_generation.py::test_a_stop_id_cuts_the_free_run_after_its_first_occurrence",
    ),
  ),
  Fault(
    "a row goes on after EOS",
    "rollout.generation:_draw",
    "done=state.done | stopped | (ages >= config.max_new_tokens),",
    "done=stopped | (ages >= config.max_new_tokens),",
    (
      "test_generation.py::test_a_stop_id_cuts_the_free_run_after_its_first_occurrence",
    ),
  ),
  Fault(
    "a brace within a box closes it",
    "host.text.stop_texts:_after",
    "return complete if state == begun else state - 1",
    "return complete",
    ("test_stop_texts.py::test_random_cuts_of_random_texts",),
  ),
  Fault(
    "a row that begins draws with the key of its place",
    "rollout.slots:begin_prompts",
    "sampling.row_keys(key, numbers),",
    "sampling.row_keys(key, jnp.arange(numbers.shape[0])),",
    ("test_engine.py::test_rows_that_take_turns_are_those_of_one_loop",),
  ),
  Fault(
    "tokens of a later chunk are written over those of the first",
    "rollout.slots:record",
    "column = jnp.where(is_new, ages[None] + step, limit)",
    "column = jnp.where(is_new, step, limit)",
    ("test_engine.py::test_rows_that_take_turns_are_those_of_one_loop",),
  ),
  Fault(
    "a place without a prompt is waited for",
    "rollout.slots:begin_prompts",
    "rows = rows.replace(done=rows.done | (numbers == total))",
    "pass",
    ("test_places.py::test_a_place_without_a_prompt_has_ended",),
  ),
  Fault(
    "a row cut at the limit counts as one that has ended by itself",
    "rollout.slots:record",
    'set(rows.stopped, mode="drop")',
    'set(rows.done, mode="drop")',
    ("test_engine.py::test_rows_that_take_turns_are_those_of_one_loop",),
  ),
)
