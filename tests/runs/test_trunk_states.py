"""States of a frozen trunk in files: found again, kept, and never mistaken."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from pure_jax import steps
from pure_jax.models import prm
from pure_jax.models.config import ModelConfig
from pure_jax.models.params import init_params
from pure_jax.parallel import sharding
from pure_jax.runs import trunk_states
from pure_jax.runs.batches import Batches, take_rows
from pure_jax.runs.settings.conversion import ConfigError
from pure_jax.settings import ScoreConfig
from pure_jax.training import supervised
from pure_jax.training.supervised import Demonstrations
from pure_jax.types import SeparatorTable

PAD, EOS, SCORE, BREAK = 0, 1, 2, 4
MODEL = ModelConfig(
  vocab_size=12,
  width=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_width=24,
)
TABLE = SeparatorTable(
  ends_step=np.arange(12) == BREAK,
  half=np.zeros(12, bool),
  stem=np.zeros(12, np.int32),
  has_stem=np.zeros(12, bool),
  score_id=np.int32(SCORE),
  eos_ids=np.array([EOS], np.int32),
  pad_id=np.int32(PAD),
)
LAYOUT = sharding.make_layout()
BATCHES = Batches(None, None, LAYOUT)
BATCH_SIZE, MAX_STEPS = 2, 3
RESPONSES = Demonstrations(
  prompt_tokens=np.array([[PAD, 8]] + [[8, 9]] * 4, np.int32),
  prompt_mask=np.array([[False, True]] + [[True, True]] * 4),
  tokens=np.array(
    [
      [6, BREAK, 7, EOS, PAD],
      [7, EOS, PAD, PAD, PAD],
      [6, 7, 7, 6, EOS],
      [6, BREAK, 6, BREAK, 7],
      [7, EOS, PAD, PAD, PAD],  # As the second.
    ],
    np.int32,
  ),
  completion_mask=np.array(
    [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1] * 5, [1] * 5, [1, 1, 0, 0, 0]], bool
  ),
)
NUM_STEPS = [2, 1, 1, 3, 1]


def spec(folder="trunk", **model):
  """What the module reads of a run's specification."""
  score = ScoreConfig(max_steps=MAX_STEPS)
  settings = types.SimpleNamespace(
    progress=False,
    prm=types.SimpleNamespace(
      trunk_states=str(folder),
      batch_size=BATCH_SIZE,
      length_multiple=4,
      score=score,
    ),
  )
  return types.SimpleNamespace(
    settings=settings,
    prm_model=dataclasses.replace(MODEL, **model),
    prm_score_config=score,
    table=TABLE,
    layouts=types.SimpleNamespace(training=LAYOUT),
  )


@pytest.fixture(scope="module")
def trunk():
  make = jax.jit(lambda key: init_params(key, prm.declare_prm(MODEL)))
  _, frozen = supervised.split_prm_params(make(jax.random.key(0)), True)
  return frozen


@pytest.fixture
def computed(monkeypatch):
  """The inputs of every batch that is computed from here on."""
  batches, make = [], supervised.make_trunk_forward

  def counting(model, layout):
    forward = make(model, layout)

    def counted(trunk, inputs):
      batches.append(np.asarray(inputs.tokens))
      return forward(trunk, inputs)

    return counted

  monkeypatch.setattr(supervised, "make_trunk_forward", counting)
  return batches


def load(folder, trunk, responses=RESPONSES, **model):
  return trunk_states.load_or_compute(
    spec(**model), BATCHES, folder, trunk, responses
  )


def files(folder):
  return sorted(folder.glob("trunk/*/*.npz"))


def test_texts_have_no_padding_and_end_at_their_scores():
  texts = trunk_states.texts_for_prm(spec(), RESPONSES)
  assert [text.steps for text in texts] == [
    [[8, 6, SCORE], [7, SCORE]],
    [[8, 9, 7, SCORE]],
    [[8, 9, 6, 7, 7, 6, SCORE]],
    [[8, 9, 6, SCORE], [6, SCORE], [7, SCORE]],
    [[8, 9, 7, SCORE]],
  ]
  compact = trunk_states.compact(spec(), RESPONSES)
  assert compact.tokens.shape == (5, 8)
  np.testing.assert_array_equal(
    compact.tokens[0], [8, 6, SCORE, 7, SCORE, PAD, PAD, PAD]
  )
  assert compact.score_position[0].tolist() == [2, 4, 0]
  assert trunk_states.texts_for_prm(spec(), RESPONSES)[1:3] == [
    texts[1],
    texts[2],
  ]


