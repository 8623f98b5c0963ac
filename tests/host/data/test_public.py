"""The files of the hub: every format reads the fields that they have.

The rows are written by hand, with the fields and types that docs/public_data.md
lists.
"""

import json

import pyarrow
import pytest
from checkout import ROOT

from pure_jax.host.data.formats.named import FORMATS, find_format
from pure_jax.host.data.formats.public import PUBLIC, PublicData
from pure_jax.host.huggingface.hub_names import DATA_FILES, parse_data

STEPS = ["2 + 3 = 5.", "So it is 6."]
ROWS = {
  "gsm8k": {"question": "2 + 3?", "answer": "2+3=<<2+3=5>>5\n#### 5"},
  "math8k": {
    "prompt": [{"content": "<|im_start|>system ...", "role": "user"}],
    "answer": "5",
    "gt_answer": "5",
    "subject": "Algebra",
    "level": 3,
    "question": "2 + 3?",
    "ability": "math",
    "reward_model": {"ground_truth": "5", "style": "rule"},
    "extra_info": {"answer": "5", "index": 0, "question": "2 + 3?"},
  },
  "math500": {
    "problem": "2 + 3?",
    "solution": "It is $\\boxed{5}$.",
    "answer": "5",
    "subject": "Algebra",
    "level": 1,
    "unique_id": "test/algebra/1.json",
  },
  "minerva_math": {"question": "2 + 3?", "answer": "5"},
  "olympiadbench": {
    "id": 1,
    "question": "2 + 3?",
    "solution": ["It is 5."],
    "final_answer": ["$5$"],
    "context": None,
    "image_1": None,
    "modality": "Text-only",
    "difficulty": "Competition",
    "is_multiple_answer": False,
    "unit": None,
    "answer_type": "Numerical",
    "error": None,
    "question_type": "Open-ended",
    "subfield": "Algebra",
    "subject": "Math",
    "language": "English",
  },
  "aime24": {
    "id": 60,
    "problem": "2 + 3?",
    "solution": "It is 5.",
    "answer": "005",
    "url": "https://example.org",
    "year": "2024",
  },
  "amc23": {"id": 0, "question": "2 + 3?", "answer": "5", "url": "https://a.b"},
  "stepwise": {
    "prompt": "2 + 3?",
    "completions": STEPS,
    "labels": [True, False],
  },
  "math_shepherd": {
    "input": "2 + 3? Step 1: 2 + 3 = 5. ки\nStep 2: So it is 6. ки",
    "label": "2 + 3? Step 1: 2 + 3 = 5. +\nStep 2: So it is 6. -",
    "task": "GSM8K",
  },
  "processbench": {
    "id": "gsm8k-0",
    "generator": "a model",
    "problem": "2 + 3?",
    "steps": STEPS,
    "final_answer_correct": False,
    "label": 1,
  },
  "prm800k": {
    "labeler": "a",
    "timestamp": "2023-01-01T00:00:00",
    "generation": 1,
    "is_quality_control_question": False,
    "is_initial_screening_question": False,
    "question": {"problem": "2 + 3?", "ground_truth_answer": "5"},
    "label": {
      "finish_reason": "found_error",
      "total_time": 1,
      "steps": [
        {
          "completions": [{"text": text, "rating": rating, "flagged": False}],
          "human_completion": None,
          "chosen_completion": 0 if rating == 1 else None,
        }
        for text, rating in zip(STEPS, (1, -1), strict=True)
      ],
    },
  },
}


def file_of(public):
  """The file to evaluate on, if there is one, else the one to train on."""
  return public.files()[-1]


def test_every_format_has_an_id_or_a_reason():
  assert {*PUBLIC} == {*ROWS}
  on_github_alone = {
    *("gsm8k_steps", "gsm8k_departures", "gsm8k_departures_and_answers"),
  }
  assert {*FORMATS} - {*PUBLIC} == on_github_alone


@pytest.mark.parametrize("name", PUBLIC)
def test_a_format_reads_the_file_of_the_hub(name):
  row = ROWS[name]
  if file_of(PUBLIC[name]).endswith(".parquet"):
    # Its columns have one type each.
    (row,) = pyarrow.Table.from_pylist([row]).to_pylist()
  (record,) = find_format(name).parse(json.loads(json.dumps(row)), 0)
  assert record.problem == "2 + 3?"
  if name in ("stepwise", "math_shepherd", "processbench", "prm800k"):
    assert record.labels == (1, 0)
    prefixes = ("Step 1: ", "Step 2: ") if name == "math_shepherd" else ("", "")
    assert record.steps == tuple(
      map("".join, zip(prefixes, STEPS, strict=True))
    )
  else:
    assert record.answer == "5"


def test_answers_of_the_math_prompts_that_the_hub_lacks_are_none():
  for missing in ("", None):
    row = ROWS["math8k"] | {"gt_answer": missing, "level": 5}
    (record,) = find_format("math8k").parse(row, 7)
    assert record.answer is None and record.withheld_answer is None
    assert (record.level, record.id) == (5, "math8k/7")


@pytest.mark.parametrize(
  ("changes", "answer"),
  [({"answer": "27.0"}, "27"), ({"answer": 0.5}, "0.5"), ({"id": "3"}, "5")],
)
def test_numbers_of_amc_may_be_texts(changes, answer):
  (record,) = find_format("amc23").parse(ROWS["amc23"] | changes, 0)
  assert record.answer == answer
  assert record.id == f"amc23/{changes.get('id', 0)}"


@pytest.mark.parametrize("field", ["id", "answer"])
def test_a_text_that_is_no_number_is_a_fault_of_amc(field):
  with pytest.raises(ValueError, match=f"field '{field}' is 'B', not a number"):
    find_format("amc23").parse(ROWS["amc23"] | {field: "B"}, 0)


@pytest.mark.parametrize("public", PUBLIC.values(), ids=PUBLIC)
def test_ids_and_files_have_the_form_of_names_on_the_hub(public):
  assert parse_data(public.repo_id).repo_id == public.repo_id
  for file in public.files():
    assert file.endswith(DATA_FILES)
    assert parse_data(f"{public.repo_id}/{file}").path == file


def test_an_id_alone_is_the_file_of_its_use():
  """A test set is not trained on because a config names only its data set."""
  both = PublicData("a/b", train="t.json", held_out="h.json")
  assert both.file(for_training=True) == "t.json"
  assert both.file(for_training=False) == "h.json"
  assert both.files() == ("t.json", "h.json")
  assert PublicData("a/b", held_out="h.json").file(for_training=True) is None
  assert PublicData("a/b", train="t.json").file(for_training=False) is None
  parts = PublicData("a/b", parts=("c.json", "d.json"))
  assert parts.file(for_training=True) is None
  assert parts.file(for_training=False) is None
  assert parts.files() == ("c.json", "d.json")


def test_the_page_lists_every_id_and_file():
  page = (ROOT / "docs" / "public_data.md").read_text()
  for name, public in PUBLIC.items():
    link = f"https://huggingface.co/datasets/{public.repo_id}"
    assert f"| `{name}` | [{public.repo_id}]({link}) |" in page
    assert all(file in page for file in public.files())
