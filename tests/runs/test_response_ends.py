"""All end ids of a folder end a response, as in transformers' `generate`.

The tokenizer names one id, generation_config.json two; the second is the
padding token as well, as in Qwen2.5-Instruct.
"""

import json

import evaluate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import files as files_config
from policy_evaluations import responses, smoke
from small_tokenizers import save_vocabulary

from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.parallel import sharding
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.training import rollouts

torch_models = pytest.importorskip("torch_models")
torch, transformers = torch_models.torch, torch_models.transformers

# All rows of the embedding have a token, so that nothing is banned.
VOCABULARY = ("<|endoftext|>", "<end>", *"12=+.()x", "Ċ", "ĊĊ")
MERGES = [("Ċ", "Ċ")]
PAD, END = 0, 1
NEW_TOKENS, PROBLEMS = 12, 16
SEED = 8  # Of a model that ends some responses in either way.


def save_model(folder, seed=None, eos_ids=(END, PAD)):
  """Saves a policy and its tokenizer; without a seed, all weights are 0."""
  model = torch_models.make_model(
    "qwen2 untied", seed=seed or 0, vocab_size=len(VOCABULARY)
  )
  with torch.no_grad():
    for weight in model.parameters():
      weight.mul_(0 if seed is None else 3)
  model.generation_config.eos_token_id = list(eos_ids)
  model.generation_config.pad_token_id = PAD
  model.save_pretrained(folder)
  save_vocabulary(folder, VOCABULARY, MERGES, None, pad_token="<|endoftext|>")
  return folder


def write_problems(path):
  """Problems that the vocabulary can write."""
  rng = np.random.default_rng(0)
  rows = [
    {
      "unique_id": str(number),
      "problem": "".join(rng.choice(list("12=+()x"), rng.integers(1, 9))),
      "solution": "1",
      "answer": "1",
      "level": 1,
      "subject": "Prealgebra",
    }
    for number in range(PROBLEMS)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def by_transformers(folder):
  """Greedy tokens of each problem, up to and with the first end id."""
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  rows = []
  for line in (folder.parent / "problems.jsonl").read_text().splitlines():
    ids = tokenizer(json.loads(line)["problem"], return_tensors="pt")
    whole = model.generate(
      ids["input_ids"], do_sample=False, max_new_tokens=NEW_TOKENS
    )
    rows.append(whole[0, ids["input_ids"].shape[1] :].tolist())
  return rows


def evaluate_greedily(folder, workdir, slots):
  """The responses of evaluate.py to the problems."""
  settings = smoke(
    random_model=False,
    policy=str(folder),
    benchmarks__math500__file=str(folder.parent / "problems.jsonl"),
    prompt_format="raw",
    samples=0,
    k=(),
    sampler__max_new_tokens=NEW_TOKENS,
    engine__slots=slots,
    engine__sync_interval=7,
  )
  evaluate.evaluate(settings, str(workdir))
  return responses(workdir)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(evaluate, "report", lambda *unused: None)
  write_problems(tmp_path / "problems.jsonl")
  return tmp_path / "policy"


@pytest.mark.slow
def test_equal_logits_give_one_token(folder, tmp_path):
  """Banned as padding, id 0 would be left out, and nothing would end.

  The responses of random models, some of which end with it, show it as well.
  """
  save_model(folder)
  assert by_transformers(folder) == [[PAD]] * PROBLEMS
  for response in evaluate_greedily(folder, tmp_path / "out", None):
    assert (response["tokens"], response["truncated"]) == (1, False)
    assert response["text"] == ""


@pytest.mark.parametrize(
  "slots", [None, pytest.param(8, marks=pytest.mark.slow)]
)
def test_responses_of_random_models_are_those_of_transformers(
  folder, tmp_path, slots
):
  save_model(folder, seed=SEED)
  tokenizer = HuggingFaceTokenizer(folder)
  made = evaluate_greedily(folder, tmp_path / "out", slots)
  ends = {PAD: 0, END: 0, None: 0}
  for ids, response in zip(by_transformers(folder), made, strict=True):
    end = ids[-1] if ids[-1] in (PAD, END) else None
    assert response["text"] == tokenizer.decode(ids)
    assert response["tokens"] == len(ids)
    assert response["truncated"] == (end is None)
    ends[end] += 1
  assert min(ends.values()) > 1, ends


def test_rollouts_of_rl_end_at_every_end_id(folder, tmp_path):
  """Padding is the same id as an end: only masks tell them apart.

  In the engine truncated rows wait, as padding, for the others of their chunk.
  """
  save_model(folder, SEED)
  config = files_config.get_config()
  problems = str(folder.parent / "problems.jsonl")
  config.files.update(
    policy=str(folder),
    train=problems,
    held_out=problems,
    train_format="math500",
    prompt_format="raw",
  )
  config.rl.credit.process_coef = 0.0
  config.rl.credit.verifiable_coef = 1.0
  config.rl.sampler.max_new_tokens = NEW_TOKENS
  config.rl.eval_prompts = 16
  config.rl.engine.update({"slots": 8, "sync_interval": 7})
  settings = conversion.settings_from_config(config)
  with open_run(settings, str(tmp_path / "run")) as run:
    sampler, layout = run.spec.sampler, sharding.make_layout()
    assert run.spec.table.eos_ids.tolist() == [END, PAD]
    prompts = run.batches.encode_prompts(run.task.train)
    engine = rollouts.make_engine(
      run.spec.model, sampler, 4, layout, settings.rl.engine.config()
    )
    rollout = jax.device_get(
      engine.generate(
        run.task.start_policy(layout),
        jax.tree.map(jnp.asarray, prompts),
        jax.random.key(0),
      )
    )
  lengths, last = rollout.completion_mask.sum(1), {}
  for row, length in enumerate(lengths):
    tokens = rollout.tokens[row]
    assert not np.isin(tokens[: length - 1], (PAD, END)).any()
    assert (tokens[length:] == PAD).all()
    ended = bool(np.isin(tokens[length - 1], (PAD, END)))
    assert rollout.truncated[row] == (not ended)
    assert ended or length == NEW_TOKENS
    last[int(tokens[length - 1])] = last.get(int(tokens[length - 1]), 0) + 1
  assert min(last[PAD], last[END], rollout.truncated.sum()) > 2
