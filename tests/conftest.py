"""What every test runs under, set before jax starts.

A CPU with eight fake devices, no network, and rank promotion as an error: an
array of the wrong rank must not be broadcast into a plausible number.
`test_imports.py` checks that these are in force. What one worker or script
has compiled, the others find, in a folder that ends with the tests.
"""

import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

# Workers of pytest-xdist, and the scripts they start, inherit the folder.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(
    prefix="pure_jax_compiled_"
  )
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Files that take longest come first: at the end no core waits for another.
LONGEST = (
  "test_experiments.py",
  "test_train.py",
  "test_files_task.py",
  "test_evaluate.py",
  "test_layouts.py",
  "test_generation.py",
  "test_survival.py",
  "test_smoke_runs.py",
  "test_processes.py",
  "test_data_files.py",
  "test_transformer.py",
  "test_plan.py",
  "test_notebooks.py",
  "test_lora.py",
  "test_attention.py",
  "test_lora_runs.py",
  "test_huggingface.py",
  "test_packed.py",
  "test_huggingface_export.py",
  "test_token_logp.py",
)


def pytest_collection_modifyitems(items):
  """Sorts the files of `LONGEST` to the front, the rest as they were."""
  rank = {name: number for number, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_unconfigure():
  """Removes what was compiled, after the last worker."""
  if not IS_WORKER:
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """One whole smoke run, all stages: its folder, and how it ended."""
  import smoke_run

  workdir = tmp_path_factory.mktemp("runs") / "whole"
  done = smoke_run.run("train_pure.py", workdir)
  assert done.returncode == 0, done.stderr
  return workdir, done
