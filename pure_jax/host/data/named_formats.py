"""Every format of files by its name, as configs and command lines say it."""

from pure_jax.host.data import (
  gsm8k_steps,
  prm800k,
  problem_formats,
  step_formats,
)
from pure_jax.host.data.formats import Format

FORMATS: dict[str, Format] = {
  found.name: found
  for found in (
    problem_formats.GSM8K,
    problem_formats.MATH8K,
    problem_formats.MATH500,
    problem_formats.MINERVA_MATH,
    problem_formats.OLYMPIADBENCH,
    problem_formats.AIME24,
    problem_formats.AMC23,
    step_formats.STEPWISE,
    step_formats.MATH_SHEPHERD,
    step_formats.PROCESSBENCH,
    prm800k.make_format(),
    gsm8k_steps.make_format(),
  )
}
# The same file with bolder labels, see `gsm8k_steps.make_format`.
FORMATS["gsm8k_departures"] = gsm8k_steps.make_format(departures=True)
