"""The baseline "transformers": `generate` with torch, on a folder of weights.

Its environment is that of `transformers.txt`.
"""

import time
from typing import Any

import exchange
import torch
import transformers


class _Lengths(transformers.StoppingCriteria):
  """Ends each row after a given number of columns."""

  # Rows that have ended are padded only if a criterion has this attribute.
  eos_token_id = None

  def __init__(self, ends: torch.Tensor):
    self._ends = ends

  def __call__(
    self, input_ids: torch.Tensor, scores: Any, **kwargs: Any
  ) -> torch.Tensor:
    del scores, kwargs
    return input_ids.shape[1] >= self._ends


def generate_arguments(
  prompts: torch.Tensor,
  samples: int,
  new_tokens: int,
  pad_id: int,
  lengths: list[int] | None,
  greedy: bool = False,
) -> dict[str, Any]:
  """Makes the arguments of a model's `generate` but the prompts.

  Args:
    prompts: [P, L] without padding.
    samples: responses of each prompt.
    new_tokens: most tokens of a response.
    pad_id: id that is never sampled.
    lengths: tokens after which each of the P * samples rows ends, None for
      new_tokens each.
    greedy: True takes the likeliest token, False samples at temperature 1.

  Returns:
    The arguments by name.
  """
  criteria = []
  if lengths is not None:
    ends = torch.tensor(lengths, device=prompts.device) + prompts.shape[1]
    criteria = [_Lengths(ends)]
  # Without these values, the model's own would filter the ids.
  sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
  return dict(
    attention_mask=torch.ones_like(prompts),
    do_sample=not greedy,
    max_new_tokens=new_tokens,
    num_return_sequences=samples,
    pad_token_id=pad_id,
    stopping_criteria=transformers.StoppingCriteriaList(criteria),
    suppress_tokens=[pad_id],
    **({} if greedy else sampling),
  )


class Sampler:
  """A model and the prompts that it generates responses to."""

  def load(
    self, policy: str, dtype: str, device: str | None = None
  ) -> dict[str, Any]:
    """Reads a folder that transformers can load.

    Args:
      policy: the folder.
      dtype: of the weights and of products.
      device: torch's name of the device; None takes a GPU if torch sees one.

    Returns:
      The ``versions`` of the packages.
    """
    if device is None:
      device = "cuda" if torch.cuda.is_available() else "cpu"
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      policy, dtype=getattr(torch, dtype), local_files_only=True
    ).to(device)
    self._model.generation_config.eos_token_id = None
    return exchange.versions("torch", "transformers")

  def prepare(self, tokens: list[list[int]], **request: Any) -> dict[str, Any]:
    """Takes prompts [P, L] and arguments of `generate_arguments`."""
    self._prompts = torch.tensor(tokens, device=self._model.device)
    self._arguments = generate_arguments(self._prompts, **request)
    return {}

  def run(self) -> dict[str, Any]:
    """Generates once; returns the seconds and the number of new tokens."""
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.inference_mode():
      tokens = self._model.generate(self._prompts, **self._arguments).cpu()
    answer = exchange.timed(start)
    self._new = tokens[:, self._prompts.shape[1] :]
    count = int((self._new != self._arguments["pad_token_id"]).sum())
    return {**answer, "tokens": count}

  def answer(self) -> dict[str, Any]:
    """Returns the tokens of the last run, [B, C]."""
    return {"tokens": self._new.tolist()}


if __name__ == "__main__":
  exchange.serve(Sampler())
