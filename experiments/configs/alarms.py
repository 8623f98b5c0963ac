"""Alarms of RL (`rl.alarms`); docs/hacking.md says what they are for.

An alarm is "off", or one of these: "tell" writes a line to the console and to
alarms.jsonl, marks the curves and keeps two responses; "stop" also saves the
state and ends the run; "roll_back" also goes back to an older checkpoint.
pure_jax/host/evaluation/alarms.py has the rules.
"""

from ml_collections.config_dict import placeholder


def alarms() -> dict:
  """What each alarm does, the thresholds, and what rolling back changes."""
  return dict(
    divergence="tell",  # The PRM's outcome rises, and accuracy does not.
    short_responses="tell",  # Responses say ever less.
    few_steps="tell",  # Responses avoid the separator, or have no content.
    no_answers="tell",  # Responses do not answer.
    repetition="tell",  # Right responses are repetitive, or at the limit.
    entropy="tell",  # The policy does not explore.
    kl="tell",  # The policy runs away from the reference.
    thresholds=dict(
      window=5,  # Iterations that a mean is taken over.
      lag=10,  # Of divergence: iterations between the two means.
      outcome_rise=0.1,  # Of divergence: least rise of process_outcome.
      short=0.4,  # Of short_responses: largest share of the tokens at first.
      # Rises of a share: 1 is that from its first value to 1.
      few_steps_rise=0.5,  # Of few_steps: least rise.
      no_answer_rise=0.3,  # Of no_answers: least rise.
      repetition_rise=0.05,  # Of repetition: least rise.
      low_entropy=0.1,  # Of entropy: largest share of its value at first.
      high_kl=0.5,  # Of kl: largest KL without an alarm, nats per token.
    ),
    roll_back=dict(
      times=2,  # Most roll-backs of a run; later alarms only tell.
      # Goes back to the newest checkpoint at least this many iterations before
      # the alarm; rl.checkpoints_kept must reach that far.
      iterations=10,
      # What changes each time, and stays changed:
      learning_rate=0.5,  # Factor of rl.optim.learning_rate.
      kl_coef=1.0,  # Factor of the KL coefficient.
      # At least this share of prompts has answers that are used, also if none
      # were; unset leaves it.
      answer_fraction=placeholder(float),
      # Becomes prm.score.empty_step_reward; unset leaves it.
      empty_step_reward=placeholder(float),
    ),
  )
