"""Faults of sampling, and of rows that take turns, for `mutations.py`.

Each is a `mutations.Mutation` as a row: what is wrong, the file below
`pure_jax/`, its text, what stands there instead, the test that should notice.
"""

CUT = "test_a_stop_id_cuts_the_free_run_after_its_first_occurrence"
TURNS = "test_engine.py::test_rows_that_take_turns_are_those_of_one_loop"

FAULTS = (
  (
    "EOS is not in the completion mask",
    "rollout/generation.py",
    "completion_mask=slot[None] < state.ages[:, None],",
    "completion_mask=slot[None] < (state.ages - state.stopped)[:, None],",
    f"test_generation.py::{CUT}",
  ),
  (
    "a row goes on after EOS",
    "rollout/generation.py",
    "done=state.done | stopped | (ages >= config.max_new_tokens),",
    "done=stopped | (ages >= config.max_new_tokens),",
    f"test_generation.py::{CUT}",
  ),
  (
    "min-p keeps what is as likely as a share of everything",
    "rollout/sampling.py",
    "    top = jnp.max(scores, axis=-1, keepdims=True)\n",
    "    top = jax.nn.logsumexp(scores, axis=-1, keepdims=True)\n",
    "test_sampling.py::"
    "test_frequencies_and_log_probs_are_those_of_the_filtered_distribution",
  ),
  (
    "a brace within a box closes it",
    "host/text/stop_texts.py",
    "    return complete if state == begun else state - 1\n",
    "    return complete\n",
    "test_stop_texts.py::test_random_cuts_of_random_texts",
  ),
  (
    "a row that begins draws with the key of its place",
    "rollout/slots.py",
    "    sampling.row_keys(key, numbers),\n",
    "    sampling.row_keys(key, jnp.arange(numbers.shape[0])),\n",
    TURNS,
  ),
  (
    "a row that begins reads what another left in its place",
    "models/kv_cache.py",
    "((0, 0), (0, cache.ring)))\n",
    "((0, 0), (0, cache.ring)), constant_values=True)\n",
    TURNS,
  ),
  (
    "tokens of a later chunk are written over those of the first",
    "rollout/slots.py",
    "  column = jnp.where(is_new, ages[None] + step, limit)\n",
    "  column = jnp.where(is_new, step, limit)\n",
    TURNS,
  ),
  (
    "a place without a prompt is waited for",
    "rollout/slots.py",
    "  rows = rows.replace(done=rows.done | (numbers == total))\n",
    "",
    "test_places.py::test_a_place_without_a_prompt_has_ended",
  ),
  (
    "a row cut at the limit counts as one that has ended by itself",
    "rollout/slots.py",
    'set(rows.stopped, mode="drop")',
    'set(rows.done, mode="drop")',
    TURNS,
  ),
  (
    "a ring that has gone round grows where it happens to be",
    "models/kv_cache.py",
    "    ring_part = jnp.roll(ring_part, first - cache.slot, axis=axis)\n",
    "",
    "test_engine.py::test_a_ring_that_has_gone_round_grows_in_order",
  ),
  (
    "rows that go on leave their keys and values behind",
    "models/kv_cache.py",
    "lambda x: take_by_shard(x, index), kept)",
    "lambda x: take_by_shard(x, 0 * index), kept)",
    TURNS,
  ),
)
