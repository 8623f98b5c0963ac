"""Every wrong value in an untrusted config.json ends in one sentence."""

import json
import math

import pytest
from small_models import TINY

from pure_jax.host import huggingface
from pure_jax.host.huggingface import HuggingFaceError, config
from pure_jax.models.config import ModelConfig, RopeScaling

NAN, INF = math.nan, math.inf
NOT_A_NUMBER = ["x", "1", "", [], [1], {}, {"a": 1}, True, False]
NOT_A_TEXT = [True, 0, 1.5, NAN, [], [1], {"a": 1}]
NOT_A_SIZE = [*NOT_A_NUMBER, None, 0, -1, 1.0, 1.5, 10**9, 10**40, NAN, INF]
NOT_A_FLAG = [None, 0, 1, 1.0, "true", "", [], {"a": 1}]
NOT_POSITIVE = [*NOT_A_NUMBER, 0, 0.0, -1.0, NAN, INF, -INF, 1e300, 10**400]
NOT_AN_ID = [True, -2, 1.0, 1.5, NAN, "x", "1", TINY.vocab_size, 10**40, {}]

# Values that no folder may have, by field.
WRONG = {
  "architectures": [*NOT_A_TEXT, "Qwen2ForCausalLM", [1, 2], [None], ["x"]],
  "model_type": [*NOT_A_TEXT, "", "llama", "\x1b[2J"],
  "vocab_size": NOT_A_SIZE,
  "hidden_size": NOT_A_SIZE,
  "intermediate_size": NOT_A_SIZE,
  "num_hidden_layers": NOT_A_SIZE,
  "num_attention_heads": NOT_A_SIZE,
  "num_key_value_heads": [x for x in NOT_A_SIZE if x is not None],
  "head_dim": [x for x in NOT_A_SIZE if x is not None],
  "max_position_embeddings": [x for x in NOT_A_SIZE if x != 10**9],
  "rms_norm_eps": [*NOT_POSITIVE, None, 2.0, 1e-40],
  "tie_word_embeddings": NOT_A_FLAG,
  "use_sliding_window": [x for x in NOT_A_FLAG if x is not None],
  "sliding_window": [*NOT_A_NUMBER, -1, 1.5, NAN],
  "max_window_layers": [*NOT_A_NUMBER, -1, 1.5, NAN],
  "layer_types": [True, 0, "x", {"a": 1}, [], [1, 2], [[], []]],
  "dtype": [*NOT_A_TEXT, "", "float33"],
  "torch_dtype": [*NOT_A_TEXT, "", "float33"],
  "eos_token_id": [*NOT_AN_ID, -1, [None], [0, True], [[0]], [0, -1], [23]],
  "bos_token_id": [*NOT_AN_ID, -1, [0]],
  "pad_token_id": [*NOT_AN_ID, -1.0, [0]],
  "quantization_config": [False, 0, "x", [], {}, {"bits": 4}],
  "hidden_act": [None, True, 1, "gelu", ["silu"], {}],
  "is_causal": [None, False, 1, "x", []],
  "per_layer_config": [False, 0, {}, {"0": {"hidden_size": 8}}],
  "mlp_bias": [None, True, 0, 1, "false", []],
  "partial_rotary_factor": [None, True, 0.5, "1", NAN],
  "auto_map": [None, {}, {"AutoConfig": "x.Y"}],
}
ROPE = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 8.0,
  "low_freq_factor": 0.1,
  "high_freq_factor": 0.7,
  "original_max_position_embeddings": 8,
}
WRONG_IN_ROPE = {
  "rope_type": [*NOT_A_TEXT, None],
  "rope_theta": [*NOT_POSITIVE, None, 0.5],
  "factor": [*NOT_POSITIVE, None, 0.5],
  "low_freq_factor": [*NOT_POSITIVE, None],
  "high_freq_factor": [*NOT_POSITIVE, None],
  "original_max_position_embeddings": [x for x in NOT_A_SIZE if x != 10**9],
  "type": [*NOT_A_TEXT, None],
  "partial_rotary_factor": [*NOT_POSITIVE, None, 0.5],
}
LABELS = {"id2label": {"0": "bad", "1": "good"}, "num_labels": 2}
WRONG_LABELS = {
  "num_labels": [*NOT_A_SIZE, 1, 3],
  "id2label": [
    *(True, 0, "x", [], ["bad", "good"], {}, {"0": "good"}),
    *({"0": "bad", "7": "good"}, {"x": "bad", "1": "good"}),
    *({"0": "bad", "01": "good"}, {"0": "bad", "1": "good", "2": "x"}),
    *({"0": 0, "1": 1}, {"0": None, "1": "good"}, {"0": ["bad"], "1": "good"}),
  ],
}


@pytest.fixture(scope="module")
def fields():
  """The content of a valid config.json, by kind of model."""
  return {
    is_prm: config.config_fields(
      TINY, is_prm=is_prm, max_positions=64, token_ids=huggingface.TokenIds()
    )
    for is_prm in (False, True)
  }


def read(folder, fields):
  (folder / "config.json").write_text(json.dumps(fields))
  return huggingface.read_config(folder)


