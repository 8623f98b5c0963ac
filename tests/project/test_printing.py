"""Everything that is printed goes through `console`, which makes it visible."""

import ast

import pytest
from checkout import ROOT

CONSOLE = "pure_jax/host/logs/console.py"
# A process that ends while its main thread is blocked writes to descriptor 2.
MAY_USE_STREAMS = {CONSOLE, "pure_jax/host/distributed/processes.py"}
FILES = sorted(
  path.relative_to(ROOT).as_posix()
  for folder in ("pure_jax", "kernels", "experiments")
  for path in (ROOT / folder).rglob("*.py")
)
STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__", "displayhook"}
PRINTS = {
  *("print", "pprint.pprint", "warnings.warn", "tqdm.write"),
  *("traceback.print_exc", "traceback.print_exception", "click.echo"),
  *("traceback.print_tb", "traceback.print_stack", "logging.StreamHandler"),
}
EXITS = {"sys.exit", "SystemExit", "exit", "quit"}
NUMBERS = ast.Constant | ast.Name | ast.Attribute


def other_ways(source: str) -> list[str]:
  """The expressions of a file that print without `console`."""
  ways = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Attribute) and node.attr in STREAMS:
      ways += [ast.unparse(node)] * (ast.unparse(node.value) == "sys")
    elif isinstance(node, ast.Import | ast.ImportFrom):
      names = [alias.name for alias in node.names]
      module = getattr(node, "module", None)
      ways += [ast.unparse(node)] * ("tqdm" in (module, *names))
      ways += [ast.unparse(node)] * (module == "sys")
    elif isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      if name in PRINTS:
        ways.append(ast.unparse(node))
      elif name == "os.write" and ast.unparse(node.args[0]) in ("1", "2"):
        # A handler of a signal may write nothing but a text of its own.
        is_fixed = isinstance(node.args[1], ast.Constant)
        ways += [ast.unparse(node)] * (not is_fixed)
      elif name in EXITS and node.args:
        value = node.args[0]  # Python prints an exit status that is a text.
        is_text = isinstance(value, ast.Constant) and type(value.value) is str
        if is_text or not isinstance(value, NUMBERS):
          ways.append(ast.unparse(node))
      elif name.endswith("parser.error"):
        message = ast.unparse(node.args[0])
        is_fixed = isinstance(node.args[0], ast.Constant)
        if not is_fixed and not message.startswith("visible("):
          ways.append(ast.unparse(node))
  return ways


@pytest.mark.parametrize(
  "source",
  [
    "print('a')",
    "def f():\n  print(a, file=f)",
    "sys.stderr.write(a)",
    "sys.stdout.buffer.write(a)",
    "out = sys.__stdout__",
    "from sys import stderr",
    "import tqdm",
    "from tqdm import tqdm",
    "os.write(2, a)",
    "traceback.print_exc()",
    "warnings.warn(a)",
    "sys.exit('stopped')",
    "raise SystemExit(f'{a}')",
    "parser.error(f'{a}')",
  ],
)
def test_the_check_finds_a_print(source):
  assert other_ways(source)


@pytest.mark.parametrize(
  "source",
  [
    '"""print(a)"""',
    "console.tell(a)",
    "os.write(2, b'stopped')",
    "os.write(pipe, line)",
    "sys.exit(1)",
    "sys.exit(STATUS)",
    "raise SystemExit",
    "parser.error(visible(f'{a}'))",
    "parser.error('name a file')",
  ],
)
def test_the_check_allows_all_else(source):
  assert not other_ways(source)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_printed_in_another_way(name):
  if name not in MAY_USE_STREAMS:
    assert other_ways((ROOT / name).read_text()) == []


def test_programs_guard_their_terminal():
  """Else stack traces and log messages of a script were raw."""
  scripts = sorted((ROOT / "experiments").glob("*.py"))
  assert len(scripts) > 10
  for path in scripts:
    # The last of them: the first only imports `interrupts`.
    _, is_program, start = path.read_text().rpartition("if __name__ ==")
    if is_program:
      assert "cli.run(" in start or "interrupts.run(" in start, path
  for name in ("cli", "interrupts"):
    text = (ROOT / "experiments" / f"{name}.py").read_text()
    assert "console.guard_terminal()" in text
