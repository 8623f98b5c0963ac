"""Which answers are equal, and that no answer is executed."""

import subprocess
import sys

import pytest
from checkout import ROOT

from pure_jax.host.grading import equivalence, verify


@pytest.fixture(scope="module")
def pool():
  with verify.open_pool(workers=2, timeout_seconds=10.0) as pool:
    yield pool


# (answer, reference, equal?), by hand.
SAME = [
  # Numbers.
  ("5", "5.0", True),
  ("05", "5", True),
  ("+5", "5", True),
  ("-5", "5", False),
  ("\u22125", "-5", True),
  ("1,234", "1234", True),
  ("10{,}000", "10000", True),
  (r"10\,000", "10000", True),
  ("12,34", "1234", False),  # Two numbers, as a list has them.
  ("1,2,3", "123", False),
  ("0.5", r"\frac{1}{2}", True),
  (r"\dfrac12", "1/2", True),
  (r"\frac{-1}{2}", r"-\frac{1}{2}", True),
  (r"12\frac{3}{5}", r"\frac{63}{5}", True),
  (r"12\frac{3}{5}", r"\frac{36}{5}", False),  # Not a product.
  ("0.3333333", r"\frac13", True),  # Six places count.
  ("0.33", r"\frac13", False),
  ("3.14", r"\pi", False),
  ("4.4e7", "44000000", True),
  (r"5 \times 10^{3}", "5000", True),
  (r"\sqrt{12}", r"2\sqrt{3}", True),
  ("2^{10}", "1024", True),
  ("10^{100}+1", "10^{100}", False),  # The same as floats.
  ("9007199254740993", "9007199254740992", False),  # The same as floats.
  # Of small numbers, six decimals are no digits.
  (r"3\times 10^{-20}", r"1.6\times 10^{-19}", False),
  ("0.0000001", "0.0000002", False),
  ("1.88e-19", "2.88e-19", False),  # Minerva's 264, 265 and 267.
  ("2.325e-27", "1.325e-27", False),
  ("5.6e-24", "4.6e-24", False),
  ("-2.88e-19", "2.88e-19", False),
  (r"1.88 \times 10^{-19} \text{ J}", "2.88e-19", False),
  (r"E = 1.88 \times 10^{-19}", "2.88e-19", False),
  ("1e-400", "2e-400", False),  # Both are 0 as floats.
  ("0.0", "0.0000001", False),
  (r"\frac{1}{10^{20}}", "2e-20", False),
  (r"\frac{1}{10^{20}}", "1e-20", True),
  (r"2.88 \times 10^{-19} \text{ J}", "2.88e-19", True),
  (r"28.8 \cdot 10^{-20}", "2.88e-19", True),
  ("0.00000012", "1.2e-7", True),
  ("0.0003333333", "0.000333333333", True),  # One in a million, as of 3.333333.
  ("0.000333333", "0.000333333333", True),
  ("0.00033333", "0.000333333333", False),
  ("2.88e-19", r"0.288 \times 10^{-18}", True),
  (r"0.02\%", "0.0002", True),
  # Two decimals are equal if the shorter one, of six digits, rounds the other.
  ("0.0010004", "0.001", False),
  ("0.001001", "0.001", False),
  ("0.0500004", "0.05", False),
  ("0.05000004", "0.0500000", True),
  # Units and signs beside a number.
  (r"90^\circ", "90", True),
  (r"5\text{ cm}", "5", True),
  (r"\$5.00", "5", True),
  ("$5.00", "5", True),
  ("$5", "$6", False),
  (r"25\%", "25", True),
  (r"25\%", "0.25", True),
  (r"25\%", "0.5", False),
  # Tuples and intervals are ordered, sets are not.
  ("(1,2)", "(1, 2)", True),
  ("(2,1)", "(1,2)", False),
  ("(1,2,3)", "(3,2,1)", False),
  ("(2,1)", "(5,3)", False),  # Both would be the empty interval.
  ("3,2,1", "1,2,3", True),
  (r"\{2,1\}", r"\{1,2\}", True),
  ("$3$ and $5$", "3,5", True),
  ("$3$, or $5$ and $7$", "3,5,7", True),
  (r"\pm 2", "-2,2", True),
  # No choice of answers.
  ("$1$ $5$", "5", False),
  ("$1$ maybe $5$", "5", False),
  (",".join(f"${n}$" for n in range(9)), "8", False),
  ("1 or 5", "5", False),
  ("$5$ cm", "5", True),
  ("[0,1)", "[0,1]", False),
  (r"(-\infty,1)", "x<1", True),
  (r"(1,\infty)\cup(-\infty,0)", r"(-\infty,0)\cup(1,\infty)", True),
  (r"x \le 1", "x < 1", False),
  # Matrices.
  (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}",
   r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", True),
  (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
   r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", False),
  # Expressions.
  ("(x+1)(x-1)", "x^2-1", True),
  ("1+2x", "2x+1", True),
  ("2x-1", "2x+1", False),
  ("x=5", "5", True),
  ("y=5", "x=5", False),
  ("yx", "xy", True),
  # Words. As products of letters, evil is live.
  (r"\text{evil}", "live", False),
  ("Evil", r"\text{evil}", True),
  (r"\text{no solution}", "No solution.", True),
  (r"\text{even}", r"\text{odd}", False),
  (r"\text{(A)}", "A", True),
  (r"\textbf{(C)}", "B", False),
  ("five", "5", False),
  # Text that looks like something else.
  ("5\u00b2", "52", False),  # Compatibility forms would make it 52.
  ("5\u00b2", "25", True),
  ("nan", "5", False),
  (r"\frac10", r"\frac20", False),
  ("", "5", False),
  ("5", "", False),
  ("", "", False),
  ("$", "$", True),  # Equal texts, whatever they are.
]  # fmt: skip


def test_equal_and_different_answers(pool):
  """Compared in a worker, which forbids what `equivalent` must not need."""
  outcomes = pool.run([(answer, reference) for answer, reference, _ in SAME])
  assert [
    (answer, reference, outcome.value if not outcome.failure else outcome)
    for (answer, reference, _), outcome in zip(SAME, outcomes, strict=True)
  ] == SAME


def test_long_answers_are_compared_as_text():
  sum_of_ones = "+".join("1" * 600)
  assert len(sum_of_ones) > equivalence.MAX_ANSWER_CHARS
  assert not equivalence.equivalent(sum_of_ones, "600")
  assert equivalence.equivalent(sum_of_ones, f"${sum_of_ones}$")


def test_spellings_that_differ_in_meaning_stay_different():
  for one, other in [("1 2", "12"), ("1, 000", "1,000"), (r"\pi x", r"\pix"),
                     (r"\leftarrow", "arrow"), (r"1\\,2", "12"), ("x.", ".x"),
                     (r"\left.x", ".x"), ("$1$2$", "1$2")]:  # fmt: skip
    assert equivalence.normalize(one) != equivalence.normalize(other), one


# (answer, reference, tolerance, equal?), for several values or near a number.
SEVERAL = [
  ("84, 69", "69,84", None, True),
  (r"\{84,69\}", "69,84", None, True),
  ("69", "69,84", None, False),
  ("69,84,1", "69,84", None, False),
  ("8,221", "221,8", None, True),  # Two values, not eight thousand.
  ("100,200", "200,100", None, True),
  ("8221", "221,8", None, False),
  ("7{,}500 and 2{,}500", "2500,7500", None, True),
  ("(9,3), (6,3)", "(6,3),(9,3)", None, True),
  ("(3,9), (6,3)", "(6,3),(9,3)", None, False),  # Tuples stay ordered.
  ("f(x)=-x, f(x)=x", "f(x)=x,f(x)=-x", None, True),
]
NEAR = [
  ("4.2", "4.2", 0.1, True),
  ("4.1", "4.2", 0.1, True),  # As floats, 0.1000...05 apart.
  (r"4.3\%", "4.2", 0.1, True),
  ("4.31", "4.2", 0.1, False),
  ("-4.2", "4.2", 0.1, False),
  (r"\frac{21}{5}", "4.2", 0.1, True),  # No decimal: compared as ever.
  (r"\frac{41}{10}", "4.2", 0.1, False),
  ("4.1", "4.2", None, False),
]


def test_lists_have_no_order_and_tolerance_is_exact(pool):
  cases = [(*case[:2], True, *case[2:]) for case in SEVERAL]
  cases += [(*case[:2], False, *case[2:]) for case in NEAR]
  outcomes = pool.run([case[:4] for case in cases])
  assert [outcome.value for outcome in outcomes] == [c[4] for c in cases]


def test_a_comma_separates_values_only_if_there_are_several():
  assert equivalence.equivalent("8,221", "221,8", several=True)
  assert not equivalence.equivalent("8,221", "221,8")


def test_vote_keys_are_equal_for_equal_values():
  classes = [
    ["1,234", "1234", "1234.0", "$1234$.", "+1234"],
    ["0.5", ".50", "1/2", r"\frac{2}{4}", r"\dfrac{1}{2}"],
    ["-0.5", "\u22121/2", r"-\frac{1}{2}"],
    ["50", r"50\%", "50%"],
    ["x + 1", "x+1", "$x +1$"],
    ["1, 234", "1,  234"],  # A list.
    ["12"],
    ["1 2"],
    ["1/0"],
    [r"\pi x"],
    [r"\pix"],
    [""],
    ["\u0664"],  # A digit elsewhere.
    ["9" * 1001],
  ]
  keys = [{equivalence.vote_key(text) for text in row} for row in classes]
  assert [len(row) for row in keys] == [1] * len(classes), keys
  assert len(set.union(*keys)) == len(classes)


# What a worker must not do.
FORBIDDEN = """
eval("1 + 1")
exec("x = 1")
compile("1 + 1", "answer", "eval")
eval(compile(ast.Expression(ast.Constant(1)), "answer", "eval"))
sympy.sympify("x + 1")
sympy.parse_expr("__import__('os').getpid()")
sympy.lambdify([], sympy.Symbol("__import__('os').getpid()"))
open(file, "w")
open(file, "ab")
os.open(file, os.O_CREAT | os.O_WRONLY)
os.system(f"touch {file}")
os.mkdir(file)
os.remove(__file__)
os.fork()
subprocess.run(["touch", file])
socket.socket()
"""
ALLOWED = """
sympy.Rational("12.5")
sympy.Number("-3")
sympy.nsimplify(1.25)
sympy.expand(sympy.Symbol("x") ** 2 - 1).factor()
sympy.Poly(sympy.Symbol("x") * sympy.Symbol("y"))
importlib.import_module("sympy.physics.vector")
open(__file__)
"""


def test_a_prepared_worker_executes_nothing_and_writes_nothing(
  tmp_path,
):
  lines = [*FORBIDDEN.split("\n")[1:-1], *ALLOWED.split("\n")[1:-1]]
  calls = "".join(f"attempt(lambda: {line})\n" for line in lines)
  script = tmp_path / "script.py"
  script.write_text(f"""
import ast, importlib, os, socket, subprocess, sympy, sys, types
# As workers load it, without the package around it, which loads jax.
sys.modules["pure_jax"] = package = types.ModuleType("pure_jax")
package.__path__ = [{str(ROOT / "pure_jax")!r}]
from pure_jax.host.grading import equivalence
file = {str(tmp_path / "executed")!r}
equivalence.start_worker()
def attempt(act):
  try:
    act()
  except BaseException as error:
    print(type(error).__name__)
  else:
    print("done")
{calls}
assert "jax" not in sys.modules and "numpy" not in sys.modules
""")
  done = subprocess.run(
    [sys.executable, str(script)],
    capture_output=True,
    text=True,
    check=True,
  )
  results = dict(zip(lines, done.stdout.split(), strict=True))
  forbidden = [
    line for line, word in results.items() if word == "ForbiddenCallError"
  ]
  assert forbidden == FORBIDDEN.split("\n")[1:-1], results
  assert set(results.values()) == {"ForbiddenCallError", "done"}, results
  assert list(tmp_path.iterdir()) == [script]
