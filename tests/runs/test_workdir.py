"""The folder of a run has one config, one process, and its versions."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from pure_jax.host import atomic_files
from pure_jax.host.atomic_files import write_json_atomic
from pure_jax.host.checkpoints.record import config_differences
from pure_jax.runs import workdir
from pure_jax.runs.workdir import WorkdirError, prepare_workdir

CONFIG = {
  "seed": 0,
  "sizes": (1, 2),
  "rl": {"credit": "min_eq3", "iterations": 10, "optim": {"beta1": 0.9}},
}


def changed(**rl):
  return CONFIG | {"rl": CONFIG["rl"] | rl}


def test_the_record_holds_config_and_versions(tmp_path):
  folder = prepare_workdir(tmp_path / "a" / "b", CONFIG)
  record = json.loads((folder / "config.json").read_text())
  assert record["config"]["rl"] == CONFIG["rl"]
  (versions,) = record["versions"]
  assert versions["packages"]["jax"] == jax.__version__
  assert versions["packages"]["numpy"] == np.__version__
  assert versions["python"] == sys.version.split()[0]
  assert versions["devices"] == {"cpu": 8}
  assert [p.name for p in folder.iterdir()] == ["config.json"]


def test_an_equal_config_is_accepted_again(tmp_path):
  assert prepare_workdir(tmp_path, CONFIG) == prepare_workdir(tmp_path, CONFIG)


def test_a_resumed_run_keeps_the_versions_it_started_with(
  tmp_path, monkeypatch
):
  """Its first steps were not made by the packages of its last ones."""
  prepare_workdir(tmp_path, CONFIG)
  first = workdir.collect_versions()
  later = first | {"python": "4.0"}
  monkeypatch.setattr(workdir, "collect_versions", lambda: later)
  for _ in range(2):
    prepare_workdir(tmp_path, CONFIG)
  assert workdir.read_record(tmp_path)["versions"] == [first, later]


def test_another_config_is_an_error_that_names_the_fields(tmp_path):
  prepare_workdir(tmp_path, CONFIG)
  before = (tmp_path / "config.json").read_text()
  other = changed(credit="sum", optim={"beta1": 0.95}) | {"new": None}
  with pytest.raises(WorkdirError) as caught:
    prepare_workdir(tmp_path, other)
  lines = str(caught.value).splitlines()
  assert str(tmp_path) in lines[0]
  assert [line.strip() for line in lines[1:-1]] == [
    "new: was absent, is now None",
    "rl.credit: was 'min_eq3', is now 'sum'",
    "rl.optim.beta1: was 0.9, is now 0.95",
  ]
  assert (tmp_path / "config.json").read_text() == before


def test_some_fields_may_change(tmp_path):
  """A group covers its fields; a prefix of a name covers nothing."""
  prepare_workdir(tmp_path, CONFIG)
  longer = changed(iterations=20)
  prepare_workdir(tmp_path, longer, may_differ=["rl.iterations"])
  record = json.loads((tmp_path / "config.json").read_text())
  assert record["config"]["rl"]["iterations"] == 20
  prepare_workdir(tmp_path, changed(credit="sum"), may_differ=["rl"])
  with pytest.raises(WorkdirError, match=r"rl\.iterations"):
    prepare_workdir(
      tmp_path, changed(credit="sum", iterations=30), may_differ=["rl.iter"]
    )


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ({"a": {}}, {"a": None}),
    ({"a": {}}, {}),
    ({"a": {"b": 1}}, {"a": 1}),
    ({"a": [1, 2]}, {"a": [2, 1]}),
  ],
)
def test_small_differences_between_configs_are_found(one, other):
  assert config_differences(one, other)
  assert config_differences(one, one) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(WorkdirError, match=r"Cannot write.*file/below"):
    prepare_workdir(tmp_path / "file" / "below", CONFIG)


def test_a_working_directory_needs_a_name():
  """With an unset shell variable, a run would write to the current folder."""
  with pytest.raises(WorkdirError, match="has no name"):
    prepare_workdir("", CONFIG)


# Holds the lock of a folder, or fails if another process holds it.
HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_share_a_folder(tmp_path):
  lock = str(tmp_path / workdir.LOCK_FILE)
  hold_lock = [sys.executable, "-S", "-c", HOLD_LOCK, lock]
  with workdir.lock_folder(tmp_path):
    other = subprocess.run(
      hold_lock, capture_output=True, text=True, check=False
    )
    assert "BlockingIOError" in other.stderr
  other = subprocess.Popen(
    hold_lock, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  assert other.stdout.readline() == "locked\n"
  with (
    pytest.raises(WorkdirError, match="Another process is running"),
    workdir.lock_folder(tmp_path),
  ):
    pass
  other.kill()  # The lock is released however the process ends.
  other.wait()
  with workdir.lock_folder(tmp_path):
    pass


@pytest.fixture(scope="module")
def dead():
  """The number of a process that has ended."""
  process = subprocess.Popen([sys.executable, "-S", "-c", ""])
  process.wait()
  return process.pid


def plant(folder, *names):
  """Makes files, and folders with a file, below a folder."""
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("/"):
      path.mkdir()
      path = path / "file"
    path.touch()


def temporary(name, pid, machine=atomic_files._MACHINE):
  """The temporary name of a file that a process writes."""
  return f".{name}.{pid}.{machine}.pure_jax.tmp"


def all_names(folder):
  return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_killed_processes_left_is_removed_when_it_is_opened(
  tmp_path, dead
):
  """Only our own temporary names, and nothing that somebody may be writing."""
  prepare_workdir(tmp_path, CONFIG)
  plant(
    tmp_path,
    *("thesis.2024.tmp", "notes.tmp", ".pure_jax.tmp", f".x.{dead}.tmp"),
    *("rl/4/", "rl/best.orbax-checkpoint-tmp/"),
    temporary("config.json", os.getppid()),
    # A process of another machine, which may be running.
    *(temporary("x", dead, "0" * 8), f"{temporary('y', dead, '0' * 8)}/"),
    # Of another program, in a folder of its own.
    "export/4.orbax-checkpoint-tmp/",
    # Another run, which another process may be using.
    *("seed0/.lock", "seed0/rl/4.orbax-checkpoint-tmp/"),
    f"seed0/{temporary('x', dead)}",
  )
  link = tmp_path / temporary("link", dead)
  link.symlink_to(tmp_path / "seed0")
  stay = all_names(tmp_path) - {link.name}
  plant(
    tmp_path,
    *(".processes", temporary("metrics.jsonl", os.getpid())),
    *(temporary("metrics.jsonl", dead), temporary("a.7.b", dead)),
    *(
      f"generations/{temporary('x.md', dead)}",
      f"tiny/{temporary('x', dead)}/",
    ),
    temporary(temporary("policy", dead), dead),
    *("rl/4.orbax-checkpoint-tmp/", "prm/weights/0.orbax-checkpoint-tmp-123/"),
  )
  old = temporary("old", dead, "0" * 8)
  plant(tmp_path, f"{old}/")
  for path in (tmp_path / old / "file", tmp_path / old):
    os.utime(path, (0, 0))
  # Somebody writes to a file in this old folder.
  os.utime(tmp_path / temporary("y", dead, "0" * 8), (0, 0))
  left = all_names(tmp_path)
  hold_lock = [sys.executable, "-S", "-c", HOLD_LOCK, str(tmp_path / ".lock")]
  other = subprocess.Popen(
    hold_lock, stdin=subprocess.PIPE, stdout=subprocess.PIPE
  )
  assert other.stdout.readline() == b"locked\n"
  with pytest.raises(WorkdirError), workdir.open_workdir(tmp_path, CONFIG):
    pass
  assert all_names(tmp_path) == left | {".lock"}
  other.communicate()
  with workdir.open_workdir(tmp_path, CONFIG) as folder:
    empty = {"generations", "tiny", "prm", "prm/weights", ".lock"}
    assert all_names(folder) == stay | empty


def test_a_folder_that_is_no_run_is_not_searched(tmp_path, dead):
  plant(tmp_path, temporary("x", dead), "4.orbax-checkpoint-tmp/")
  before = all_names(tmp_path)
  with workdir.lock_folder(tmp_path):
    assert all_names(tmp_path) == before | {".lock"}


def test_a_folder_of_another_program_stays_as_it_is(tmp_path):
  """Its name may have been mistyped; its own process may be writing there."""
  plant(tmp_path, "config.json", ".processes", "rl/4.orbax-checkpoint-tmp/")
  before = all_names(tmp_path)
  with (
    pytest.raises(WorkdirError, match="not the record of a run"),
    workdir.open_workdir(tmp_path, CONFIG),
  ):
    pass
  assert all_names(tmp_path) == before
  with workdir.lock_folder(tmp_path):  # As the start of another run.
    assert all_names(tmp_path) == before | {".lock"}


def test_a_folder_in_use_keeps_its_config(tmp_path):
  """Otherwise the second command would change the first one's record."""
  with workdir.open_workdir(tmp_path, CONFIG):
    before = (tmp_path / "config.json").read_text()
    longer = changed(iterations=20)
    with (
      pytest.raises(WorkdirError, match="Another process is running"),
      workdir.open_workdir(tmp_path, longer, may_differ=["rl"]),
    ):
      pass
    assert (tmp_path / "config.json").read_text() == before


