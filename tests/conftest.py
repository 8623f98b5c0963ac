"""What every test runs under, set before jax starts.

A CPU with eight fake devices, no network, and rank promotion as an error: an
array of the wrong rank must not be broadcast into a plausible number.
`test_imports.py` checks that these are in force. What one worker or script
has compiled, the others find, in a folder that ends with the tests.
"""

import fcntl
import gc
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile

import jaxlib.version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

# Workers of pytest-xdist, and the scripts they start, inherit the folder.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# A folder that outlives the tests, for whoever runs some of them repeatedly.
KEPT_CACHE = os.environ.get("PURE_JAX_TEST_CACHE")
if not IS_WORKER:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = KEPT_CACHE or tempfile.mkdtemp(
    prefix="pure_jax_compiled_"
  )
  # Seconds; to keep a smaller program takes as long as to compile it.
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# XLA's newer emitters for CPUs take more time than all else of a compilation.
# From jaxlib 0.11.1 on it has no others. Code is generated in one piece: every
# core has a worker already. jaxlib and libtpu end the process if they do not
# know a flag.
NEWER_EMITTERS = "xla_cpu_use_fusion_emitters"
HAS_OLDER_EMITTERS = (
  jaxlib.version.__version_info__ < (0, 11, 1)
  and importlib.util.find_spec("libtpu") is None
)
if HAS_OLDER_EMITTERS and not IS_WORKER:
  os.environ["XLA_FLAGS"] = " ".join(
    [
      os.environ.get("XLA_FLAGS", ""),
      f"--{NEWER_EMITTERS}=false",
      "--xla_cpu_parallel_codegen_split_count=1",
    ]
  )

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects and little garbage.
gc.set_threshold(20_000, 20, 20)

# Files that take longest come first: at the end no core waits for another.
LONGEST = (
  "test_experiments.py",
  "test_processes.py",
  "test_smoke_runs.py",
  "test_notebooks.py",
  "test_survival.py",
  "test_lora_runs.py",
  "test_train.py",
  "test_files_task.py",
  "test_evaluate.py",
  "test_layouts.py",
  "test_generation.py",
  "test_user_data.py",
  "test_transformer.py",
  "test_plan.py",
  "test_lora.py",
  "test_attention.py",
  "test_huggingface_load.py",
  "test_packed.py",
  "test_huggingface_export.py",
  "test_timings.py",
  "test_token_logp.py",
)

# Files that compare numbers within tolerances, ids or messages: most of their
# time was that of LLVM's optimiser and of XLA's newer emitters, on programs
# that run once. Neither changes the memory of a program. Tests of the same
# bits from two programs, of compiled text or time compile as users do: in other
# files, or by `compiled_well`.
COMPILED_QUICKLY = {
  "test_accelerator_rl.py",
  "test_advantages.py",
  "test_attention.py",
  "test_benchmark_baselines.py",
  "test_benchmark_command.py",
  "test_benchmark_suites.py",
  "test_check_accelerator.py",
  "test_cpu_layout.py",
  "test_credit.py",
  "test_critic_runs.py",
  "test_critic_updates.py",
  "test_decoding.py",
  "test_docs.py",
  "test_engine.py",
  "test_estimators.py",
  "test_evaluate.py",
  "test_evaluate_errors.py",
  "test_evaluate_prm.py",
  "test_evaluate_prm_data.py",
  "test_evaluate_prm_errors.py",
  "test_experiments.py",
  "test_export.py",
  "test_files_task.py",
  "test_finite_updates.py",
  "test_gae.py",
  "test_generation.py",
  "test_gguf_files.py",
  "test_hostile_files.py",
  "test_hostile_values.py",
  "test_huggingface_export.py",
  "test_huggingface_load.py",
  "test_importance.py",
  "test_int8.py",
  "test_int8_weights.py",
  "test_interrupts.py",
  "test_kernel_calls.py",
  "test_kernels_attention.py",
  "test_kernels_decode.py",
  "test_kernels_logp.py",
  "test_kv_cache.py",
  "test_labelled_solutions.py",
  "test_layouts.py",
  "test_locations.py",
  "test_lora.py",
  "test_lora_runs.py",
  "test_losses.py",
  "test_main_branch.py",
  "test_masked.py",
  "test_models_params.py",
  "test_notebooks.py",
  "test_numeric_limits.py",
  "test_packed.py",
  "test_packing.py",
  "test_plan_engine.py",
  "test_policy.py",
  "test_prm.py",
  "test_processes.py",
  "test_push.py",
  "test_ratios.py",
  "test_reference.py",
  "test_remat.py",
  "test_response_ends.py",
  "test_rollouts.py",
  "test_same_ids.py",
  "test_sampling.py",
  "test_score.py",
  "test_separate_steps.py",
  "test_slots.py",
  "test_smoke_runs.py",
  "test_speed_rows.py",
  "test_steps.py",
  "test_stopping.py",
  "test_supervised_steps.py",
  "test_survival.py",
  "test_token_logp.py",
  "test_train.py",
  "test_transformer.py",
  "test_trunk_states.py",
  "test_updates.py",
  "test_user_data.py",
}


def pytest_collection_modifyitems(items):
  """Sorts the files of `LONGEST` to the front, the rest as they were."""
  rank = {name: number for number, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_unconfigure():
  """Removes what was compiled, after the last worker."""
  if not IS_WORKER and not KEPT_CACHE:
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


if HAS_OLDER_EMITTERS:
  # A flag of the process: only JAX's own function can set it for a program.
  from jax._src import compiler

  def _compile_options(*args, original=compiler.get_compile_options, **kwargs):
    """JAX's options, with the newer emitters where LLVM's optimiser is on."""
    options = original(*args, **kwargs)
    debug_options = options.executable_build_options.debug_options
    on_cpu = getattr(kwargs.get("backend"), "platform", None) == "cpu"
    if on_cpu and debug_options.xla_backend_optimization_level:
      options.env_option_overrides = [
        *options.env_option_overrides,
        (NEWER_EMITTERS, True),
      ]
    return options

  compiler.get_compile_options = _compile_options


def _compile_quickly(quickly):
  """Without LLVM's optimiser, or as users do; scripts inherit it.

  What was compiled the other way is forgotten: files share functions.
  """
  name = "jax_disable_most_optimizations"
  jax.clear_caches()
  jax.config.update(name, quickly)
  os.environ[name.upper()] = str(int(quickly))


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(request):
  """The files of `COMPILED_QUICKLY`, from their first test to their last."""
  quickly = request.path.name in COMPILED_QUICKLY
  if quickly:
    _compile_quickly(True)
  yield quickly
  if quickly:
    _compile_quickly(False)


@pytest.fixture
def compiled_well(compiled_quickly):
  """For a test about bits in one of these files: as users compile."""
  if compiled_quickly:
    _compile_quickly(False)
  yield
  if compiled_quickly:
    _compile_quickly(True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """One whole smoke run, all stages: its folder, and how it ended.

  The first worker that needs it runs it, every worker has a copy of its own.
  """
  import smoke_run

  folder = tmp_path_factory.mktemp("runs") / "whole"
  shared = tmp_path_factory.getbasetemp()
  if IS_WORKER:
    shared = shared.parent
  with (shared / "finished.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    ended = shared / "finished.json"
    if not ended.exists():
      done = smoke_run.run("train_pure.py", shared / "finished")
      ended.write_text(json.dumps(vars(done), default=str))
  done = subprocess.CompletedProcess(**json.loads(ended.read_text()))
  assert done.returncode == 0, done.stderr  # Whoever asks; none tries again.
  shutil.copytree(shared / "finished", folder)
  return folder, done
