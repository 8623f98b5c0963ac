"""What is written about the code is true of the code.

Docstrings name the arguments a function has, examples run, the README's
commands are the ones that work, and files and functions stay readable.
"""

import ast
import doctest
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest
from checkout import ROOT

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
TEST_COMMAND = (
  "python -m venv .venv && .venv/bin/pip install -e '.[test]' && "
  ".venv/bin/python -m pytest -n auto"
)
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):\s*$", re.M)

LIBRARY = sorted(
  [*(ROOT / "pure_jax").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
)
ALL_FILES = sorted(
  [
    *LIBRARY,
    *(ROOT / "experiments").rglob("*.py"),
    *(ROOT / "tests").rglob("*.py"),
    ROOT / "setup.py",
  ]
)
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


def module_of(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  prefix = ("pure_jax",) if parts[0] == "kernels" else ()
  return ".".join([*prefix, *parts]).removesuffix(".__init__")


def argument_names(node: FUNCTION, method: bool) -> list[str]:
  """Names in the signature, `self` and `cls` left out."""
  listed = [*node.args.posonlyargs, *node.args.args]
  decorators = {ast.unparse(d) for d in node.decorator_list}
  if method and "staticmethod" not in decorators:
    listed = listed[1:]
  listed += node.args.kwonlyargs
  extra = [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
  return [a.arg for a in [*listed, *extra]]


def documented_names(doc: str) -> list[str] | None:
  """Names of an Args section, None where there is none.

  A name opens a line at the section's indentation; `a, b: ...` documents two.
  """
  parts = SECTION.split(doc)
  if "Args" not in parts:
    return None
  section = parts[parts.index("Args") + 1]
  # Prose after a blank line, back at the margin, ends the section.
  section = re.split(r"^\S", section, maxsplit=1, flags=re.M)[0]
  indents = [
    len(line) - len(line.lstrip())
    for line in section.splitlines()
    if line.strip()
  ]
  if not indents:
    return []
  names = []
  pattern = rf"^ {{{min(indents)}}}(\S[^:\n]*):"
  for found in re.findall(pattern, section, re.M):
    names += [name.strip().lstrip("*") for name in found.split(",")]
  return names


def functions(tree: ast.Module):
  """Functions and methods: (qualified name, node, is method, is public)."""
  for node in tree.body:
    if isinstance(node, FUNCTION):
      yield node.name, node, False, not node.name.startswith("_")
    elif isinstance(node, ast.ClassDef):
      for item in node.body:
        if isinstance(item, FUNCTION):
          yield f"{node.name}.{item.name}", item, True, False


def complaints(source: str) -> list[str]:
  """What is wrong with the docstrings of a file."""
  found = []
  for name, node, method, public in functions(ast.parse(source)):
    doc = ast.get_docstring(node)
    arguments = argument_names(node, method)
    if doc is None:
      if public:
        found.append(f"{name} has no docstring")
      continue
    listed = documented_names(doc)
    if listed is None:
      if public and arguments:
        found.append(f"{name} has no Args section")
      continue
    if sorted(listed) != sorted(arguments):
      found.append(f"{name} documents {listed}, takes {arguments}")
  return found


def test_the_docstring_check_can_fail():
  source = '''
def fine(a, *, b):
  """Says.

  Args:
    a: [B] f32, with text: and a colon
      that goes on: here.
    b: more.

  Returns:
    c: not an argument.
  """
def no_doc(a): pass
def no_args(a):
  """Says."""
def gone(a):
  """Says.

  Args:
    a: is.
    b: was.
  """
def missing(a, *rest, c=1, **more):
  """Says.

  Args:
    a: is.
    rest: are.

  More.
  """
def _private(a): pass
class K:
  def m(self, a):
    """Says.

    Args:
      z: was.
    """
'''
  assert complaints(source) == [
    "no_doc has no docstring",
    "no_args has no Args section",
    "gone documents ['a', 'b'], takes ['a']",
    "missing documents ['a', 'rest'], takes ['a', 'c', 'rest', 'more']",
    "K.m documents ['z'], takes ['a']",
  ]


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_docstrings_name_the_arguments(path):
  assert complaints(path.read_text()) == []


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_every_module_says_what_it_is(path):
  assert ast.get_docstring(ast.parse(path.read_text()))


def code_lines(node: FUNCTION) -> int:
  """Lines of a function without its docstring."""
  lines = node.end_lineno - node.lineno + 1
  first = node.body[0]
  if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
    lines -= first.end_lineno - first.lineno + 1
  return lines


@pytest.mark.parametrize("path", ALL_FILES, ids=name_of)
def test_files_and_functions_stay_readable(path):
  text = path.read_text()
  assert len(text.splitlines()) <= MAX_FILE_LINES
  long = {
    node.name: code_lines(node)
    for node in ast.walk(ast.parse(text))
    if isinstance(node, FUNCTION)
    and node.name != "get_config"  # A list of fields, read as one.
    and code_lines(node) > MAX_FUNCTION_LINES
  }
  assert long == {}


@pytest.mark.parametrize(
  "path", [p for p in LIBRARY if ">>>" in p.read_text()], ids=name_of
)
def test_examples_in_docstrings_run(path):
  module = importlib.import_module(module_of(path))
  result = doctest.testmod(
    module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
  )
  assert result.attempted > 0
  assert result.failed == 0


def test_the_method_has_examples():
  """Users import these: each module shows how."""
  for name in ("credit", "losses", "masked", "steps", "advantages"):
    assert ">>>" in (ROOT / "pure_jax" / f"{name}.py").read_text(), name


@pytest.fixture(scope="module")
def readme() -> str:
  return (ROOT / "README.md").read_text(encoding="utf-8")


def fences(text: str, language: str) -> list[str]:
  """Contents of the code blocks of a language."""
  return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_readme_has_the_test_command_that_ci_runs(readme):
  assert [b.strip() for b in fences(readme, "sh") if "pytest" in b] == [
    TEST_COMMAND
  ]
  done = subprocess.run(
    [ROOT / ".ci" / "run", "--show"],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == TEST_COMMAND


def test_the_readme_examples_run_in_order(readme, tmp_path):
  """All in one interpreter, as a reader would paste them."""
  blocks = fences(readme, "python")
  assert blocks
  done = subprocess.run(
    [sys.executable, "-c", "\n".join(blocks)],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  # The block below the example is what it prints.
  assert done.stdout.strip() == fences(readme, "text")[0].strip()


def test_the_readme_links_to_files_that_exist(readme):
  targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", readme)
  local = [t for t in targets if "://" not in t]
  assert [t for t in local if not (ROOT / t).exists()] == []


PAGES = sorted(
  [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "kernels").glob("*.md"),
  ]
)
PATH = re.compile(r"`([\w.-]+(?:/[\w.*-]+)*/?(?:\.(?:py|md|json|ipynb)|/))`")
DOTTED = re.compile(r"(?<!`)`((?:pure_jax\.)?\w+(?:\.\w+)+)`(?!`)")
# What runs and users write, which no checkout has.
WRITTEN_BY_RUNS = {
  *("metrics.jsonl", "samples.jsonl", "summary.json", "config.json"),
  *("alarms.jsonl", "rl/roll_backs.json"),
  *("report.json", "report.md", "tokenizer.json", "generation_config.json"),
  "done.json",
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_pages_exist(page):
  """Relative to the checkout, the library, the scripts, or the page."""
  scripts = ROOT / "experiments"
  folders = (ROOT, ROOT / "pure_jax", scripts, page.parent)
  folders += (scripts / "results" / "benchmark",)
  missing = [
    path
    for path in PATH.findall(page.read_text(encoding="utf-8"))
    if path not in WRITTEN_BY_RUNS
    and not any(any(folder.glob(path)) for folder in folders)
  ]
  assert missing == []


def defines(path: pathlib.Path, name: str) -> bool:
  """Whether a module defines or imports a name."""
  return re.search(rf"\b{name}\b", path.read_text()) is not None


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_names_in_docstrings_exist(path):
  """`training.score.make_score`, with the library's name or without."""
  wrong = []
  for name in DOTTED.findall(path.read_text()):
    parts = name.removeprefix("pure_jax.").split(".")
    folder = ROOT / "pure_jax"
    if parts[0] == "kernels":  # Installed as a part of the library.
      folder = ROOT
    while parts and (folder / parts[0]).is_dir():
      folder /= parts.pop(0)
    if folder == ROOT / "pure_jax" and not name.startswith("pure_jax."):
      continue  # An attribute, a flag, another library.
    module = folder / f"{parts[0]}.py" if parts else folder / "__init__.py"
    if not module.exists() or not all(defines(module, n) for n in parts[1:]):
      wrong.append(name)
  assert wrong == []
