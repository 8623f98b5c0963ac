"""The import graph points one way, and importing the library costs little."""

import ast
import json
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from checkout import ROOT

HOST = "host"
RUNS = "runs"

# What a part may import from, besides itself. Parts are the folders of
# `pure_jax`; its top-level modules are "method".
MAY_IMPORT = {
  "method": set(),
  "kernels": {"method"},
  "models": {"method", "kernels"},
  "rollout": {"method", "kernels", "models"},
  "parallel": {"method", "kernels", "models"},
  "training": {"method", "kernels", "models", "rollout", "parallel"},
  "host": {"method", "models", "rollout", "parallel"},
  "runs": {
    *("method", "kernels", "models", "rollout", "parallel"),
    *("training", "host"),
  },
}
# `flax` stands for `flax.struct`, checked below.
DEVICE_PACKAGES = {"jax", "numpy", "optax", "flax"}
HEAVY = {
  "array_record",
  "huggingface_hub",
  "math_verify",
  "matplotlib",
  "ml_collections",
  "orbax",
  "safetensors",
  "sentencepiece",
  "sympy",
  "tensorboardX",
  "tensorflow",
  "tensorflow_datasets",
  "torch",
  "tqdm",
  "transformers",
}


def source_files() -> dict[str, pathlib.Path]:
  """Files of the library by module name."""
  modules = {}
  for folder, package in (("pure_jax", "pure_jax"),
                          ("kernels", "pure_jax.kernels")):  # fmt: skip
    for path in sorted((ROOT / folder).rglob("*.py")):
      parts = path.relative_to(ROOT / folder).with_suffix("").parts
      name = ".".join([package, *parts]).removesuffix(".__init__")
      modules[name] = path
  return modules


MODULES = source_files()


def part_of(module: str) -> str:
  parts = module.split(".")
  return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "method"


def imported_names(module: str) -> set[str]:
  """Full names that a file imports, wherever in the file it does."""
  tree = ast.parse(MODULES[module].read_text())
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{module}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def imported_modules(module: str) -> set[str]:
  """Modules of the library that a file imports."""
  found = set()
  for name in imported_names(module):
    while name and name not in MODULES:
      name = name.rpartition(".")[0]
    found |= {name} & MODULES.keys()
  # `from pure_jax import credit` needs the door only where it is the target.
  return found - {module}


DEVICE_MODULES = [name for name in MODULES if part_of(name) not in (HOST, RUNS)]


def test_the_guards_are_on():
  """Devices, platform and the rank check that conftest sets."""
  assert jax.default_backend() == "cpu"
  assert jax.device_count() == 8
  with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
    jnp.ones((2, 3)) + jnp.ones(3)


@pytest.mark.parametrize("module", DEVICE_MODULES)
def test_the_device_half_imports_only_arrays(module):
  for name in imported_names(module):
    top = name.split(".")[0]
    allowed = top in DEVICE_PACKAGES | sys.stdlib_module_names | {"pure_jax"}
    assert allowed, f"{module} imports {name}"
    room = name.removeprefix("pure_jax.").split(".")[0]
    assert room not in (HOST, RUNS), f"{module} imports {name}"
    if top == "flax":
      assert name.startswith("flax.struct"), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_parts_import_one_way(module):
  here = part_of(module)
  for other in imported_modules(module) - {"pure_jax"}:
    there = part_of(other)
    assert there == here or there in MAY_IMPORT[here], (
      f"{here} ({module}) must not import {there} ({other})"
    )


def test_only_the_door_imports_the_door():
  """`import pure_jax` inside the library would be a cycle."""
  for module in MODULES:
    if module != "pure_jax":
      assert "pure_jax" not in imported_modules(module), module


def test_modules_import_each_other_without_cycles():
  graph = {name: imported_modules(name) for name in MODULES}
  done = []

  def visit(name, trail):
    assert name not in trail, f"cycle: {' -> '.join([*trail, name])}"
    if name not in done:
      for other in sorted(graph[name]):
        visit(other, [*trail, name])
      done.append(name)

  for name in graph:
    visit(name, [])
  assert len(done) == len(MODULES) > 10


@pytest.mark.parametrize(
  "script", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.name
)
def test_scripts_use_no_internals_of_each_other(script):
  """What two scripts share belongs to `pure_jax.runs`."""
  tree = ast.parse(script.read_text())
  names = {path.stem for path in script.parent.glob("*.py")}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module in names:
      private = [a.name for a in node.names if a.name.startswith("_")]
      assert not private, f"{script.name} imports {private} of {node.module}"
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      private = node.value.id in names and node.attr.startswith("_")
      assert not private, f"{script.name} uses {ast.unparse(node)}"


def test_kernels_import_nothing_at_the_top():
  """In a checkout the folder is found by whoever probes for `kernels`."""
  assert imported_names("pure_jax.kernels") == set()


def run(code: str) -> str:
  """Output of a fresh interpreter, started in the checkout."""
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


def import_library() -> dict:
  """What a fresh interpreter observes when it imports the library."""
  output = run(
    """
    import json, sys, time
    import jax, jax.numpy, flax.struct
    before = {name.split(".")[0] for name in sys.modules}
    start = time.perf_counter()
    import pure_jax
    seconds = time.perf_counter() - start
    after = {name.split(".")[0] for name in sys.modules}
    from absl import flags
    from jax._src import xla_bridge
    print(json.dumps({
      "added": sorted(after - before - sys.stdlib_module_names),
      "loaded": sorted(after),
      "seconds": seconds,
      "flags are parsed": flags.FLAGS.is_parsed(),
      "backends": len(xla_bridge._backends),
    }))
    """
  )
  return json.loads(output)


@pytest.fixture(scope="module")
def imported() -> dict:
  return import_library()


def test_importing_loads_nothing_beyond_jax_and_flax(imported):
  """flax itself brings absl; whatever else appears is ours to explain."""
  assert imported["added"] == ["pure_jax"]
  assert not HEAVY & {*imported["loaded"]}


def test_a_run_of_the_embedded_world_loads_what_it_uses():
  """Where torch is installed transformers imports it: seconds each start."""
  output = run(
    """
    import sys
    sys.path.insert(0, "experiments")
    import train_pure
    print(*{name.split(".")[0] for name in sys.modules})
    """
  )
  loaded = set(output.split())
  assert {"train_pure", "tensorflow_datasets"} <= loaded
  assert not {"transformers", "matplotlib", "sympy"} & loaded


def test_importing_parses_no_flags_and_starts_no_backend(imported):
  assert not imported["flags are parsed"]
  assert imported["backends"] == 0


def test_importing_any_device_module_starts_no_backend():
  """All in one process: the first that starts one is named."""
  lines = [
    "import importlib",
    "from jax._src import xla_bridge",
    f"for name in {DEVICE_MODULES!r}:",
    "  importlib.import_module(name)",
    "  assert not xla_bridge._backends, name",
  ]
  run("\n".join(lines))


def test_importing_takes_less_than_a_second_beyond_jax(imported):
  """One of three times: the machine may be busy, the import may not be slow."""
  seconds = imported["seconds"]
  assert seconds < 1 or any(import_library()["seconds"] < 1 for _ in range(2))


def test_the_door_holds_what_it_names():
  import pure_jax

  assert sorted(pure_jax.__all__) == pure_jax.__all__
  for name in pure_jax.__all__:
    assert hasattr(pure_jax, name)
