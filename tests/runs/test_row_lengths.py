"""The rows that a run packs texts into hold the longest text."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from pure_jax.parallel import sharding
from pure_jax.parallel.kernel_calls import Kernels
from pure_jax.runs.rl import functions
from pure_jax.runs.rl.weights import RLState
from pure_jax.runs.settings.rl import CriticSettings
from pure_jax.settings import ScoreConfig
from pure_jax.training import packing, row_choice
from pure_jax.types import Rollout


def spec(
  separator="insert",
  packed_tokens=None,
  mini_batches=1,
  order=None,
  attention="xla",
  micro_batches=16,
  layouts=None,
):
  """4 prompts x 8 samples of 100 tokens and 10 steps, in 16 micro-batches."""
  rl = types.SimpleNamespace(
    prompts=4,
    samples_per_prompt=8,
    sampler=types.SimpleNamespace(max_new_tokens=100),
    micro_batches=micro_batches,
    updates=types.SimpleNamespace(mini_batches=mini_batches),
    length_buckets=2,
    packed_tokens=packed_tokens,
  )
  layout = types.SimpleNamespace(kernels=Kernels(attention), row_shards=1)
  one_device = types.SimpleNamespace(training=layout, reference=layout)
  return types.SimpleNamespace(
    settings=types.SimpleNamespace(rl=rl),
    layouts=layouts or one_device,
    mini_batch_order=lambda iteration: order,
    step=types.SimpleNamespace(scoring=ScoreConfig(10, separator)),
    prompt_tokens=30,
    prm_prompt_tokens=50,
    prm_model="any",
    responses=32,
  )


def test_the_widest_rows_hold_a_prompt_and_the_longest_response():
  """Otherwise the run would end at the first response of that length."""
  narrow, wide = functions.update_rows(spec())
  assert (wide.columns, narrow.columns) == (130, 65)


@pytest.mark.parametrize(
  ("separator", "columns"), [("insert", 160), ("replace", 150), ("each", 160)]
)
def test_the_prm_reads_one_more_id_per_step_if_separators_are_inserted(
  separator, columns
):
  narrow, wide = functions.score_rows(spec(separator))
  assert (wide.prm.columns, narrow.prm.columns) == (columns, columns // 2)


@pytest.mark.parametrize("packed_tokens", [None, 100])
def test_the_widest_rows_are_no_more_than_those_of_a_micro_batch(packed_tokens):
  """32 responses in 16 micro-batches: 2 of the longest fit into memory."""
  rows = functions.score_rows(spec(packed_tokens=packed_tokens))[-1]
  assert (rows.policy.rows, rows.prm.rows) == (2, 2)


@pytest.mark.parametrize(("mini_batches", "rows"), [(1, 4), (16, 2), (32, 1)])
def test_rows_of_an_update_are_no_more_than_its_mini_batch(mini_batches, rows):
  """Half as long rows are twice as many, if there are as many responses."""
  narrow, _ = functions.update_rows(spec(mini_batches=mini_batches))
  assert narrow.rows == rows
  assert functions.score_rows(spec(mini_batches=mini_batches)) == (
    functions.score_rows(spec())
  )


@pytest.mark.parametrize(
  ("changes", "of_scores", "of_updates"),
  [
    ({"packed_tokens": 229}, 1, 1),
    ({"packed_tokens": 230}, 2, 2),
    ({"packed_tokens": 829}, 4, 4),
    ({"packed_tokens": 9999}, 8, 8),
    ({}, 1, 1),
    ({"packed_tokens": 9999, "mini_batches": 8}, 8, 4),
    ({"packed_tokens": 9999, "mini_batches": 2, "order": [[0]]}, 8, 1),
    ({"packed_tokens": 9999, "attention": "splash"}, 1, 1),
  ],
)
def test_samples_share_a_prompt_where_a_row_holds_them(
  changes, of_scores, of_updates
):
  """A prompt of 30 tokens and 2, 4 or 8 samples of 100 have to fit."""
  changed = spec(**changes)
  scores = functions.score_rows(changed)[-1]
  assert (scores.policy.samples, scores.prm.samples) == (of_scores, 1)
  assert functions.update_rows(changed)[-1].samples == of_updates
  assert functions.value_rows(changed)[-1].samples == 1


FOUR = sharding.make_layout(data=4)
TWO = sharding.make_layout(data=2, tensor=2, rules="fsdp+tensor")


@pytest.mark.parametrize(
  ("training", "reference", "changes", "of_scores", "of_updates"),
  [
    (FOUR, FOUR, {"mini_batches": 2}, 8, 4),
    (FOUR, FOUR, {"mini_batches": 4}, 8, 2),
    (FOUR, FOUR, {"mini_batches": 8, "micro_batches": 4}, 8, 1),
    (TWO, TWO, {"mini_batches": 2}, 8, 8),
    (TWO, FOUR, {"prompts": 2}, 4, 8),
    (TWO, FOUR, {"prompts": 2, "mini_batches": 2}, 4, 4),
  ],
)
def test_samples_share_a_prompt_only_in_rows_that_devices_can_split(
  training, reference, changes, of_scores, of_updates
):
  """8 samples in each of 2 rows would leave none to 2 of 4 devices."""
  changes = {"prompts": 4} | changes
  prompts = changes.pop("prompts")
  layouts = types.SimpleNamespace(training=training, reference=reference)
  changes = {"micro_batches": prompts * 2} | changes
  made = spec(packed_tokens=9999, layouts=layouts, **changes)
  made.settings.rl.prompts, made.responses = prompts, prompts * 8
  texts = made.responses // changes.get("mini_batches", 1)
  scores, updates = functions.score_rows(made), functions.update_rows(made)
  assert {rows.policy.samples for rows in scores} == {of_scores}
  assert {rows.samples for rows in updates} == {of_updates}
  for shapes, count, used in (
    ([rows.policy for rows in scores], made.responses, (training, reference)),
    (updates, texts, (training,)),
  ):
    for shape in shapes:
      for layout in used:
        read = functools.partial(rows_of_texts, shape, layout.act_sharding)
        mask = jax.ShapeDtypeStruct((count, 130), np.dtype(bool))
        packed = jax.eval_shape(read, mask)  # It raises for rows too few.
        assert packed.tokens.shape[0] % layout.row_shards == 0


def rows_of_texts(shape, act_sharding, mask):
  """The rows of a micro-batch of texts that end with 100 tokens."""
  rows = packing.pack(mask, shape, act_sharding, 100)
  tokens = mask.astype(np.int32)
  return packing.read_micro_batch(rows, 0, tokens, 100, act_sharding)


def test_rows_that_share_a_prompt_have_widths_of_equal_steps():
  """Halves would be too narrow for eight samples of usual lengths."""
  changed = spec(packed_tokens=850)
  changed.settings.rl.length_buckets = 4
  rows = functions.update_rows(changed)
  assert [shape.columns for shape in rows] == [213, 425, 638, 850]
  assert {(shape.samples, shape.rows) for shape in rows} == {(8, 2)}
  scores = functions.score_rows(changed)
  assert [shape.policy for shape in scores] == list(rows)
  assert {shape.prm.columns for shape in scores} == {850}


@pytest.mark.parametrize(
  ("samples", "longest"), [(1, 7), (2, 3 + 4 + 1), (4, 3 + 4 + 1 + 2 + 3)]
)
def test_prompts_are_measured_with_the_samples_that_share_them(
  samples, longest
):
  """A prompt of 3 tokens with its samples, and one of 1 token."""
  prompts = np.repeat([3, 1], 4)
  own = np.array([4, 1, 2, 3, 1, 1, 5, 1])
  zeros = np.zeros((8, 5), np.float32)
  rollout = Rollout(
    prompt_tokens=np.zeros((8, 4), np.int32),
    prompt_mask=np.arange(4) >= 4 - prompts[:, None],
    tokens=np.zeros((8, 5), np.int32),
    completion_mask=np.arange(5) < own[:, None],
    sampled_logp=zeros,
    full_logp=zeros,
    truncated=np.zeros(8, bool),
  )
  without_prm = types.SimpleNamespace(
    prm_model=None,
    layouts=types.SimpleNamespace(training=sharding.make_layout()),
  )
  measure = row_choice.make_measure(without_prm)
  assert measure(rollout, None, samples=samples).tolist() == [longest]


def test_responses_to_other_prompts_are_measured_one_by_one():
  """Held-out prompts have a sample each; the rows of RL have eight."""
  changed = spec(packed_tokens=850)
  changed.settings.rl.length_buckets = 4
  samples = []

  def measure(rollout, prompts, **options):
    samples.append(options["samples"])
    return np.array([100, 1])

  compiled = functions_of(
    step_scores={
      rows: lambda *_, rows=rows: rows for rows in functions.score_rows(changed)
    },
    text_lengths=measure,
  )
  rows = compiled.score_held_out(FROZEN, "any", ["problem"])
  assert samples == [1] and rows.policy.columns == 213


def test_a_run_without_buckets_and_packing_has_one_function():
  unpacked = spec()
  unpacked.settings.rl.length_buckets = 1
  assert functions.score_rows(unpacked) == (None,)
  assert functions.update_rows(unpacked) == (None,)
  assert functions.value_rows(unpacked) == (None,)


def functions_of(**fields):
  """`RLFunctions` of which a test calls only the given fields."""
  names = [f.name for f in dataclasses.fields(functions.RLFunctions)]
  return functions.RLFunctions(**dict.fromkeys(names) | fields)


# Weights that the functions below do not read.
FROZEN = types.SimpleNamespace(
  base=None,
  critic_base=None,
  reference=None,
  prm=None,
  policy=lambda trained: trained,
)


@pytest.mark.parametrize(("longest", "columns"), [(65, 65), (66, 130)])
def test_the_longest_text_of_a_batch_chooses_the_function(longest, columns):
  """Longer texts than the rows would make every number NaN."""
  updates = {
    rows: lambda *_, rows=rows: (rows, {})
    for rows in functions.update_rows(spec())
  }
  compiled = functions_of(
    spec=types.SimpleNamespace(
      settings=types.SimpleNamespace(
        rl=types.SimpleNamespace(critic=CriticSettings())
      )
    ),
    updates=updates,
    critic_updates=updates,
    critic_values={
      rows: lambda *_, rows=rows: rows for rows in functions.value_rows(spec())
    },
    step_scores={
      rows: lambda *_, rows=rows: rows for rows in functions.score_rows(spec())
    },
    text_lengths=lambda rollout, prompts, samples: np.array(
      [len(rollout), *([] if prompts is None else [1])]
    ),
  )
  batch = types.SimpleNamespace(rollout="x" * longest)
  state = RLState(
    types.SimpleNamespace(kl_coef=None), types.SimpleNamespace(params=None)
  )
  after, _ = compiled.update(1, state, batch, FROZEN)
  assert after.policy.columns == after.critic.columns == columns
  values = compiled.values(state, FROZEN, batch.rollout)
  assert values.columns == columns
  rows = compiled.score_held_out(FROZEN, batch.rollout, ["problem"])
  assert rows.policy.columns == columns


def test_the_sampler_is_checked_from_the_first_iteration():
  """Of a sampler that is off, no update may be made unnoticed."""
  old_logp = types.SimpleNamespace(source="sampled", check_every=3)
  compiled = functions_of(
    spec=types.SimpleNamespace(
      settings=types.SimpleNamespace(
        rl=types.SimpleNamespace(old_logp=old_logp)
      )
    ),
    sampled_scores={None: lambda *_: "scores"},
    checked_scores={None: lambda *_: ("scores", 0.0)},
  )
  drifts = [
    compiled.score_iteration(iteration, None, FROZEN, None, None)[1]
    for iteration in range(1, 6)
  ]
  assert drifts == [0.0, None, None, 0.0, None]
