"""Untrusted chat templates: a fault or an exceeded limit is one sentence."""

import resource
import time
from unittest import mock

import pytest
from small_tokenizers import MERGING, TEMPLATE, save_trained

from pure_jax.host.text import chat_template
from pure_jax.host.text.huggingface_tokenizer import HuggingFaceTokenizer
from pure_jax.host.text.prompt_formats import PROMPT_FORMATS
from pure_jax.host.text.tokenization import TokenizerError

CHAT = [{"role": "user", "content": "1+1?"}]
ROWS = "{% for a in range(99999) %}"
END = "{% endfor %}"
MEMORY = "it needed more than 128 MiB of memory"
TIME = "it took more than 2 s"
EXPENSIVE = {
  "doubling": (
    "{% set n = namespace(x='x') %}{% for i in range(40) %}"
    "{% set n.x = n.x + n.x %}" + END,
    MEMORY,
  ),
  "time": (ROWS * 3 + "{% if a == -1 %}x{% endif %}" + END * 3, TIME),
  "output": ("{{ 'x' * 2000000 }}", "it writes 2,000,000 characters, 1,048,"),
}
# Each costs a new process: one for each way to ask for much at once.
MORE_EXPENSIVE = {
  "format": ("{{ '%999999999d' % 1 }}", MEMORY),
  "format method": ("{{ '{:>999999999}'.format(1) }}", MEMORY),
  "product": ("{{ 'x' * 10**10 }}", MEMORY),
  "list": ("{{ [1] * 10**10 }}", MEMORY),
  "list of rows": ("{{ range(99999) | list * 99999 }}", MEMORY),
  "text": (ROWS * 2 + "xxxxxxxx" + END * 2, f"{MEMORY}|{TIME}"),
  "center": ("{{ 'x' | center(10**9) }}", MEMORY),
  "indent": ("{{ 'x\nx' | indent(10**9) }}", MEMORY),
  "replace": ("{{ ('x' * 10**6) | replace('x', 'x' * 10**6) }}", MEMORY),
  "json": ("{{ [[1]] | tojson(indent=10**9) }}", MEMORY),
  "power": ("{{ 10**(10**10) }}", TIME),
  "recursion": (
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}",
    "maximum recursion depth",
  ),
  "nesting": ("{{ " + "(" * 100_000 + " }}", "."),
  "reason": ("{{ raise_exception('x' * 10**7) }}", "x{500}$"),
}


@pytest.fixture(scope="module", autouse=True)
def short_time():
  """A worker of its own for this file, with two seconds in place of ten."""
  with mock.patch.object(chat_template, "SECONDS", 2.0):
    chat_template._worker.cache_clear()
    yield
    chat_template._worker.cache_clear()


def check_limits(template, reason):
  """A template ends in one sentence, and the next one is rendered."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  start = time.monotonic()
  with pytest.raises(chat_template.ChatTemplateError, match=reason) as error:
    chat_template.render(template, CHAT, {})
  assert len(str(error.value)) < 600
  assert time.monotonic() - start < 30
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown < 50_000  # KiB, of this process.
  assert chat_template.render(TEMPLATE, CHAT, {}) == "<user>1+1?<assistant>"


@pytest.mark.parametrize("name", EXPENSIVE)
def test_an_expensive_template_costs_a_sentence(name):
  check_limits(*EXPENSIVE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_EXPENSIVE)
def test_no_way_to_be_expensive_is_left(name):
  check_limits(*MORE_EXPENSIVE[name])


def test_the_message_names_the_folder_and_what_happened(tmp_path):
  template = EXPENSIVE["output"][0]
  tokenizer = HuggingFaceTokenizer(save_trained(tmp_path, MERGING, template))
  with pytest.raises(
    TokenizerError,
    match=rf"template of {tmp_path} cannot write .* of system, user: it writes",
  ):
    PROMPT_FORMATS["qwen_boxed"].text(tokenizer, "1+1?")


def test_a_conversation_is_that_of_transformers(tmp_path):
  """With the tokens that a template knows by name, and all its extensions."""
  template = (
    "{{ bos_token }}{%- for m in messages if m.role != 'tool' %}\n"
    "{% if loop.index > 5 %}{% break %}{% endif %}"
    "{{ m | tojson }}{% generation %}{{ m.content | trim }}{% endgeneration %}"
    "{%- endfor %}{{ eos_token }}{{ tools is none }}"
    "{{ strftime_now('%Y') }}{% if add_generation_prompt %}:{% endif %}"
  )
  folder = save_trained(tmp_path, MERGING, template, bos_token="<user>")
  tokenizer = HuggingFaceTokenizer(folder)
  messages = [
    {"role": "system", "content": "é\u2028\n"},
    {"role": "user", "content": ' "<b>" 1+1? '},
  ]
  expected = tokenizer._inner.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )
  assert "<user>" in expected and "é" in expected and '"<b>" 1+1?' in expected
  assert tokenizer.apply_chat_template(messages) == expected


@pytest.mark.slow
def test_a_problem_as_long_as_a_row_may_be_is_rendered(monkeypatch):
  """It is left out afterwards, for its length: no reason to end a run."""
  monkeypatch.setattr(chat_template, "SECONDS", 10.0)
  chat_template._worker.cache_clear()
  chat = [{"role": "user", "content": "x" * (16 << 20)}]
  text = chat_template.render(TEMPLATE, chat, {})
  assert text == f"<user>{chat[0]['content']}<assistant>"
  chat_template._worker.cache_clear()


def test_several_templates_need_a_default(tmp_path):
  folder = save_trained(tmp_path, MERGING, {"default": TEMPLATE, "rag": "x"})
  text = HuggingFaceTokenizer(folder).apply_chat_template(CHAT)
  assert text == "<user>1+1?<assistant>"
  other = save_trained(tmp_path / "other", MERGING, {"rag": "x", "tool": "y"})
  with pytest.raises(TokenizerError, match="no default specified"):
    HuggingFaceTokenizer(other).apply_chat_template(CHAT)


def test_an_interrupt_leaves_a_worker_for_the_next_text(monkeypatch):
  """Ctrl-C in a notebook closes the pool that it interrupts."""

  def interrupted(*unused):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(chat_template.WorkerPool, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
      chat_template.render(TEMPLATE, CHAT, {})
  assert chat_template.render(TEMPLATE, CHAT, {}) == "<user>1+1?<assistant>"
