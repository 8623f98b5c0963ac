"""A second start finds what the first one compiled, and gives its numbers."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from checkout import ROOT
from smoke_run import assert_same_run, command

from pure_jax.runs import compilation_cache

# Runs a script and says at its end what jax found on disk and what it did not.
COUNTING = """
import atexit, collections, json, pathlib, runpy, sys
import jax
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name]))
atexit.register(lambda: print(json.dumps(
    {name.split("/")[-1]: n for name, n in seen.items() if "cache" in name})))
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SHORT = ("--config.sft.steps=3", "--config.sft.log_every=1")


def environment(home, **changes):
  """Of a user who has set nothing."""
  kept = {k: v for k, v in os.environ.items() if "CACHE" not in k}
  return kept | {"XDG_CACHE_HOME": str(home)} | changes


def start(script, workdir, home, *options, **changes):
  """Runs a script; (what jax counted, stderr)."""
  python, *words = command(script, workdir, *options)
  done = subprocess.run(
    [python, "-c", COUNTING, *words],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=400,
    check=False,
    env=environment(home, **changes),
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1]), done.stderr


def programs(home):
  """Name and time of every program kept."""
  found = home.glob("pure_jax/compiled/*/*-cache")
  return {path.name: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  """A supervised start that found nothing: its folder, programs and counts."""
  folder = tmp_path_factory.mktemp("first")
  counted, _ = start("train_sft.py", folder / "run", folder / "home", *SHORT)
  return folder / "run", folder / "home", counted


def test_a_second_start_compiles_nothing_and_gives_the_same(first, tmp_path):
  """Both from nothing: the second reads every program that it runs."""
  run, home, counted = first
  kept = programs(home)
  assert counted["cache_misses"] >= len(kept) > 0
  second, _ = start("train_sft.py", tmp_path / "second", home, *SHORT)
  assert "cache_misses" not in second
  assert second["cache_hits"] == second["compile_requests_use_cache"]
  assert programs(home) == kept
  assert_same_run(tmp_path / "second", run, ["sft"])


@pytest.mark.slow
def test_a_second_start_of_all_stages_compiles_nothing(tmp_path):
  home = tmp_path / "home"
  start("train_pure.py", tmp_path / "first", home)
  second, _ = start("train_pure.py", tmp_path / "second", home)
  assert "cache_misses" not in second and second["cache_hits"] > 0
  stages = ["sft", "prm_head", "prm_full", "prm_eval", "rl", "rl_eval"]
  assert_same_run(tmp_path / "second", tmp_path / "first", stages)
  # Gone on with in RL, nothing is made for a stage that is done.
  data = tmp_path / "second" / "data" / "arithmetic_dataset"
  (labelled,) = data.glob("*labelled*")
  shutil.rmtree(labelled)
  longer = "--config.rl.iterations=5"
  third, _ = start("train_pure.py", tmp_path / "second", home, longer)
  assert "cache_misses" not in third and third["cache_hits"] > 0
  assert not labelled.exists() and len([*data.iterdir()]) == 1


def test_a_supervised_start_makes_no_responses_to_be_judged(first):
  """They take longer than what it needs, and the PRM alone reads them."""
  run, _, _ = first
  (made,) = (run / "data" / "arithmetic_dataset").iterdir()
  files = [path.name for path in made.rglob("*.array_record*")]
  assert len(files) == 2 and not any("labelled" in name for name in files)


def test_a_folder_that_takes_nothing_ends_no_run(first, tmp_path):
  run, _, _ = first
  (tmp_path / "file").write_text("in the way")
  counted, said = start(
    "train_sft.py",
    tmp_path / "run",
    tmp_path / "home",
    *SHORT,
    f"--compilation_cache={tmp_path}/file/inside",
  )
  assert "cache_hits" not in counted and "cache_misses" not in counted
  assert not programs(tmp_path / "home")
  assert "compiled programs are not kept: " in said
  assert_same_run(tmp_path / "run", run, ["sft"])


@pytest.mark.slow
def test_programs_cut_short_are_compiled_again(first, tmp_path):
  """As a full disk or a killed process leaves them."""
  run, home, _ = first
  shutil.copytree(home, tmp_path / "home")
  entries = sorted(tmp_path.glob("home/pure_jax/compiled/*/*-cache"))
  for number, path in enumerate(entries):
    size = path.stat().st_size
    os.truncate(path, (0, size // 2, size - 1)[number % 3])
  counted, _ = start(
    "train_sft.py", tmp_path / "run", tmp_path / "home", *SHORT
  )
  assert "cache_hits" not in counted
  assert_same_run(tmp_path / "run", run, ["sft"])


def kept_by(home, folder=None, **changes):
  """What a fresh process says of `keep`: its folder, and how jax is set."""
  code = (
    "import jax\n"
    "from pure_jax.runs import compilation_cache as compiled_programs\n"
    f"print(compiled_programs.enable({folder!r}));"
    "print(jax.config.jax_compilation_cache_dir);"
    "print(jax.config.jax_persistent_cache_min_compile_time_secs)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
    env=environment(home, PYTHONPATH=str(ROOT), **changes),
  )
  return done.stdout.split()


FULL = """
import resource
import jax, jax.numpy as jnp
from pure_jax.runs import compilation_cache as compiled_programs
print(compiled_programs.enable())
if {limited}:
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
print(int(jax.jit(lambda x: jnp.cumsum(x)[-1])(jnp.arange(100))))
"""


def test_a_disk_that_fills_up_ends_nothing(tmp_path):
  """Nor does what it left of a program, for the next process to find."""
  for limited in (True, False):
    done = subprocess.run(
      [sys.executable, "-c", FULL.format(limited=limited)],
      capture_output=True,
      text=True,
      check=False,
      env=environment(tmp_path / "home", PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr
    folder, total = done.stdout.split()
    assert total == "4950"
    said = "writing" if limited else "reading"
    assert f"Error {said} persistent compilation cache entry" in done.stderr
    sizes = [path.stat().st_size for path in pathlib.Path(folder).iterdir()]
    assert sizes and max(sizes) <= 1000


def test_what_the_user_has_set_is_left_alone(tmp_path):
  home, mine = tmp_path / "home", str(tmp_path / "mine")
  variables = {
    "JAX_COMPILATION_CACHE_DIR": mine,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7",
  }
  assert kept_by(home, **variables) == [mine, mine, "7.0"]
  assert kept_by(home, JAX_ENABLE_COMPILATION_CACHE="false")[0] == "None"
  assert kept_by(home, folder="off", **variables)[0] == "None"
  assert not home.exists()
  path, set_to, seconds = kept_by(home)
  assert path == set_to and seconds == "0.0"
  assert pathlib.Path(path).parent == home / "pure_jax" / "compiled"
  # Whoever writes there decides what runs.
  assert pathlib.Path(path).stat().st_mode & 0o077 == 0


def test_programs_not_read_for_longest_go_first(tmp_path):
  """Down to half, so that it is not done at every start."""
  for age, name in enumerate(["new", "middle", "old"]):
    path = tmp_path / f"{name}-cache"
    path.write_bytes(bytes(100))
    os.utime(path, (1e9 - age, 0))
  (tmp_path / "another").write_bytes(bytes(1000))
  assert compilation_cache.remove_oldest(tmp_path, 300) == 0
  assert compilation_cache.remove_oldest(tmp_path, 299) == 2
  assert sorted(p.name for p in tmp_path.iterdir()) == ["another", "new-cache"]
