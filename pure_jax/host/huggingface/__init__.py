"""Weights of Hugging Face models, in and out.

`load_policy` and `load_prm` read a folder that transformers saved.
`export_policy` and `export_prm` write a folder that transformers loads.
`read_config` reads config.json only. Pickled checkpoints, remote code, and
settings that our decoder does not implement exactly raise an error.

  architectures  the families of decoders, and their rotary parameters
  json_fields    JSON files, and the values that their fields may have
  config         config.json to and from `ModelConfig`
  tensors        names and layouts of the tensors, in both directions
  files          safetensors files
  gguf_header, gguf_files   GGUF files, checked; to folders
  upload         folders to the hub
  load, export   folders to parameters, and back
  hub_names, hub   names of models and data on the Hugging Face hub; fetching
"""

from pure_jax.host.huggingface.architectures import HuggingFaceError
from pure_jax.host.huggingface.config import (
  FolderConfig,
  TokenIds,
  check_vocabulary,
  read_config,
  warn_beyond_positions,
)
from pure_jax.host.huggingface.export import export_policy, export_prm
from pure_jax.host.huggingface.files import MODEL_FILES, TOKENIZER_FILES
from pure_jax.host.huggingface.json_fields import read_json_object
from pure_jax.host.huggingface.load import load_policy, load_prm

__all__ = [
  "MODEL_FILES",
  "TOKENIZER_FILES",
  "FolderConfig",
  "HuggingFaceError",
  "TokenIds",
  "check_vocabulary",
  "export_policy",
  "export_prm",
  "load_policy",
  "load_prm",
  "read_config",
  "read_json_object",
  "warn_beyond_positions",
]
