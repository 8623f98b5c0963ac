"""Which answers of a run may be used, the same in every epoch."""

import hashlib

from pure_jax.host.data.records import Problem
from pure_jax.runs.settings.rl import RLSettings


def may_reward(problem: Problem, rl: RLSettings) -> bool:
  """Whether outcome rewards may use a problem's answer.

  Args:
    problem: the problem.
    rl: which rewards there are, and `rl.answer_fraction`.
  """
  if rl.reward_mode == "prm":
    return False
  if rl.reward_mode == "vr":
    return problem.known_answer is not None
  return may_teach(problem, rl)


def may_teach(problem: Problem, rl: RLSettings) -> bool:
  """Whether the updates of an online PRM may use a problem's answer.

  Args:
    problem: the problem.
    rl: has `rl.answer_fraction`; None uses those that the source gives.
  """
  if rl.answer_fraction is None:
    return problem.has_answer
  text = problem.problem.encode()
  digest = hashlib.blake2b(text, digest_size=4, salt=b"answer").digest()
  is_chosen = int.from_bytes(digest, "little") < rl.answer_fraction * 2**32
  return problem.known_answer is not None and is_chosen
