r"""Prompts have the ids that transformers gives them, BOS included.

Three tokenizers: one adds nothing, as Qwen's; one puts BOS before a text, as
Llama 3's; one also puts EOS behind it. Only the first token of a prompt is
affected: a response continues its prompt.
"""

import dataclasses
import json
import shutil
import types

import jax.numpy as jnp
import pytest
import transformers
from configs import files as files_config
from policy_evaluations import on_files
from small_tokenizers import (
  MERGING,
  STEPS,
  TEMPLATE,
  put_around_texts,
  save_trained,
)

from pure_jax.host.data.batches import right_pad
from pure_jax.host.data.records import LabelledSolution
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS, PromptFormat
from pure_jax.host.text.tokenization import encode_response
from pure_jax.runs.evaluation import labelled_solutions, requests
from pure_jax.runs.evaluation.labelled_solutions import SolutionLimits
from pure_jax.runs.rl.responses import put_prm_texts
from pure_jax.runs.run import open_run
from pure_jax.runs.settings import conversion
from pure_jax.runs.tasks import tiny_files

PROBLEM = "How many?"
BOS, END = "<user>", "<end>"
TEMPLATES = {"nothing": None, "bos": f"{BOS} $A", "both": f"{BOS} $A {END}"}


@pytest.fixture(scope="module", params=TEMPLATES)
def folder(request, tmp_path_factory):
  """A folder of each kind, whose chat template writes no BOS."""
  folder = save_trained(
    tmp_path_factory.mktemp(request.param), MERGING, TEMPLATE
  )
  template = TEMPLATES[request.param]
  return folder if template is None else put_around_texts(folder, template)


def of_transformers(folder, text):
  """`tokenizer(text)["input_ids"]`, without the END of the third kind."""
  whole = transformers.AutoTokenizer.from_pretrained(folder)
  ids = whole(text)["input_ids"]
  end = whole.convert_tokens_to_ids(END)
  return ids[:-1] if ids[-1] == end else ids


def test_the_prompt_of_pure_to_the_letter():
  prompt = PROMPT_FORMATS["pure"].text(None, "1+1?")
  assert prompt == (
    '1+1?\n\nPlease reason step by step with steps separated by "\n\n", and '
    "put your final answer within \\boxed{}."
  )


def test_pure_applies_no_chat_template(folder):
  tokenizer = HuggingFaceTokenizer(folder)
  text = PROMPT_FORMATS["pure"].text(tokenizer, PROBLEM)
  assert text.startswith(f"{PROBLEM}\n\nPlease")
  chat = [{"role": "user", "content": PROBLEM}]
  assert tokenizer.apply_chat_template(chat) == f"<user>{PROBLEM}<assistant>"


@pytest.mark.parametrize("name", ["raw", "plain", "pure"])
def test_prompts_without_chat_have_the_ids_of_transformers(folder, name):
  """The last token of a prompt is never END, after which nothing follows."""
  tokenizer = HuggingFaceTokenizer(folder)
  prompt_format = PROMPT_FORMATS[name]
  ids = prompt_format.ids(tokenizer, PROBLEM)
  assert ids == of_transformers(folder, prompt_format.text(tokenizer, PROBLEM))
  begins = "nothing" not in str(folder)
  assert (ids[0] == tokenizer.encode(BOS)[0]) == begins
  assert tokenizer.encode_prompt("") == ids[:begins]


@pytest.mark.parametrize("begins", [True, False])
def test_a_chat_has_as_many_bos_as_its_template_writes(
  folder, tmp_path, begins
):
  """Llama 3's template writes BOS, which `tokenizer(text)` would double."""
  whole = transformers.AutoTokenizer.from_pretrained(folder)
  bos = BOS if begins else ""
  whole.chat_template = bos + "({{ messages[-1].content }})"
  whole.save_pretrained(tmp_path)
  tokenizer = HuggingFaceTokenizer(tmp_path)
  chat = PromptFormat(chat=True, prefix="1.")
  expected = whole.apply_chat_template(
    [{"role": "user", "content": PROBLEM}],
    add_generation_prompt=True,
    return_dict=False,
  )
  ids = chat.ids(tokenizer, PROBLEM)
  assert ids == expected + tokenizer.encode("1.")
  assert ids.count(tokenizer.encode(BOS)[0]) == begins


def test_a_response_has_no_bos(folder):
  tokenizer = HuggingFaceTokenizer(folder)
  bos = tokenizer.encode(BOS)[0]
  response = encode_response(tokenizer, STEPS, finished=True)
  assert bos not in response and response.count(tokenizer.eos_id) == 1
  assert response[:-1] == tokenizer.encode("\n\n".join(STEPS))


# ===== Every caller =====


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """Models and problems whose tokenizer puts a token before a text."""
  folder = tmp_path_factory.mktemp("tiny")
  tiny_files.write_problems(folder / "problems")
  for name, write in (
    ("policy", tiny_files.write_policy),
    ("prm", tiny_files.write_prm),
  ):
    put_around_texts(write(folder / name, tied=True), "<|im_start|> $A")
  return folder


