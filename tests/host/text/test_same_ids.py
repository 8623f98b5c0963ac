r"""Whoever runs the PRM on a text, the same ids reach it.

Training, its held-out rows, PRM evaluation, RL and the scores of an evaluation
are run as the scripts run them, from files of one vocabulary that was written
down by hand: it merges "\n\n" with punctuation, as Qwen's does.
"""

import json

import cli
import evaluate_prm
import jax
import jax.numpy as jnp
import numpy as np
import prm_evaluations
import pytest
import tokenizers
import transformers
from configs import evaluate as evaluate_config
from configs import files as files_config
from small_models import initial_params
from test_contract import MERGING
from tokenizers import decoders, models, pre_tokenizers

from pure_jax.host.data.batches import right_pad
from pure_jax.models import policy, prm
from pure_jax.runs.evaluation import data, labelled_rows
from pure_jax.runs.evaluation.response_writer import ResponseWriter
from pure_jax.runs.settings import conversion
from pure_jax.runs.settings.evaluation import EvaluationSettings
from pure_jax.runs.tasks import tiny_files
from pure_jax.training import rollouts, score, stages, train
from pure_jax.training.optim import make_optimizer
from pure_jax.types import Rollout

# The ids, in order; Ċ is how byte-level vocabularies write a line break.
VOCABULARY = [
  *("<end>", "<pad>", "1", "2", "=", "+", ".", ")", "(", "x"),
  *("Ċ", "ĊĊ", ".ĊĊ", ")ĊĊ"),
]
MERGES = [("Ċ", "Ċ"), (".", "ĊĊ"), (")", "ĊĊ")]
CHAT = "({{ messages[-1].content }})"  # Not how a PRM is asked.

# problem -> steps, and whether the last is good.
TEXTS = {
  "1+1": (["1+1=2.", "x=2", "(x)", "2"], 1),
  "1+x": (["x=1.", "(2)"], 1),
  "x+2": (["x=2", "(2+2)", "x.", "1"], 0),
  "2+2": (["2", "2."], 0),
}
# What the PRM must read of each, and where it is scored. A merged id keeps its
# stem ("insert") or loses it ("replace"); EOS gives way to the score token 10.
INSERTED = {
  (2, 5, 2, 10, 2, 5, 2, 4, 3, 6, 10, 9, 4, 3, 10, 8, 9, 7, 10, 3, 10): (
    *(10, 14, 18, 20),
  ),
  (2, 5, 9, 10, 9, 4, 2, 6, 10, 8, 3, 7, 10): (8, 12),
  (9, 5, 3, 10, 9, 4, 3, 10, 8, 3, 5, 3, 7, 10, 9, 6, 10, 2, 10): (
    *(7, 13, 16, 18),
  ),
  (3, 5, 3, 10, 3, 10, 3, 6, 10): (5, 8),
}
REPLACED = {
  (2, 5, 2, 10, 2, 5, 2, 4, 3, 10, 9, 4, 3, 10, 8, 9, 10, 3, 10): (
    *(9, 13, 16, 18),
  ),
  (2, 5, 9, 10, 9, 4, 2, 10, 8, 3, 7, 10): (7, 11),
  (9, 5, 3, 10, 9, 4, 3, 10, 8, 3, 5, 3, 10, 9, 10, 2, 10): (7, 12, 14, 16),
  (3, 5, 3, 10, 3, 10, 3, 6, 10): (5, 8),
}


def save_tokenizer(folder):
  """The vocabulary above, over whatever tokenizer the folder has."""
  inner = tokenizers.Tokenizer(
    models.BPE({text: i for i, text in enumerate(VOCABULARY)}, MERGES)
  )
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(MERGING), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  inner.decoder = decoders.ByteLevel()
  whole = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token="<end>", pad_token="<pad>"
  )
  whole.chat_template = CHAT
  whole.save_pretrained(folder)


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
  save_tokenizer(places["policy"])
  save_tokenizer(places["prm"])
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
  """{ids: where they are scored} of every row that reached a PRM."""
  found = {}

  def record(tokens, mask, position, score_mask):
    for ids, kept, places, there in zip(
      tokens, mask, position, score_mask, strict=True
    ):
      before = np.cumsum(kept) - 1
      found[tuple(ids[kept].tolist())] = tuple(before[places[there]].tolist())

  def recording(params, model, inputs, act_sharding):
    jax.debug.callback(
      lambda *arrays: record(*map(np.asarray, arrays)),
      *(inputs.tokens, inputs.mask, inputs.score_position, inputs.score_mask),
    )
    # What it answers is not asked here.
    return jnp.zeros((*inputs.tokens.shape, 2))

  monkeypatch.setattr(prm, "prm_logits", recording)
  return found


