"""What every stage of a run shares: settings, data, tokenizer, mesh, folder.

A workdir holds `config.json`, `tokenizer.model`, the prepared data set, one
folder per stage (`sft`, `prm`, `rl`), metrics and samples. A stage whose
folder has `done.json` is finished and is loaded, not run again; one that was
cut off continues from its last checkpoint.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import config_flags
from run_settings import ConfigError, Settings, settings_from_config

from pure_jax.host import checkpoint, metrics
from pure_jax.host.data import arithmetic_dataset, batches
from pure_jax.host.tokenizer import SentencePieceTokenizer
from pure_jax.models import params as weights
from pure_jax.models.config import ModelConfig
from pure_jax.parallel import sharding
from pure_jax.rollout.sampling import SamplingConfig
from pure_jax.training.train import TrainState
from pure_jax.types import SeparatorTable

_CONFIG = config_flags.DEFINE_config_file(
  "config", lock_config=True, help_string="A file of experiments/configs."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")
_START = flags.DEFINE_string(
  "start",
  None,
  "Another run's workdir whose data, policy and PRM this one starts from.",
)