def test_prompts_of_rl_have_the_ids_of_transformers(tiny, tmp_path):
  config = files_config.get_config()
  problems = tiny / "problems"
  config.files.update(
    policy=str(tiny / "policy"),
    prm=str(tiny / "prm"),
    train=str(problems / "train.jsonl"),
    held_out=str(problems / "held_out.jsonl"),
    prompt_format="pure",
    prm_prompt_format="pure",
  )
  config.rl.eval_prompts = 4
  settings = conversion.settings_from_config(config)
  with open_run(settings, str(tmp_path / "run")) as run:
    chosen = run.task.train[:2]
    for prompts in (
      run.batches.encode_prompts(chosen),
      run.batches.put_prm_prompts(chosen),
    ):
      for problem, row, mask in zip(
        chosen, prompts.tokens, prompts.mask, strict=True
      ):
        text = PROMPT_FORMATS["pure"].text(None, problem.problem)
        ids = of_transformers(tiny / "policy", text)
        assert ids[0] == run.task.tokenizer.encode("<|im_start|>")[0]
        assert row[mask].tolist() == ids


def test_prompts_of_an_evaluation_have_the_ids_of_transformers(tiny, tmp_path):
  settings = on_files(
    tiny,
    prm=str(tiny / "prm"),
    prompt_format="pure",
    prm_prompt_format="raw",
    prompt_tokens=400,
  )
  tokenizer = HuggingFaceTokenizer(tiny / "policy", vocab_size=512)
  made = requests.make_requests(settings, tokenizer, tmp_path).requests
  assert len(made) > 6
  for request in made:
    problem = request.problem.problem
    text = PROMPT_FORMATS["pure"].text(None, problem)
    assert request.prompt == of_transformers(tiny / "policy", text)
    assert request.prm_prompt == of_transformers(tiny / "policy", problem)


@pytest.fixture
def own_beginning(tiny, tmp_path):
  """A PRM of the policy's vocabulary with no end token and another BOS."""
  folder = tmp_path / "own"
  shutil.copytree(tiny / "prm", folder)
  put_around_texts(folder, "<|endoftext|> $A")
  path = folder / "tokenizer_config.json"
  fields = json.loads(path.read_text())
  del fields["eos_token"]
  path.write_text(json.dumps(fields | {"bos_token": "<|im_start|>"}))
  (folder / "special_tokens_map.json").unlink(missing_ok=True)
  return folder


def test_the_prompts_of_a_prm_have_the_ids_of_its_own_folder(
  tiny, own_beginning, tmp_path
):
  """In RL, in evaluate.py, and so as evaluate_prm.py encodes them."""
  config = files_config.get_config()
  problems, end = tiny / "problems", "<|im_end|>"
  config.files.update(
    policy=str(tiny / "policy"),
    prm=str(own_beginning),
    train=str(problems / "train.jsonl"),
    held_out=str(problems / "held_out.jsonl"),
    eos_token=end,
  )
  config.rl.eval_prompts = 4
  config.prm.score.separator = "each"
  settings = conversion.settings_from_config(config)
  with open_run(settings, str(tmp_path / "run")) as run:
    rl = run.batches.prm_prompt_encoder.ids(run.task.train[0])
    assert run.batches.prompt_encoder.tokenizer is run.task.tokenizer
    expected = of_transformers(own_beginning, run.task.train[0].problem)
    assert rl == expected
    assert expected != of_transformers(
      tiny / "policy", run.task.train[0].problem
    )
    tokenizer = run.task.tokenizer
    # TRL writes bos_token before the prompt: here it is not the first token.
    ids, mask = right_pad([tokenizer.encode("1")], 4, tokenizer.pad_id)
    rollout = types.SimpleNamespace(
      tokens=jnp.asarray(ids), completion_mask=jnp.asarray(mask)
    )
    read = put_prm_texts(run, run.task.train[:1], rollout)
    start = tokenizer.encode("<|im_start|>")
    assert read.tokens[0, : 1 + len(rl)].tolist() == start + expected
  settings = on_files(tiny, prm=str(own_beginning), eos_token=end)
  made = requests.make_requests(settings, tokenizer, tmp_path).requests
  for request in made:
    problem = request.problem.problem
    assert request.prm_prompt == of_transformers(own_beginning, problem)


def test_labelled_solutions_begin_as_transformers_begins_them(folder):
  """The PRM is trained and evaluated on these; BOS counts as a token."""
  tokenizer = HuggingFaceTokenizer(folder)
  row = LabelledSolution("id", "test", PROBLEM, STEPS, (1,) * len(STEPS))
  expected = of_transformers(folder, PROBLEM)
  limits = SolutionLimits(len(expected), response_tokens=96, max_steps=8)
  encoded = labelled_solutions.encode_solutions(
    tokenizer, PROMPT_FORMATS["raw"], [row], limits, "insert"
  )
  assert [text.prompt for text in encoded.texts] == [expected]
  shorter = dataclasses.replace(limits, prompt_tokens=len(expected) - 1)
  encoded = labelled_solutions.encode_solutions(
    tokenizer, PROMPT_FORMATS["raw"], [row], shorter, "insert"
  )
  assert encoded.left_out == {0: "problem too long"}
