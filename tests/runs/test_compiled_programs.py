"""A second start reuses what the first one compiled, and gives its numbers."""

import json
import os
import resource
import shutil
import subprocess
import types

import cli
import jax
import jax.numpy as jnp
import pytest
import smoke_run
from checkout import EXPERIMENTS
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from smoke_run import assert_same_run, command

from pure_jax.runs import compilation_cache

# Runs a script, and prints at its end how often jax hit and missed its cache.
COUNTING = """
import atexit, collections, json, runpy, sys
import jax
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name]))
atexit.register(lambda: print(json.dumps(
    {name.split("/")[-1]: n for name, n in counts.items() if "cache" in name})))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SHORT = (
  "--config.sft.steps=3",
  "--config.sft.log_every=1",
  "--config.model.num_layers=1",
)


def start(script, workdir, home, *options):
  """Runs a script for a user who has configured nothing.

  Returns:
    How often jax hit and missed its cache, by event.
  """
  python, *words = command(script, workdir, *options)
  variables = {
    name: value
    for name, value in smoke_run.environment().items()
    if "CACHE" not in name
  }
  done = subprocess.run(
    [python, "-c", COUNTING, *words],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=400,
    check=False,
    env=variables
    | {"XDG_CACHE_HOME": str(home), "PYTHONPATH": str(EXPERIMENTS)},
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def programs(home):
  """Name and time of every program on disk."""
  paths = home.glob("pure_jax/compiled/*/*-cache")
  return {path.name: path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  """Supervised training with an empty cache: its folder, home and counts."""
  folder = tmp_path_factory.mktemp("first")
  counts = start("train_sft.py", folder / "run", folder / "home", *SHORT)
  return folder / "run", folder / "home", counts


def test_a_second_start_compiles_nothing_and_gives_the_same(first, tmp_path):
  """The second run reads every program that it needs."""
  run, home, counts = first
  kept_programs = programs(home)
  assert counts["cache_misses"] >= len(kept_programs) > 0
  second = start("train_sft.py", tmp_path / "second", home, *SHORT)
  assert "cache_misses" not in second
  assert second["cache_hits"] == second["compile_requests_use_cache"]
  assert programs(home) == kept_programs
  assert_same_run(tmp_path / "second", run, ["sft"])


@pytest.mark.slow
def test_a_second_start_of_all_stages_compiles_nothing(tmp_path):
  home = tmp_path / "home"
  start("train_pure.py", tmp_path / "first", home)
  second = start("train_pure.py", tmp_path / "second", home)
  assert "cache_misses" not in second and second["cache_hits"] > 0
  stages = ["sft", "prm_head", "prm_full", "prm_eval", "rl", "rl_eval"]
  assert_same_run(tmp_path / "second", tmp_path / "first", stages)
  # A run that goes on in RL makes nothing for a stage that is done.
  data = tmp_path / "second" / "data" / "arithmetic_dataset"
  (labelled,) = data.glob("*labelled*")
  shutil.rmtree(labelled)
  longer = "--config.rl.iterations=5"
  third = start("train_pure.py", tmp_path / "second", home, longer)
  assert "cache_misses" not in third and third["cache_hits"] > 0
  assert not labelled.exists() and len([*data.iterdir()]) == 1


def test_supervised_training_makes_no_labelled_responses(first):
  """They take longer than its own data, and only the PRM reads them."""
  run, _, _ = first
  (made,) = (run / "data" / "arithmetic_dataset").iterdir()
  files = [path.name for path in made.rglob("*.array_record*")]
  assert len(files) == 2 and not any("labelled" in name for name in files)


@pytest.mark.slow
def test_truncated_programs_are_compiled_again(first, tmp_path):
  """A full disk or a killed process leaves such programs."""
  run, home, _ = first
  shutil.copytree(home, tmp_path / "home")
  entries = sorted(tmp_path.glob("home/pure_jax/compiled/*/*-cache"))
  for number, path in enumerate(entries):
    size = path.stat().st_size
    os.truncate(path, (0, size // 2, size - 1)[number % 3])
  counts = start("train_sft.py", tmp_path / "run", tmp_path / "home", *SHORT)
  assert "cache_hits" not in counts
  assert_same_run(tmp_path / "run", run, ["sft"])


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A user who has configured nothing, and jax's own cache afterwards."""
  names = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: jax.config.values[name] for name in names}
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  reset_cache()
  yield tmp_path / "home"
  for name, value in before.items():
    jax.config.update(name, value)
  reset_cache()


def test_programs_are_kept_in_a_folder_of_the_user(home):
  path = compilation_cache.enable()
  assert path.parent == home / "pure_jax" / "compiled"
  assert jax.config.jax_compilation_cache_dir == str(path)
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
  # Whoever can write there decides which code runs.
  assert path.stat().st_mode & 0o077 == 0


def test_settings_of_the_user_are_not_changed(home, monkeypatch):
  chosen = home.parent / "chosen"
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
  jax.config.update("jax_compilation_cache_dir", str(chosen))
  assert compilation_cache.enable() == chosen
  assert jax.config.jax_compilation_cache_dir == str(chosen)
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 7
  jax.config.update("jax_enable_compilation_cache", False)
  assert compilation_cache.enable() is None
  jax.config.update("jax_enable_compilation_cache", True)
  assert compilation_cache.enable("off") is None
  assert not jax.config.jax_enable_compilation_cache
  assert not home.exists()


def test_an_unusable_folder_ends_no_run(home, capsys, monkeypatch):
  """Scripts print a message, and jax keeps nothing."""
  (home.parent / "file").write_text("")
  unusable = str(home.parent / "file" / "inside")
  flag = types.SimpleNamespace(value=unusable)
  monkeypatch.setattr(cli, "_COMPILATION_CACHE", flag)
  cli._keep_programs()
  assert "compiled programs are not kept: " in capsys.readouterr().err
  assert jax.config.jax_compilation_cache_dir is None
  assert not home.exists()


def test_a_full_disk_ends_no_run(home):
  """Nor does the truncated program that it leaves for the next process."""
  folder = compilation_cache.enable()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  for failing, limit in (("writing", 1000), ("reading", limits[0])):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
      message = f"Error {failing} persistent compilation cache entry"
      with pytest.warns(UserWarning, match=message):
        total = jax.jit(lambda x: jnp.cumsum(x)[-1])(jnp.arange(100))
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert int(total) == 4950
  sizes = [path.stat().st_size for path in folder.iterdir()]
  assert sizes and max(sizes) <= 1000


def test_the_least_recently_used_programs_are_removed(tmp_path):
  """Half of the limit is left, so that it is not done at every start."""
  for age, name in enumerate(["new", "middle", "old"]):
    path = tmp_path / f"{name}-cache"
    path.write_bytes(bytes(100))
    os.utime(path, (1e9 - age, 0))
  (tmp_path / "another").write_bytes(bytes(1000))
  assert compilation_cache.remove_oldest(tmp_path, 300) == 0
  assert compilation_cache.remove_oldest(tmp_path, 299) == 2
  assert sorted(p.name for p in tmp_path.iterdir()) == ["another", "new-cache"]