def test_states_are_those_of_the_padded_texts(trunk, tmp_path, computed):
  """Computed in other batches, without padding, each text once."""
  states = load(tmp_path, trunk)
  inputs = jax.jit(
    lambda batch: steps.build_prm_inputs(
      batch.prompt_tokens,
      batch.prompt_mask,
      batch.tokens,
      batch.completion_mask,
      steps.split_steps(
        batch.tokens, batch.completion_mask, TABLE, max_steps=MAX_STEPS
      ),
      TABLE,
    )
  )(RESPONSES)
  expected = jax.jit(prm.states_at_scores, static_argnums=1)(
    trunk, MODEL, inputs
  )
  taken = states.take(np.array([3, 0, 4, 2]))
  np.testing.assert_allclose(
    taken.hidden, np.asarray(expected)[[3, 0, 4, 2]], atol=1e-6
  )
  assert taken.step_mask.sum(1).tolist() == [3, 2, 1, 1]
  assert taken.hidden.dtype == np.float32
  # Four different texts, the shortest first, in two batches.
  assert [tokens.shape for tokens in computed] == [(2, 8), (2, 8)]
  assert len(files(tmp_path)) == 2


def test_what_is_there_is_not_computed_again(trunk, tmp_path, computed):
  few = take_rows(RESPONSES, np.array([1, 3]))
  load(tmp_path, trunk, few)
  assert len(computed) == 1
  load(tmp_path, trunk)  # Two texts more.
  assert len(computed) == 2
  again = load(tmp_path, trunk)
  assert len(computed) == 2
  assert [len(rows) for rows in again.hidden] == NUM_STEPS


def test_states_keep_no_others_in_memory(trunk, tmp_path):
  """The memory check counts those of the steps, without padding."""
  computed = load(tmp_path, trunk).hidden
  read = load(tmp_path, trunk, take_rows(RESPONSES, np.array([1]))).hidden
  for states, num_steps in ((computed, NUM_STEPS), (read, [1])):
    assert [rows.shape for rows in states] == [(n, 16) for n in num_steps]
    assert all(rows.base is None for rows in states)


def test_another_trunk_does_not_read_these_states(trunk, tmp_path, computed):
  before = load(tmp_path, trunk)
  changed = trunk | {"final_norm": trunk["final_norm"].at[0].add(1e-3)}
  after = load(tmp_path, changed)
  assert len(computed) == 4
  assert np.abs(after.hidden[0] - before.hidden[0]).max() > 0
  load(tmp_path, trunk, compute_dtype="bfloat16")
  assert len(computed) == 6
  # What changes only the memory reads them.
  load(tmp_path, trunk, remat="layer", attention_chunk=2)
  assert len(computed) == 6


def test_an_interrupted_pass_keeps_its_batches(trunk, tmp_path, monkeypatch):
  write, count = trunk_states._write, []

  def stop_after_one(*args):
    write(*args)
    count.append(1)
    raise KeyboardInterrupt

  monkeypatch.setattr(trunk_states, "_write", stop_after_one)
  with pytest.raises(KeyboardInterrupt):
    load(tmp_path, trunk)
  monkeypatch.setattr(trunk_states, "_write", write)
  (first,) = files(tmp_path)
  written = first.read_bytes()
  resumed = load(tmp_path, trunk)
  assert first.read_bytes() == written and len(files(tmp_path)) == 2
  whole = load(tmp_path / "other", trunk)
  for one, two in zip(resumed.hidden, whole.hidden, strict=True):
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_file_is_removed_and_said(
  trunk, tmp_path, capsys, computed, damage
):
  whole = load(tmp_path, trunk)
  path = files(tmp_path)[0]
  content = path.read_bytes()
  if damage is None:  # One byte of a number.
    middle = len(content) // 2
    damage = content[:middle] + bytes([content[middle] ^ 1])
    damage += content[middle + 1 :]
  path.write_bytes(damage)
  again = load(tmp_path, trunk)
  assert "damaged" in capsys.readouterr().err
  assert len(computed) == 3
  for one, two in zip(again.hidden, whole.hidden, strict=True):
    np.testing.assert_array_equal(one, two)


def test_a_file_that_cannot_be_read_now_is_not_removed(
  trunk, tmp_path, monkeypatch
):
  load(tmp_path, trunk)

  def fail(path):
    raise OSError(5, "Input/output error", str(path))

  monkeypatch.setattr(trunk_states, "_read", fail)
  with pytest.raises(OSError, match="Input/output"):
    load(tmp_path, trunk)
  assert len(files(tmp_path)) == 2


def test_states_that_are_not_finite_are_not_written(trunk, tmp_path):
  bad = trunk | {"final_norm": trunk["final_norm"].at[0].set(np.nan)}
  with pytest.raises(FloatingPointError, match="check the weights"):
    load(tmp_path, bad)
  assert not files(tmp_path)


def test_states_that_memory_cannot_hold_are_refused(
  trunk, tmp_path, monkeypatch
):
  monkeypatch.setattr(trunk_states, "machine_bytes", lambda: 100)
  with pytest.raises(
    ConfigError, match=r"prm\.score\.max_steps=3 needs more memory"
  ):
    load(tmp_path, trunk)
  assert not files(tmp_path)
