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

  def load(self, folder: str, dtype: str) -> dict[str, Any]:
    """Reads a folder as transformers saves it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=getattr(torch, dtype), local_files_only=True
    ).to(device)
    return exchange.facts("torch", "transformers")

  def prepare(
    self,
    tokens: list[list[int]],
    samples: int,
    new_tokens: int,
    pad_id: int,
    lengths: list[int] | None,
    greedy: bool,
  ) -> dict[str, Any]:
    """Says what a run is.

    Args:
      tokens: [P, L] prompts without padding.
      samples: of each prompt.
      new_tokens: of a response at most.
      pad_id: id that is never sampled.
      lengths: tokens after which each of the P * samples rows ends, None for
        new_tokens each.
      greedy: True takes the likeliest token, False samples.
    """
    model = self._model
    self._prompts = torch.tensor(tokens, device=model.device)
    criteria = []
    if lengths is not None:
      criteria = [Lengths(self._prompts.shape[1], lengths)]
    model.generation_config.eos_token_id = None
    self._asked = dict(
      attention_mask=torch.ones_like(self._prompts),
      do_sample=not greedy,
      max_new_tokens=new_tokens,
      num_return_sequences=samples,
      pad_token_id=pad_id,
      stopping_criteria=transformers.StoppingCriteriaList(criteria),
      suppress_tokens=[pad_id],
      # Of all ids at temperature 1, as they are without these.
      **({} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}),
    )
    return {}

  def run(self) -> dict[str, Any]:
    """Generates once, and says how long that took and how many tokens."""
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.inference_mode():
      found = self._model.generate(self._prompts, **self._asked).cpu()
    seconds = time.perf_counter() - start
    self._new = found[:, self._prompts.shape[1] :]
    count = int((self._new != self._asked["pad_token_id"]).sum())
    return {"seconds": seconds, "tokens": count, **exchange.facts()}

  def answer(self) -> dict[str, Any]:
    """The tokens of the last run, [B, C]."""
    return {"tokens": self._new.tolist()}


if __name__ == "__main__":
  generator = Generator()
  exchange.serve(
    {
      "load": generator.load,
      "prepare": generator.prepare,
      "run": generator.run,
      "answer": generator.answer,
    }
  )