def assert_refused(folder, fields, *words):
  """Reading must raise, with the file and all words in one short line."""
  try:
    read(folder, fields)
  except HuggingFaceError as error:
    message = str(error)
  else:
    message = "nothing was raised"
  assert message.startswith(f"{folder / 'config.json'}: ")
  for word in words:
    assert word in message
  assert len(message.splitlines()) == 1 and len(message) < 600


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_value_is_refused_with_its_field(field, fields, tmp_path):
  # architectures has no name of its own in the sentence if it is a list.
  word = "architecture" if field == "architectures" else field
  for value in WRONG[field]:
    assert_refused(tmp_path, fields[False] | {field: value}, word)


@pytest.mark.parametrize("layout", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("field", WRONG_IN_ROPE)
def test_a_wrong_value_of_the_rotary_parameters_is_refused(
  layout, field, fields, tmp_path
):
  changed = fields[False] | {"rope_scaling": None, "rope_parameters": None}
  del changed["rope_theta"]
  for value in WRONG_IN_ROPE[field]:
    rope = ROPE | {field: value}
    assert_refused(tmp_path, changed | {layout: rope}, field)


def test_a_wrong_theta_outside_the_rotary_parameters_is_refused(
  fields, tmp_path
):
  for value in [*NOT_POSITIVE, None, 0.5]:
    changed = fields[False] | {"rope_parameters": None, "rope_theta": value}
    assert_refused(tmp_path, changed, "rope_theta is ", "a number from 1 to")


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_rotary_parameters_of_another_type_are_refused(name, fields, tmp_path):
  for value in [False, 0, "", "x", [], [1]]:
    assert_refused(
      tmp_path, fields[False] | {name: value}, name, "an object or null"
    )


@pytest.mark.parametrize("field", WRONG_LABELS)
def test_wrong_labels_of_a_prm_are_refused(field, fields, tmp_path):
  for value in WRONG_LABELS[field]:
    assert_refused(tmp_path, fields[True] | LABELS | {field: value}, field)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None},
     ["num_attention_heads=5"]),
    ({"num_key_value_heads": 3}, ["num_kv_heads=3"]),
    ({"num_key_value_heads": 8}, ["num_kv_heads=8"]),
    ({"head_dim": 7}, ["head_dim"]),
    ({"layer_types": ["full_attention"]}, ["layer_types"]),
  ],
)  # fmt: skip
def test_fields_that_do_not_fit_together_are_refused(
  changes, words, fields, tmp_path
):
  changed = {k: v for k, v in (fields[False] | changes).items() if v}
  assert_refused(tmp_path, changed, *words)


def test_a_value_is_shown_short_and_without_control_characters(
  fields, tmp_path
):
  value = "\x1b]0;title\x07" + "x" * 10**6
  for field in ("model_type", "vocab_size", "hidden_act", "torch_dtype"):
    with pytest.raises(HuggingFaceError) as error:
      read(tmp_path, fields[False] | {field: value})
    assert "\x1b" not in str(error.value)
    assert "\\u001b]0;title" in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
  ("changes", "attribute", "value"),
  [
    # What published folders have: none of it may be refused.
    ({"rope_theta": 1000000, "rope_parameters": None}, "rope_theta", 1e6),
    ({"rope_parameters": {}, "rope_theta": 10000}, "rope_theta", 1e4),
    ({"rms_norm_eps": 1e-5}, "norm_eps", 1e-5),
    ({"head_dim": None}, "head_dim", 4),
    ({"num_key_value_heads": None}, "num_kv_heads", 4),
    ({"sliding_window": 131072, "max_window_layers": 28}, "num_layers", 2),
    ({"model_type": None, "dtype": None, "torch_dtype": "bfloat16"},
     "vocab_size", 23),
    ({"label2id": {"x": "y"}, "to_dict": 3, "validate": 1, "dtype": "float16"},
     "vocab_size", 23),
    ({"id2label": {"5": 5}, "num_labels": 9}, "vocab_size", 23),
  ],
)  # fmt: skip
def test_valid_values_and_fields_of_others_are_read(
  changes, attribute, value, fields, tmp_path
):
  changed = fields[False] | changes
  if changed["rope_parameters"]:
    del changed["rope_theta"]
  assert getattr(read(tmp_path, changed).model, attribute) == value


def test_ids_of_special_tokens_are_read(fields, tmp_path):
  ids = {"bos_token_id": 22, "eos_token_id": [0, 22], "pad_token_id": -1}
  token_ids = read(tmp_path, fields[False] | ids).token_ids
  # Some folders write -1 for no padding.
  assert token_ids == huggingface.TokenIds(22, (0, 22), None)
  none = {"eos_token_id": [], "pad_token_id": None}
  assert read(tmp_path, fields[False] | none).token_ids.eos == ()


@pytest.mark.parametrize("value", [NAN, INF, 0.0, -1.0])
def test_the_decoder_refuses_numbers_that_are_not_finite(value):
  sizes = vars(TINY) | {"rope_theta": 1e4, "norm_eps": 1e-6}
  for name in ("rope_theta", "norm_eps"):
    with pytest.raises(ValueError, match="positive and finite"):
      ModelConfig(**sizes | {name: value})
  with pytest.raises(ValueError, match="finite"):
    RopeScaling(value, 0.1, 0.7, 8)
  with pytest.raises(ValueError, match="finite"):
    RopeScaling(8.0, value, value, 8)
