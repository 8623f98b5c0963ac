r"""All callers of a PRM give it the same ids for the same text.

The callers are PRM training, its evaluation on held-out rows, RL, evaluate.py
and evaluate_prm.py. They run as the scripts run them, on a vocabulary written
by hand that merges "\n\n" with punctuation, as Qwen's does.
"""

import json

import evaluate_prm
import jax
import jax.numpy as jnp
import numpy as np
import optax
import prm_evaluations
import pytest
from configs import evaluate as evaluate_config
from configs import files as files_config
from small_tokenizers import save_vocabulary

from pure_jax.host.data.batches import right_pad
from pure_jax.host.evaluation import report
from pure_jax.models import params as weights
from pure_jax.models import policy, prm
from pure_jax.runs.evaluation import generation, labelled_solutions
from pure_jax.runs.evaluation.generation import ResponseGenerator
from pure_jax.runs.evaluation.requests import make_requests
from pure_jax.runs.rl.responses import put_prm_texts
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.runs.tasks import tiny_files
from pure_jax.training import score, supervised, train
from pure_jax.types import Rollout

# The texts of the ids, in order. Byte-level vocabularies write a line break as
# Ċ.
VOCABULARY = [
  *("<end>", "<pad>", "1", "2", "=", "+", ".", ")", "(", "x"),
  *("Ċ", "ĊĊ", ".ĊĊ", ")ĊĊ", ")."),
  *("ĊĊĊĊ", ".ĊĊĊĊ", ")ĊĊĊĊ"),
]
# The last merge makes ")." one id, except before a separator.
MERGES = [
  *[("Ċ", "Ċ"), ("ĊĊ", "ĊĊ"), (".", "ĊĊĊĊ"), (")", "ĊĊĊĊ")],
  *[(".", "ĊĊ"), (")", "ĊĊ"), (")", ".")],
]
CHAT = "({{ messages[-1].content }})"  # The PRM's prompt must not use it.

