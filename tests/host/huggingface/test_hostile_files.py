"""Files of an untrusted folder: damaged, not regular, or not finite."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from small_models import TINY, random_params

from pure_jax.host import huggingface
from pure_jax.host.huggingface import HuggingFaceError, files, json_fields
from pure_jax.models import policy, prm
from pure_jax.parallel import sharding

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"
DTYPES = {
  "float32": np.float32,
  "bfloat16": ml_dtypes.bfloat16,
  "float16": np.float16,
}


@pytest.fixture(scope="module")
def layout():
  return sharding.make_layout()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A valid folder of each kind. Tests change copies of them."""
  parent = tmp_path_factory.mktemp("saved")
  params = random_params(policy.declare_policy(TINY))
  for name, size in (("policy", 10**9), ("sharded", 4000)):
    huggingface.export_policy(
      parent / name, params, TINY, max_positions=64, shard_bytes=size
    )
  params = random_params(prm.declare_prm(TINY))
  huggingface.export_prm(parent / "prm", params, TINY, max_positions=64)
  return parent


@pytest.fixture
def copy_of(saved, tmp_path):
  return lambda kind: shutil.copytree(saved / kind, tmp_path / kind)


def assert_refused(folder, layout, *words, load=huggingface.load_policy):
  with pytest.raises(HuggingFaceError) as error:
    load(folder, layout)
  message = str(error.value)
  for word in (str(folder), *words):
    assert word in message
  assert len(message) < 2000


def make_special(path, kind):
  """Puts something that is no file in place of a file."""
  path.unlink()
  if kind == "folder":
    path.mkdir()
  elif kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to({"loop": path.name, "endless": "/dev/zero"}[kind])


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "endless"])
@pytest.mark.parametrize("name", ["config.json", INDEX, "model-00002-of-*"])
def test_what_is_no_file_is_refused_at_once(name, kind, copy_of, layout):
  # Reading a pipe would wait, and reading the device fill the memory.
  folder = copy_of("sharded")
  (path,) = folder.glob(name)
  make_special(path, kind)
  # A link to itself does not exist.
  missing = name == INDEX and kind == "loop"
  assert_refused(folder, layout, f"neither {WEIGHTS}" if missing else path.name)


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"[]",
    b"null",
    b'"x"',
    b"{",
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"vocab_size": 1' + b"0" * 5000 + b"}",
    b"\xff\xfe{}",
    b'{"architectures": ["\\ud800"]}',
  ],
  ids=lambda content: ascii(content[:12]),
)
def test_json_that_cannot_be_read_is_refused_with_the_file(
  name, content, copy_of, layout
):
  folder = copy_of("sharded")
  (folder / name).write_bytes(content)
  assert_refused(folder, layout, name)


def test_json_files_of_gigabytes_are_not_read(copy_of, layout):
  folder = copy_of("policy")
  with (folder / "config.json").open("wb") as file:
    file.truncate(10**12)  # It takes no space on the disk.
  limit = str(json_fields.MAX_JSON_BYTES)
  assert_refused(folder, layout, "config.json is larger", limit)


@pytest.mark.parametrize(
  "shard",
  [
    "/etc/passwd",
    "../policy/model.safetensors",
    "..",
    "",
    ["model.safetensors"],
    None,
    3,
    "tokenizer.json",
    "missing.safetensors",
    "x\0.safetensors",
    "a" * 300 + ".safetensors",
  ],
)
def test_files_that_the_index_must_not_name_are_refused(shard, copy_of, layout):
  folder = copy_of("sharded")
  index = json.loads((folder / INDEX).read_text())
  index["weight_map"][NORM] = shard
  (folder / INDEX).write_text(json.dumps(index))
  assert_refused(folder, layout, ".safetensors")


def edit_header(folder, change, length=None):
  """Rewrites the header of the weights; `change` may return its bytes."""
  path = folder / WEIGHTS
  content = path.read_bytes()
  end = 8 + int.from_bytes(content[:8], "little")
  header = json.loads(content[8:end])
  written = change(header)
  if written is None:
    written = json.dumps(header).encode()
  length = len(written) if length is None else length
  path.write_bytes(length.to_bytes(8, "little") + written + content[end:])


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 10**7, 1, 0])
def test_headers_of_a_wrong_length_are_refused(length, copy_of, layout):
  folder = copy_of("policy")
  edit_header(folder, lambda header: None, length)
  assert_refused(folder, layout, f"{WEIGHTS} is truncated or damaged")


@pytest.mark.parametrize(
  "changes",
  [
    {"data_offsets": [10**9, 10**9 + 64]},
    {"data_offsets": [2**63, 2**63 + 64]},
    {"data_offsets": [0, 64]},
    {"data_offsets": [-64, 0]},
    {"data_offsets": None},
    {"dtype": "X"},
    {"dtype": 7},
    {"dtype": "F64"},
    {"dtype": "I32"},
    {"shape": [-16]},
    {"shape": [10**12]},
    {"shape": [2**63, 2]},
    {"shape": [16, 0]},
    {"shape": [1] * 10**5 + [16]},
    {"shape": "16"},
    {"shape": None},
  ],
  ids=lambda changes: ascii(changes)[:40],
)
def test_headers_with_wrong_values_are_refused(changes, copy_of, layout):
  folder = copy_of("policy")
  edit_header(folder, lambda header: header[NORM].update(changes))
  assert_refused(folder, layout)


