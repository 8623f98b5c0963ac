"""The peer "transformers": `generate` with torch, on a folder of weights.

Its environment is that of `transformers.txt`.
"""

import time
from typing import Any

import exchange
import torch
import transformers


class Lengths(transformers.StoppingCriteria):
  """Ends each row after a given number of new tokens."""

  # Rows that have ended are padded only if a criterion has this attribute.
  eos_token_id = None

  def __init__(self, prompt_tokens: int, lengths: list[int]):
    """Says how many.

    Args:
      prompt_tokens: columns before the first new token.
      lengths: new tokens of each row.
    """
    self._ends = torch.tensor(lengths) + prompt_tokens

  def __call__(
    self, input_ids: torch.Tensor, scores: Any, **kwargs: Any
  ) -> torch.Tensor:
    """Which rows have as many."""
    del scores, kwargs
    self._ends = self._ends.to(input_ids.device)
    return input_ids.shape[1] >= self._ends


class Generator:
  """A model, prompts, and what is asked of them."""

  def load(self, policy: str, dtype: str) -> dict[str, Any]:
    """Reads a folder as transformers saves it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      policy, dtype=getattr(torch, dtype), local_files_only=True
    ).to(device)
    return exchange.facts("torch", "transformers")

  def prepare(self, **fields: Any) -> dict[str, Any]:
    """Says what a run is, by the fields of `exchange.Asked`."""
    asked, model = exchange.Asked(**fields), self._model
    self._prompts = torch.tensor(asked.tokens, device=model.device)
    criteria = []
    if asked.lengths is not None:
      criteria = [Lengths(self._prompts.shape[1], asked.lengths)]
    model.generation_config.eos_token_id = None
    self._asked = dict(
      attention_mask=torch.ones_like(self._prompts),
      do_sample=not asked.greedy,
      max_new_tokens=asked.new_tokens,
      num_return_sequences=asked.samples,
      pad_token_id=asked.pad_id,
      stopping_criteria=transformers.StoppingCriteriaList(criteria),
      suppress_tokens=[asked.pad_id],
      # Of all ids, as they are without these.
      **(
        {} if asked.greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
      ),
    )
    return {}

  def run(self) -> dict[str, Any]:
    """Generates once, and says how long that took and how many tokens."""
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.inference_mode():
      found = self._model.generate(self._prompts, **self._asked).cpu()
    answer = exchange.timed(start)
    self._new = found[:, self._prompts.shape[1] :]
    count = int((self._new != self._asked["pad_token_id"]).sum())
    return {**answer, "tokens": count}

  def answer(self) -> dict[str, Any]:
    """The tokens of the last run, [B, C]."""
    return {"tokens": self._new.tolist()}


if __name__ == "__main__":
  exchange.serve(Generator())
