"""Writes the model card of a run's model as Markdown with YAML in front."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pure_jax.host.logs.visible import markdown
from pure_jax.runs.model_card.facts import Evaluation, Facts

CARD_FILE = "README.md"
_PAPER = "https://arxiv.org/abs/2504.15275"
_KINDS = {
  "policy": ("text-generation", ["reinforcement-learning"]),
  "prm": ("token-classification", ["process-reward-model"]),
}
_REWARDS = {
  "prm": "process rewards",
  "prm+vr": "process and outcome rewards",
  "vr": "outcome rewards",
}


def write_card(
  facts: Facts, name: str, architecture: str, *, on_hub: bool
) -> str:
  """Writes a card.

  Args:
    facts: what the run says about the model.
    name: id of the model on the Hugging Face hub, or name of its folder.
    architecture: class of transformers, such as Qwen2ForCausalLM.
    on_hub: whether `name` is an id on the hub.
  """
  sections = [
    f"---\n{_front_matter(facts)}\n---",
    f"# {markdown(name)}",
    _description(facts, architecture),
    "## Base model and data",
    _table(
      ("", "name", "commit"),
      [(s.role, s.name, s.commit or "not from the hub") for s in facts.sources],
    ),
    "No licence is set. The licences of the base model and the data apply.",
    "## Training",
    _table(("field of the config", "value"), facts.settings.items()),
    "## Evaluation",
    _evaluation(facts),
    "## How to load it",
    _loading(facts, name, on_hub),
    "## Versions",
    _table(("", "version"), facts.versions.items()),
  ]
  return "\n\n".join(sections) + "\n"


def _front_matter(facts: Facts) -> str:
  """The YAML that the hub reads; ids of the hub alone are names there."""
  # Imported late: only exports need it.
  import huggingface_hub

  task, tags = _KINDS[facts.model]
  # To the hub these are what the model was trained on.
  datasets = [s.repo for s in facts.sources if s.is_training_data and s.repo]
  data = huggingface_hub.ModelCardData(
    # The first source is the base model; a PRM, for example, is none.
    base_model=facts.sources[0].repo,
    datasets=list(dict.fromkeys(datasets)) or None,
    library_name="transformers",
    license="unknown",
    pipeline_tag=task,
    tags=["pure_jax", *tags, "arxiv:2504.15275"],
  )
  return data.to_yaml()


def _description(facts: Facts, architecture: str) -> str:
  """What the model is."""
  program = f"pure_jax, which implements [PURE]({_PAPER})"
  base = markdown(facts.sources[0].name)
  if facts.model == "prm":
    return (
      f"A process reward model (`{architecture}`), trained from {base} with "
      f"{program}. `separator` below says which token ends a step. There label "
      "1 (`good`) has the probability that the step is good; above 1/2 the "
      "step counts as good."
    )
  rolled_back = ""
  if facts.roll_backs:
    rolled_back = (
      f" Alarms rolled the run back {facts.roll_backs} times; after that it "
      "went on with other settings than those below."
    )
  return (
    f"A policy (`{architecture}`) after iteration {facts.iteration} of "
    f"reinforcement learning on {_REWARDS[facts.rewards]}, trained from {base} "
    f"with {program}.{rolled_back}"
  )


def _evaluation(facts: Facts) -> str:
  """The metrics of the run."""
  evaluation = facts.evaluation
  if evaluation is None:
    return "The log of the run has no evaluation of this model."
  if facts.model == "prm":
    about = (
      f"On held-out solutions, after update {evaluation.step} of the last "
      "stage."
    )
  else:
    about = (
      f"After iteration {evaluation.step}, by the run itself, on at most "
      f"{facts.held_out} held-out problems; benchmarks have their own. "
      "`accuracy` is that of samples, `greedy_accuracy` and the benchmarks are "
      "greedy."
    )
  return f"{about}\n\n{_metrics(evaluation)}"


def _metrics(evaluation: Evaluation) -> str:
  """The table of an evaluation."""
  if not evaluation.first:
    return _table(
      ("metric", "value"),
      [(k, _number(v)) for k, v in evaluation.metrics.items()],
    )
  return _table(
    ("metric", "before training", "this model"),
    [
      (k, _number(evaluation.first.get(k)), _number(v))
      for k, v in evaluation.metrics.items()
    ],
  )


def _loading(facts: Facts, name: str, on_hub: bool) -> str:
  """Code that loads the model with transformers and with pure_jax."""
  prm = facts.model == "prm"
  kind = "TokenClassification" if prm else "CausalLM"
  script, field = ("evaluate_prm", "prm") if prm else ("evaluate", "policy")
  quoted = json.dumps(name, ensure_ascii=False)
  path = f"huggingface_hub.snapshot_download({quoted})" if on_hub else quoted
  imports = "import huggingface_hub\n" if on_hub else ""
  return f"""```python
import transformers

model = transformers.AutoModelFor{kind}.from_pretrained({quoted})
tokenizer = transformers.AutoTokenizer.from_pretrained({quoted})
```

With pure_jax:

```python
{imports}from pure_jax.host import huggingface
from pure_jax.parallel import sharding

folder = {path}
params, config = huggingface.load_{field}(folder, sharding.make_layout())
```

`experiments/{script}.py` of pure_jax evaluates it (`--config.{field}`)."""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table of Markdown."""
  lines = [head, ["---"] * len(head)]
  lines += [[markdown(_shown(cell)) for cell in row] for row in rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
  """A value of the config as a text."""
  return value if isinstance(value, str) and value else json.dumps(value)


def _number(value: float | None) -> str:
  """A metric with four digits."""
  return "–" if value is None else f"{value:.4g}"