def written(tokenizer, length):
  """What a policy writes: its ids and their mask, one row for each text."""
  ids = [
    [*tokenizer.encode("\n\n".join(steps)), tokenizer.eos_id]
    for steps, _ in TEXTS.values()
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


def take(seen):
  """What was recorded since, taken away."""
  jax.effects_barrier()
  found = dict(seen)
  seen.clear()
  return found


def by_training(space, seen):
  """PRM training, and the held-out rows it is labelled on."""
  labelled = space.task.labelled(space, None)
  declared = prm.declare_prm(space.prm_model)
  params = initial_params(declared)
  optimizer = make_optimizer(space.settings.prm.full_optim)
  step = stages.make_prm_step(
    space.prm_model,
    space.prm_score_config,
    optimizer,
    space.table,
    space.layout,
    False,
  )
  state = train.start_state(params, declared, optimizer, space.layout)
  batch = labelled_rows.crop(labelled.responses, 8)
  rows = space.put((batch, labelled.labels, labelled.label_mask))
  jax.block_until_ready(step(state, {}, *rows))
  trained = take(seen)
  params = initial_params(declared)
  space.task.evaluate_prm(space, None, params)
  return trained, take(seen)


def by_rl(space, seen):
  """RL, where the policy was asked in another way than the PRM is."""
  problems = list(space.task.train)
  prompts = space.encode_prompts(problems)
  tokens = written(space.task.tokenizer, 32)
  nothing = np.zeros(tokens[1].shape, np.float32)
  rollout = Rollout(
    *(prompts.tokens, prompts.mask, *tokens, nothing, nothing),
    np.zeros(len(TEXTS), bool),
  )
  scoring = score.make_score(
    space.model,
    space.prm_model,
    space.sampler,
    space.settings.prm.score,
    space.table,
    space.layout,
  )
  trunk = initial_params(policy.declare_policy(space.model))
  params = initial_params(prm.declare_prm(space.prm_model))
  asked = space.put(space.encode_prm_prompts(problems))
  jax.block_until_ready(scoring(trunk, trunk, params, rollout, asked))
  return take(seen)


def by_prm_evaluation(places, separator, workdir, seen):
  """evaluate_prm.py on the file that training read."""
  settings = prm_evaluations.smoke(
    random_model=None,
    prm=places["prm"],
    data=({"name": "a", "file": places["labelled"], "format": "stepwise"},),
    prompt_format="plain",
    score__separator=separator,
  )
  evaluate_prm.evaluate(settings, str(workdir))
  return take(seen)


def by_evaluation(places, separator, space, monkeypatch, seen):
  """evaluate.py, with a policy that writes the texts."""
  config = evaluate_config.get_config("smoke").to_dict()
  config |= {
    "random_model": False,
    "policy": places["policy"],
    "prm": places["prm"],
    "prompt_format": "chat",
    "prm_prompt_format": "plain",
    "samples": 0,
    "k": (),
    "batch_rows": len(TEXTS),
  }
  config["score"]["separator"] = separator
  config["benchmarks"]["math500"]["file"] = places["problems"]
  settings = conversion.settings_from_config(config, EvaluationSettings)
  tokenizer = space.task.tokenizer

  def make_writing(model, sampler, layout, **unused):
    def write(params, prompts, keys):
      tokens = written(tokenizer, sampler.max_new_tokens)
      nothing = jnp.zeros(tokens[1].shape)
      rows = (prompts.tokens, prompts.mask, *tokens, nothing, nothing)
      return space.put(Rollout(*rows, np.zeros(len(TEXTS), bool)))

    return write

  monkeypatch.setattr(rollouts, "make_generate_rows", make_writing)
  questions = data.ask(settings, tokenizer, space.workdir)
  writer = ResponseWriter(settings, tokenizer, space.layout)
  jax.block_until_ready(writer.start(questions.units, len(TEXTS)).step_rewards)
  return take(seen)


@pytest.mark.parametrize(
  ("separator", "expected"), [("insert", INSERTED), ("replace", REPLACED)]
)
def test_every_caller_of_the_prm_gives_it_the_same_ids(
  places, separator, expected, seen, tmp_path, monkeypatch
):
  settings = run_settings(places, separator)
  with cli.open_workspace(settings, str(tmp_path / "run"), None) as space:
    trained, held_out = by_training(space, seen)
    assert trained and held_out and trained | held_out == expected
    assert by_rl(space, seen) == expected
    assert by_evaluation(places, separator, space, monkeypatch, seen) == (
      expected
    )
  workdir = tmp_path / "judge"
  assert by_prm_evaluation(places, separator, workdir, seen) == expected