@pytest.mark.parametrize(
  "header",
  [b"[" * 200_000, b'{"a":' * 200_000, b"null", b"[]", b"{}", b"\xff", b"x"],
  ids=lambda header: ascii(header[:6]),
)
def test_headers_that_are_no_descriptions_are_refused(header, copy_of, layout):
  folder = copy_of("policy")
  edit_header(folder, lambda _: header)
  assert_refused(folder, layout, f"{WEIGHTS} is truncated or damaged")


def set_values(folder, name, value, dtype, indices):
  """Sets values of a tensor, which is stored in another dtype then."""
  for path in folder.glob("*.safetensors"):
    stored = safetensors.numpy.load_file(path)
    if name in stored:
      changed = stored[name].astype(DTYPES[dtype])
      for index in indices:
        changed[index] = value
      safetensors.numpy.save_file(stored | {name: changed}, path)
      return path
  raise AssertionError(f"there is no {name}")


@pytest.mark.parametrize(
  ("kind", "dtype", "value"),
  [
    ("policy", "float32", np.nan),
    ("sharded", "bfloat16", -np.inf),
    ("sharded", "float16", np.inf),
  ],
)
def test_weights_that_are_not_finite_are_named(
  kind, dtype, value, copy_of, layout
):
  folder = copy_of(kind)
  path = set_values(folder, UP, value, dtype, [(3, 7), (4, 0)])
  assert_refused(
    folder,
    layout,
    f"{path}: of {UP}, 2 of 320 values are not finite",
    f"the first is {value} at [3, 7]",
  )


@pytest.mark.parametrize("name", ["score.weight", "score.bias"])
def test_a_head_of_a_prm_that_is_not_finite_is_named(name, copy_of, layout):
  folder = copy_of("prm")
  set_values(folder, name, np.nan, "float32", [1])
  assert_refused(folder, layout, f"of {name}", load=huggingface.load_prm)


def test_weights_that_overflow_in_the_dtype_of_the_run_are_named(
  copy_of, layout
):
  folder = copy_of("policy")
  set_values(folder, NORM, 3.4e38, "float32", [5])
  huggingface.load_policy(folder, layout)
  for dtypes in ({"param_dtype": "bfloat16"}, {"compute_dtype": "bfloat16"}):
    with pytest.raises(HuggingFaceError, match=r"1 of 16 .* in bfloat16, .*5"):
      huggingface.load_policy(folder, layout, **dtypes)


def test_tensors_that_are_not_used_may_hold_anything(copy_of, layout):
  folder = copy_of("policy")
  path = folder / WEIGHTS
  unused = {"model.rotary_emb.inv_freq": np.full(3, np.inf, np.float32)}
  safetensors.numpy.save_file(safetensors.numpy.load_file(path) | unused, path)
  huggingface.load_policy(folder, layout)


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
  params = random_params(policy.declare_policy(TINY))
  bad = params["layers"]["down"].at[1, 2, 3].set(jnp.nan)
  params["layers"]["down"] = bad
  folder = tmp_path / "out"
  message = "model.layers.1.mlp.down_proj.weight, 1 of 320 .* at \\[3, 2\\]"
  with pytest.raises(HuggingFaceError, match=message):
    huggingface.export_policy(folder, params, TINY, max_positions=64)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_not_finite_are_found_as_numpy_finds_them(dtype):
  # Every pattern of 16 bits is some value; of 32 bits those near the limit.
  bits = np.arange(2**16, dtype=np.uint16)
  if dtype == "float32":
    near = np.arange(-500, 500, dtype=np.int64) + 0x7F800000
    bits = np.concatenate([near, near + 2**31, [0, 2**31]]).astype(np.uint32)
  values = bits.view(DTYPES[dtype])
  finite = np.isfinite(values.astype(np.float32))
  for value, expected in zip(values[::7], finite[::7], strict=True):
    assert (files.not_finite(value.reshape(1)) is None) == expected
  assert files.not_finite(values[finite].reshape(1, -1)) is None
  fault = files.not_finite(values)
  first = int(np.argmin(finite))
  assert f"{(~finite).sum()} of {finite.size} values" in fault
  assert fault.endswith(f" at [{first}]")


def test_values_are_counted_over_blocks(monkeypatch):
  monkeypatch.setattr(files, "_BLOCK", 4)
  values = np.zeros((3, 7), np.float32)
  values[1, 2] = values[1, 3] = values[2, 6] = np.nan
  fault = files.not_finite(values)
  assert fault == "3 of 21 values are not finite, the first is nan at [1, 2]"
  assert files.not_finite(np.zeros((0, 3), np.float32)) is None


def test_what_overflows_in_bfloat16_is_what_jax_rounds_to_infinity():
  bits = np.arange(0x7F7F0000, 0x7F800000, 257, dtype=np.uint32)
  limit = np.asarray([0x7F7F7FFF, 0x7F7F8000], np.uint32)
  values = np.concatenate([bits, limit, limit + np.uint32(2**31)])
  values = values.view(np.float32)
  cast = np.asarray(jax.jit(lambda x: x.astype(jnp.bfloat16))(values))
  for value, rounded in zip(values, cast, strict=True):
    fault = files.not_finite(value.reshape(1), ("bfloat16",))
    assert (fault is None) == bool(np.isfinite(rounded))
