"""The baseline "transformers": `generate` with torch, on a folder of weights.

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
    """Sets the columns before the first new token, and the tokens of rows."""
    self._ends = torch.tensor(lengths) + prompt_tokens

  def __call__(
    self, input_ids: torch.Tensor, scores: Any, **kwargs: Any
  ) -> torch.Tensor:
    """Returns which rows have ended."""
    del scores, kwargs
    self._ends = self._ends.to(input_ids.device)
    return input_ids.shape[1] >= self._ends


def generate_arguments(
  prompts: torch.Tensor, request: exchange.GenerationRequest
) -> dict[str, Any]:
  """Returns the arguments of a model's `generate` but the prompts [P, L]."""
  criteria = []
  if request.lengths is not None:
    criteria = [Lengths(prompts.shape[1], request.lengths)]
  # Without these values, the model's own would filter the ids.
  sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
  return dict(
    attention_mask=torch.ones_like(prompts),
    do_sample=not request.greedy,
    max_new_tokens=request.new_tokens,
    num_return_sequences=request.samples,
    pad_token_id=request.pad_id,
    stopping_criteria=transformers.StoppingCriteriaList(criteria),
    suppress_tokens=[request.pad_id],
    **({} if request.greedy else sampling),
  )


class Sampler:
  """A model and the prompts that it generates responses to."""

  def load(self, policy: str, dtype: str) -> dict[str, Any]:
    """Reads a folder that transformers can load."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      policy, dtype=getattr(torch, dtype), local_files_only=True
    ).to(device)
    self._model.generation_config.eos_token_id = None
    return exchange.versions("torch", "transformers")

  def prepare(self, **request: Any) -> dict[str, Any]:
    """Takes the fields of an `exchange.GenerationRequest`."""
    self._request = exchange.GenerationRequest(**request)
    self._prompts = torch.tensor(
      self._request.tokens, device=self._model.device
    )
    self._arguments = generate_arguments(self._prompts, self._request)
    return {}

  def run(self) -> dict[str, Any]:
    """Generates once; returns the seconds and the number of new tokens."""
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.inference_mode():
      tokens = self._model.generate(self._prompts, **self._arguments).cpu()
    answer = exchange.timed(start)
    self._new = tokens[:, self._prompts.shape[1] :]
    count = int((self._new != self._request.pad_id).sum())
    return {**answer, "tokens": count}

  def answer(self) -> dict[str, Any]:
    """Returns the tokens of the last run, [B, C]."""
    return {"tokens": self._new.tolist()}


if __name__ == "__main__":
  exchange.serve(Sampler())
