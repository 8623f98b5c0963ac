"""The wheel holds `pure_jax` and nothing else, and works where it lands."""

import ast
import email
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from checkout import ROOT

# Of the top level: a run's folder there, `runs/`, must not hide the library's.
NOT_SOURCE = ("build", "dist", "runs", "cache", "shared")
NOT_COPIED = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")


def copy_source(folder: pathlib.Path) -> None:
  """The checkout without what was built or left in it."""

  def ignored(place, names):
    top = NOT_SOURCE if pathlib.Path(place) == ROOT else ()
    return {*NOT_COPIED(place, names), *top}

  shutil.copytree(ROOT, folder, ignore=ignored)


def run(*command: str | os.PathLike, **options) -> str:
  done = subprocess.run(
    [str(part) for part in command],
    capture_output=True,
    text=True,
    check=False,
    **options,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
  """Built offline from a copy, so that the checkout stays clean."""
  folder = tmp_path_factory.mktemp("wheel")
  copy_source(folder / "source")
  run(
    sys.executable, "-m", "pip", "wheel", folder / "source", "--no-deps",
    "--no-build-isolation", "--no-index", "--quiet",
    "--disable-pip-version-check", "-w", folder,
  )  # fmt: skip
  (built,) = folder.glob("*.whl")
  return built


def files_below(folder: str, inside: str) -> set[str]:
  """Files of code in a folder of the checkout, as the wheel names them."""
  base = ROOT / folder
  return {
    f"{inside}/{path.relative_to(base).as_posix()}"
    for path in base.rglob("*")
    if path.suffix in (".py", ".html")
  }


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
  """Every module of both folders, and no tests, experiments or `kernels`."""
  names = zipfile.ZipFile(wheel).namelist()
  code = {name for name in names if ".dist-info/" not in name}
  assert {name.split("/")[0] for name in names} == {
    "pure_jax",
    "pure_jax-0.1.0.dist-info",
  }
  assert code == (
    files_below("pure_jax", "pure_jax")
    | files_below("kernels", "pure_jax/kernels")
  )
  assert "pure_jax/kernels/__init__.py" in code
  assert any(name.endswith("/LICENSE") for name in names)


def test_every_folder_of_code_is_a_package():
  """A folder without `__init__.py` would be left out of the wheel."""
  for folder in ("pure_jax", "kernels"):
    for path in (ROOT / folder).rglob("*.py"):
      assert (path.parent / "__init__.py").exists(), path


def test_the_metadata_states_version_licence_and_bounds(wheel):
  with zipfile.ZipFile(wheel) as archive:
    text = archive.read("pure_jax-0.1.0.dist-info/METADATA").decode()
  metadata = email.message_from_string(text)
  assert metadata["Version"] == "0.1.0"
  assert metadata["License-Expression"] == "Apache-2.0"
  assert metadata["Requires-Python"] == ">=3.11"
  needed = metadata.get_all("Requires-Dist")
  runtime = [line for line in needed if "extra ==" not in line]
  (jax,) = [line for line in runtime if line.startswith("jax<")]
  assert set(jax.removeprefix("jax").split(",")) == {">=0.10.2", "<0.13"}
  assert not [line for line in runtime if line.startswith(("torch", "tensorf"))
              and not line.startswith("tensorflow-datasets")]  # fmt: skip
  assert set(metadata.get_all("Provides-Extra")) == {
    *("test", "bench", "plan", "gguf", "qwen-vocabulary")
  }


def test_the_version_is_said_once(wheel):
  door = ast.parse((ROOT / "pure_jax" / "__init__.py").read_text())
  (version,) = [
    ast.literal_eval(node.value)
    for node in door.body
    if isinstance(node, ast.Assign)
    and ast.unparse(node.targets[0]) == "__version__"
  ]
  assert wheel.name.startswith(f"pure_jax-{version}-")


def test_the_wheel_works_from_where_it_lands(wheel, tmp_path):
  """Installed elsewhere: imports, computes, and shadows no other `kernels`."""
  target = tmp_path / "target"
  run(
    sys.executable, "-m", "pip", "install", wheel, "--no-deps", "--no-index",
    "--quiet", "--disable-pip-version-check", "--target", target,
  )  # fmt: skip
  (target / "neighbour").mkdir()
  (target / "neighbour" / "kernels.py").write_text("name = 'theirs'")
  code = """
import importlib.util, pathlib, sys
import jax.numpy as jnp
import pure_jax, pure_jax.kernels
target = pathlib.Path(sys.argv[1])
for module in (pure_jax, pure_jax.kernels):
  assert pathlib.Path(module.__file__).is_relative_to(target), module.__file__
for name in ("kernels", "tests", "experiments"):
  found = importlib.util.find_spec(name)
  assert found is None or not found.origin.startswith(str(target)), found
sys.path.append(str(target / "neighbour"))
importlib.invalidate_caches()
import kernels
assert kernels.name == "theirs"
scores = pure_jax.credit.min_returns(
  jnp.array([0.8, -0.6, 0.4, 0.9]), jnp.ones(4, bool))
print(scores)
"""
  output = run(
    sys.executable, "-c", code, target,
    cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(target)},
  )  # fmt: skip
  assert output.split() == ["[-0.6", "-0.6", "0.4", "0.9]"]


def test_an_editable_install_has_the_kernels_too(tmp_path):
  """`pip install -e .` must map the folder as the wheel does."""
  copy_source(tmp_path / "source")
  run(
    sys.executable, "-m", "pip", "install", "-e", tmp_path / "source",
    "--no-deps", "--no-build-isolation", "--no-index", "--quiet",
    "--disable-pip-version-check", "--target", tmp_path / "target",
  )  # fmt: skip
  code = """
import site, sys
# This environment may hold an editable install of its own: forget it.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f)]
for name in [name for name in sys.modules if "editable" in name]:
  del sys.modules[name]
sys.path.insert(0, sys.argv[1])
site.addsitedir(sys.argv[1])
import pure_jax.kernels
print(pure_jax.__file__, pure_jax.kernels.__file__)
"""
  output = run(sys.executable, "-c", code, tmp_path / "target", cwd=tmp_path)
  assert output.split() == [
    str(tmp_path / "source" / "pure_jax" / "__init__.py"),
    str(tmp_path / "source" / "kernels" / "__init__.py"),
  ]
