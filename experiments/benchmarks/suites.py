"""Suites by name: each compiles its arms for a case.

What is measured is what a run calls: the makers of `pure_jax.training`, on
weights drawn at random in the case's shape or read from a folder.
"""

from collections.abc import Callable

from benchmarks.cases import Case
from benchmarks.credit import credit
from benchmarks.gradients import train_prm, update
from benchmarks.iteration import iteration
from benchmarks.kernels import kernels
from benchmarks.precision import precision
from benchmarks.programs import Compiled, Options
from benchmarks.rollouts import rollout
from benchmarks.scoring import score

# What their cases differ in is in `cases.SUITES`: a suite has a place in both.
SUITES: dict[str, Callable[[Case, Options], dict[str, Compiled]]] = {
  "rollout": rollout,
  "score": score,
  "update": update,
  "credit": credit,
  "prm": train_prm,
  "iteration": iteration,
  "kernels": kernels,
  "precision": precision,
}