# Writes a file or a folder, and is killed at a moment.
KILLED = """
import os, pathlib, signal, sys, types
sys.modules["pure_jax"] = types.ModuleType("pure_jax")  # Without jax.
sys.modules["pure_jax"].__path__ = [sys.argv[1]]
from pure_jax.host import atomic_files

def die(*unused):
  os.kill(os.getpid(), signal.SIGKILL)

kind, moment, target = sys.argv[2:]
if moment == "rename":
  pathlib.Path.replace = pathlib.Path.rename = die
if moment == "end":
  os.fsync = die
if kind == "file":
  with atomic_files.replace_atomic(target) as file:
    file.write(b"half")
    file.flush()
    moment != "content" or die()
else:
  with atomic_files.create_folder_atomic(target) as folder:
    with atomic_files.create_folder_atomic(folder) as inner:
      (inner / "file").touch()
      moment != "content" or die()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("moment", ["content", "end", "rename"])
def test_the_same_command_removes_what_a_killed_one_left(
  tmp_path, kind, moment
):
  """Next to a path that the user names no folder is opened and searched."""
  if (kind, moment) == ("folder", "end"):
    pytest.skip("a folder is not flushed")
  source = pathlib.Path(atomic_files.__file__).parents[1]
  path = tmp_path / "out.1"
  command = [sys.executable, "-c", KILLED, source, kind, moment, path]
  for _ in range(2):
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == (2 if kind == "folder" else 1)
    assert not path.exists()
  others = {temporary("out.1", os.getppid()), temporary("other", 9)}
  plant(tmp_path, *others)
  if kind == "file":
    write_json_atomic(path, 1)
  else:
    with atomic_files.create_folder_atomic(path) as folder:
      (folder / "file").touch()
  assert {p.name for p in tmp_path.iterdir()} == others | {"out.1"}


@pytest.mark.parametrize(
  "text",
  [
    *("{", "[]", '{"other": 1}', '{"config": {}, "versions": []}'),
    *('{"config": 1, "versions": [1]}', '{"config": {}, "versions": 1}'),
    *("", "\0", "null", "[" * 200_000, "1" * 5000, '{"config": \ud800'),
  ],
  ids=lambda text: repr(text[:30]),
)
def test_a_file_that_is_no_record_of_a_run_is_an_error(tmp_path, text):
  path, content = tmp_path / "config.json", text.encode(errors="surrogatepass")
  path.write_bytes(content)
  with pytest.raises(WorkdirError, match=f"{path} is not the record of a run"):
    prepare_workdir(tmp_path, CONFIG)
  assert path.read_bytes() == content
  path.unlink()
  path.mkdir()
  with pytest.raises(WorkdirError, match=f"{path} is not the record of a run"):
    prepare_workdir(tmp_path, CONFIG)
  assert workdir.read_record(tmp_path / "none") is None


def test_json_is_replaced_completely_or_not_at_all(tmp_path):
  path = tmp_path / "x.json"
  write_json_atomic(path, {"a": [1, 2]})
  assert json.loads(path.read_text()) == {"a": [1, 2]}
  with pytest.raises(TypeError):
    write_json_atomic(path, {"a": object()})
  assert json.loads(path.read_text()) == {"a": [1, 2]}
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_replacement_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "x.json"
  write_json_atomic(path, 1)

  def fail(*unused):
    raise OSError("disk full")

  monkeypatch.setattr(pathlib.Path, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    write_json_atomic(path, 2)
  assert path.read_text() == "1\n"
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def git(folder, *arguments):
  identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
  done = subprocess.run(
    ["git", *identity, *arguments],
    cwd=folder,
    check=True,
    capture_output=True,
    text=True,
  )
  return done.stdout.strip()


def test_the_commit_is_of_the_checkout_that_tracks_this_file(
  tmp_path, monkeypatch
):
  """The package may be installed inside another project's repository."""
  git(tmp_path, "init", "-q")
  module = tmp_path / "workdir.py"
  module.write_text("")
  monkeypatch.setattr(workdir, "__file__", str(module))
  git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
  assert workdir.collect_versions()["commit"] is None
  git(tmp_path, "add", "workdir.py")
  git(tmp_path, "commit", "-q", "-m", "ours")
  head = git(tmp_path, "rev-parse", "HEAD")
  assert workdir.collect_versions()["commit"] == head
  module.write_text("changed")
  assert workdir.collect_versions()["commit"] == f"{head}+changes"