# Problem -> (steps, whether the last step is good).
TEXTS = {
  "1+1": (["1+1=2.", "x=2", "(x)", "2"], 1),
  "1+x": (["x=1.", "(2)"], 1),
  "x+2": (["x=2", "(2+2)", "(x).", "1"], 0),
  "2+2": (["2", "2."], 0),
}
# The ids that the PRM must read -> positions of its scores. A merged id is
# replaced by its stem and the score token 10 ("insert"), or by the score token
# ("replace"). EOS is replaced by the score token. If each step is encoded by
# itself ("each"), ")." is one id, 14.
INSERTED = {
  (2, 5, 2, 10, 2, 5, 2, 4, 3, 6, 10, 9, 4, 3, 10, 8, 9, 7, 10, 3, 10): (
    *(10, 14, 18, 20),
  ),
  (2, 5, 9, 10, 9, 4, 2, 6, 10, 8, 3, 7, 10): (8, 12),
  (9, 5, 3, 10, 9, 4, 3, 10, 8, 3, 5, 3, 7, 10, 8, 9, 7, 6, 10, 2, 10): (
    *(7, 13, 18, 20),
  ),
  (3, 5, 3, 10, 3, 10, 3, 6, 10): (5, 8),
}
REPLACED = {
  (2, 5, 2, 10, 2, 5, 2, 4, 3, 10, 9, 4, 3, 10, 8, 9, 10, 3, 10): (
    *(9, 13, 16, 18),
  ),
  (2, 5, 9, 10, 9, 4, 2, 10, 8, 3, 7, 10): (7, 11),
  (9, 5, 3, 10, 9, 4, 3, 10, 8, 3, 5, 3, 10, 8, 9, 7, 10, 2, 10): (
    *(7, 12, 16, 18),
  ),
  (3, 5, 3, 10, 3, 10, 3, 6, 10): (5, 8),
}
EACH = {
  ids: positions for ids, positions in INSERTED.items() if ids[0] != 9
} | {
  (9, 5, 3, 10, 9, 4, 3, 10, 8, 3, 5, 3, 7, 10, 8, 9, 14, 10, 2, 10): (
    *(7, 13, 17, 19),
  ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """Folders of policy and PRM, files of problems and of labelled solutions."""
  root = tmp_path_factory.mktemp("same")
  places = {
    "policy": tiny_files.write_policy(root / "policy", tied=True),
    "prm": tiny_files.write_prm(root / "prm", tied=True),
    "problems": root / "problems.jsonl",
    "labelled": root / "labelled.jsonl",
  }
  for name in ("policy", "prm"):
    save_vocabulary(places[name], VOCABULARY, MERGES, CHAT)
  problems = [
    {
      "unique_id": problem,
      "problem": problem,
      "solution": "2",
      "answer": "2",
      "level": 1,
      "subject": "Prealgebra",
    }
    for problem in TEXTS
  ]
  labelled = [
    {"prompt": problem, "completions": steps, "labels": labels}
    for problem, (steps, good) in TEXTS.items()
    for labels in [[True] * (len(steps) - 1) + [bool(good)]]
  ]
  for name, rows in (("problems", problems), ("labelled", labelled)):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    places[name].write_text(text)
  return {name: str(path) for name, path in places.items()}


@pytest.fixture
def seen(monkeypatch):
  """Records {ids: positions of the scores} for every row that a PRM reads."""
  rows = {}

  def record(tokens, mask, position, score_mask):
    for ids, is_token, score_at, has_score in zip(
      tokens, mask, position, score_mask, strict=True
    ):
      index = np.cumsum(is_token) - 1  # Position without padding.
      scores = index[score_at[has_score]]
      rows[tuple(ids[is_token].tolist())] = tuple(scores.tolist())

  def recording(params, model, inputs, act_sharding):
    jax.debug.callback(
      lambda *arrays: record(*map(np.asarray, arrays)),
      *(inputs.tokens, inputs.mask, inputs.score_position, inputs.score_mask),
    )
    # The scores do not matter.
    return jnp.zeros((*inputs.tokens.shape, 2))

  def no_logp(params, model, sampler, rollout, act_sharding):
    return (jnp.zeros(rollout.tokens.shape),) * 2

  monkeypatch.setattr(prm, "prm_logits", recording)
  monkeypatch.setattr(score, "rollout_logp", no_logp)
  monkeypatch.setattr(report, "plot_tables", lambda *unused: [])
  return rows


def written(tokenizer, length):
  """(ids, mask) of the responses that a policy writes, one row per text.

  A policy may write more blank lines than the texts that PRMs are trained on.
  """
  ids = [
    [*tokenizer.encode(separator.join(steps)), tokenizer.eos_id]
    for (steps, _), separator in zip(
      TEXTS.values(), ("\n\n\n\n", "\n\n") * 2, strict=True
    )
  ]
  return right_pad(ids, length, tokenizer.pad_id)


def run_settings(places, separator):
  config = files_config.get_config()
  named = {"train": "problems", "held_out": "problems", "labelled": "labelled"}
  config.files.update({k: places[v] for k, v in named.items()})
  config.files.update(
    policy=places["policy"],
    labelled_format="stepwise",
    train_format="math500",
    labelled_one_in=2,
    prompt_format="chat",
    prm_prompt_format="plain",
    prompt_tokens=8,
    prm_prompt_tokens=8,
    response_tokens=32,
    model={"compute_dtype": "float32"},
  )
  config.prm.update(batch_size=4, length_multiple=8)
  config.rl.sampler.max_new_tokens = 32
  config.prm.score.update(max_steps=6, separator=separator)
  return conversion.settings_from_config(config)


def initial_params(declared):
  """Zeros: neither scores nor log-probs matter here."""
  return jax.tree.map(
    lambda weight: jnp.zeros(weight.shape, weight.dtype),
    declared,
    is_leaf=weights.is_weight,
  )


def take(seen):
  """Returns what was recorded so far, and clears the record."""
  jax.effects_barrier()
  rows = dict(seen)
  seen.clear()
  return rows


def by_training(run, seen):
  """(rows of PRM training, rows of its evaluation)."""
  labelled = run.task.labelled(run.spec, run.batches, None)
  declared = prm.declare_prm(run.spec.prm_model)
  params = initial_params(declared)
  optimizer = optax.sgd(0.1)
  step = supervised.make_prm_step(
    run.spec.prm_model,
    run.spec.prm_score_config,
    optimizer,
    run.spec.table,
    run.spec.layouts.training,
    False,
  )
  state = train.start_state(
    params, declared, optimizer, run.spec.layouts.training
  )
  batch = labelled_solutions.crop(labelled.responses, 8)
  rows = run.batches.put((batch, labelled.labels, labelled.label_mask))
  jax.block_until_ready(step(state, {}, *rows))
  trained = take(seen)
  params = initial_params(declared)
  run.task.evaluate_prm(run.spec, run.batches, None, params)
  return trained, take(seen)


def by_rl(run, seen):
  """Rows of RL, where the policy has another prompt than the PRM."""
  problems = list(run.task.train)
  prompts = run.batches.encode_prompts(problems)
  tokens = written(run.task.tokenizer, 32)
  nothing = np.zeros(tokens[1].shape, np.float32)
  rollout = Rollout(
    *(prompts.tokens, prompts.mask, *tokens, nothing, nothing),
    np.zeros(len(TEXTS), bool),
  )
  scoring = score.make_score(run.spec.step)
  trunk = initial_params(policy.declare_policy(run.spec.model))
  params = initial_params(prm.declare_prm(run.spec.prm_model))
  rollout = run.batches.put(rollout)
  prm_texts = put_prm_texts(run, problems, rollout)
  jax.block_until_ready(scoring(trunk, trunk, params, rollout, prm_texts))
  return take(seen)


def by_prm_evaluation(places, separator, workdir, seen):
  """Rows of evaluate_prm.py on the file that training read."""
  settings = prm_evaluations.smoke(
    random_model=None,
    prm=places["prm"],
    data=({"name": "a", "file": places["labelled"], "format": "stepwise"},),
    prompt_format="plain",
    score__separator=separator,
  )
  evaluate_prm.evaluate(settings, str(workdir))
  return take(seen)


def by_evaluation(places, separator, run, monkeypatch, seen):
  """Rows of evaluate.py, with a policy that writes the texts."""
  config = evaluate_config.get_config("smoke").to_dict()
  config |= {
    "random_model": False,
    "policy": places["policy"],
    "prm": places["prm"],
    "prompt_format": "chat",
    "prm_prompt_format": "plain",
    "samples": 0,
    "batch_rows": len(TEXTS),
  }
  config["score"]["separator"] = separator
  config["benchmarks"]["math500"]["file"] = places["problems"]
  settings = conversion.settings_from_config(config, EvaluationSettings)
  tokenizer = run.task.tokenizer

  def make_writing(settings, model, sampler, *unused):
    def write(params, prompts, keys, on_progress):
      tokens = written(tokenizer, sampler.max_new_tokens)
      nothing = jnp.zeros(tokens[1].shape)
      rows = (prompts.tokens, prompts.mask, *tokens, nothing, nothing)
      return run.batches.put(Rollout(*rows, np.zeros(len(TEXTS), bool)))

    return write

  monkeypatch.setattr(generation, "make_generate", make_writing)
  requests = make_requests(settings, tokenizer, run.folder.path).requests
  generator = ResponseGenerator(settings, tokenizer, run.spec.layouts.training)
  jax.block_until_ready(generator.start(requests, len(TEXTS)).step_rewards)
  return take(seen)


@pytest.mark.parametrize(
  ("separator", "expected"),
  [("insert", INSERTED), ("replace", REPLACED), ("each", EACH)],
)
def test_every_caller_of_the_prm_gives_it_the_same_ids(
  places, separator, expected, seen, tmp_path, monkeypatch
):
  settings = run_settings(places, separator)
  with open_run(settings, str(tmp_path / "run"), None) as run:
    trained, held_out = by_training(run, seen)
    assert trained and held_out and trained | held_out == expected
    assert by_rl(run, seen) == expected
    assert by_evaluation(places, separator, run, monkeypatch, seen) == (
      expected
    )
  workdir = tmp_path / "judge"
  assert by_prm_evaluation(places, separator, workdir, seen) == expected
