"""Rows of a run hold the longest text there can be, and no more of them."""

import types

import pytest

from pure_jax.runs import row_lengths


def spec(separator="insert", packed_tokens=None):
  """4 prompts x 8 samples of 100 tokens and 10 steps, in 16 micro-batches."""
  rl = types.SimpleNamespace(
    prompts=4,
    samples_per_prompt=8,
    max_new_tokens=100,
    max_steps=10,
    micro_batches=16,
    length_buckets=2,
    packed_tokens=packed_tokens,
  )
  return types.SimpleNamespace(
    settings=types.SimpleNamespace(
      rl=rl, prm=types.SimpleNamespace(separator=separator)
    ),
    prompt_tokens=30,
    prm_prompt_tokens=50,
    prm_model="any",
  )


def test_the_widest_rows_hold_a_prompt_and_the_longest_response():
  """Too narrow, a run would end the first time that a response is so long."""
  wide, narrow = row_lengths._policy_rows(spec())
  assert (wide.columns, narrow.columns) == (130, 65)


@pytest.mark.parametrize(
  ("separator", "columns"), [("insert", 160), ("replace", 150)]
)
def test_the_prm_reads_an_id_more_for_each_step_where_they_are_inserted(
  separator, columns
):
  wide, narrow = row_lengths._prm_rows(spec(separator))
  assert (wide.columns, narrow.columns) == (columns, columns // 2)


@pytest.mark.parametrize("packed_tokens", [None, 100])
def test_no_more_rows_at_a_time_than_a_micro_batch_has(packed_tokens):
  """32 responses in 16 micro-batches: 2 of the longest fit into memory."""
  for rows in (row_lengths._policy_rows, row_lengths._prm_rows):
    assert rows(spec(packed_tokens=packed_tokens))[0].at_a_time == 2
