"""The peer "trl" in a whole iteration of RL.

transformers' `generate`, log-probs of the policy and of a reference, the
scores of a PRM, the advantages of `torch_credit.py`, and a step of TRL's
GRPOTrainer with them. Its environment is that of `trl.txt`.
"""

import tempfile
import time
from typing import Any

import exchange
import online
import torch
import torch_credit
import training
import transformers
from transformers_generate import Lengths
from trl.trainer.utils import add_fused_lm_head


class Iteration:
  """Three models, prompts, and what is asked of them."""

  def load(self, policy: str, prm: str, dtype: str) -> dict[str, Any]:
    """Reads folders as transformers saves them; products are of `dtype`."""
    self._dtype = dtype
    self._device = "cuda" if torch.cuda.is_available() else "cpu"
    language = transformers.AutoModelForCausalLM
    classifier = transformers.AutoModelForTokenClassification
    self._policy, self._reference, self._judge = (
      kind.from_pretrained(
        folder, dtype=getattr(torch, stored), local_files_only=True
      ).to(self._device)
      for kind, folder, stored in (
        (language, policy, "float32"),
        (language, policy, dtype),
        (classifier, prm, dtype),
      )
    )
    # As GRPOTrainer does with its own.
    add_fused_lm_head(self._reference)
    self._policy.generation_config.eos_token_id = None
    return exchange.facts("torch", "transformers", "trl")

  def prepare(
    self,
    tokens: list[list[int]],
    samples: int,
    new_tokens: int,
    lengths: list[int],
    correct: list[float],
    credit_temperature: float,
    ids: dict[str, int],
    max_steps: int,
    parts: int,
    remat: bool,
    optimizer: dict[str, float],
  ) -> dict[str, Any]:
    """Says what an iteration is.

    Args:
      tokens: [P, L] prompts without padding.
      samples: of each prompt.
      new_tokens: C, of a response at most.
      lengths: [B] tokens after which each of the P * samples rows ends.
      correct: [B] verdicts, 1 or 0.
      credit_temperature: of softmin.
      ids: "pad", "eos", "separator" and "score".
      max_steps: steps of a response; the rest is merged into the last.
      parts: micro-batches, of scores as of the update.
      remat: whether layers are computed again for the backward pass.
      optimizer: fields of TrainingArguments.
    """
    self._prompts = torch.tensor(tokens, device=self._device)
    self._samples, self._lengths = samples, torch.tensor(lengths)
    self._correct, self._temperature = torch.tensor(correct), credit_temperature
    self._ids, self._max_steps, self._parts = ids, max_steps, parts
    self._folder = tempfile.TemporaryDirectory()  # Gone with the process.
    self._trainer = online.make_trainer(
      "grpo",
      self._policy,
      self._folder.name,
      self._dtype,
      *(len(lengths), samples, new_tokens, parts),
      *(ids["pad"], remat, optimizer),
    )
    self._asked = dict(
      attention_mask=torch.ones_like(self._prompts),
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      max_new_tokens=new_tokens,
      num_return_sequences=samples,
      pad_token_id=ids["pad"],
      stopping_criteria=transformers.StoppingCriteriaList(
        [Lengths(self._prompts.shape[1], lengths)]
      ),
      suppress_tokens=[ids["pad"]],
    )
    return {}

  def run(self) -> dict[str, Any]:
    """Iterates once, and says how long that took and how many tokens."""
    torch.manual_seed(0)
    start = time.perf_counter()
    self._policy.eval()
    with torch.inference_mode(), self._trainer.accelerator.autocast():
      found = self._policy.generate(self._prompts, **self._asked)
    self._policy.train()
    # A tensor of inference mode could not be kept for a backward pass.
    completions = found[:, self._prompts.shape[1] :].clone()
    self._learn(completions, self._lengths)
    count = int((completions != self._ids["pad"]).sum())
    return {**exchange.timed(start), "tokens": count}

  def given(self, completions: list[list[int]]) -> dict[str, Any]:
    """What an iteration makes of responses, [B, C] without padding."""
    rows = torch.tensor(completions, device=self._device)
    lengths = torch.full((len(rows),), rows.shape[1])
    found = self._learn(rows, lengths)
    return {
      name: x.tolist() if isinstance(x, torch.Tensor) else x
      for name, x in found.items()
    }

  def _learn(
    self, completions: torch.Tensor, lengths: torch.Tensor
  ) -> dict[str, Any]:
    """Scores, advantages and the step."""
    prompts = self._prompts.repeat_interleave(self._samples, dim=0)
    columns = torch.arange(completions.shape[1])
    mask = (columns < lengths[:, None]).long().to(self._device)
    cuts = [
      self._cut(row[:length])
      for row, length in zip(
        completions.tolist(), lengths.tolist(), strict=True
      )
    ]
    with torch.no_grad():
      old, reference = (
        self._logp(model, prompts, completions, mask)
        for model in (self._policy, self._reference)
      )
      rewards = self._labelled(prompts.tolist(), completions.tolist(), cuts)
    counts = torch.tensor([len(ends) for ends in cuts])
    index = torch.zeros(completions.shape, dtype=torch.long)
    for row, ends in enumerate(cuts):
      first = 0
      for step, end in enumerate(ends):
        index[row, first : end + 1] = step
        first = end + 1
    advantages = torch_credit.advantages(
      rewards, counts, index, lengths, self._correct, self._samples,
      self._temperature,
    )  # fmt: skip
    batches = online.split(
      self._trainer,
      self._parts,
      prompt_ids=prompts,
      completion_ids=completions,
      completion_mask=mask,
      advantages=advantages,
      old_per_token_logps=old,
    )
    step = training.take_step(self._trainer, batches)
    return {
      "old_logp": old,
      "ref_logp": reference,
      "step_rewards": rewards,
      **step,
    }

  def _cut(self, tokens: list[int]) -> list[int]:
    """Last positions of the steps of a response."""
    last = len(tokens) - 1
    ends = [
      place
      for place, token in enumerate(tokens)
      if token in (self._ids["separator"], self._ids["eos"]) or place == last
    ]
    if len(ends) <= self._max_steps:
      return ends
    return [*ends[: self._max_steps - 1], last]

  def _logp(
    self,
    model: transformers.PreTrainedModel,
    prompts: torch.Tensor,
    completions: torch.Tensor,
    mask: torch.Tensor,
  ) -> torch.Tensor:
    """Log-probs [B, C] of responses, as the trainer reads them."""
    found, *_ = self._trainer._get_per_token_logps_and_entropies(
      model,
      torch.cat([prompts, completions], dim=1),
      torch.cat([torch.ones_like(prompts), mask], dim=1),
      completions.shape[1],
      batch_size=len(prompts) // self._parts,
    )
    return found

  def _labelled(
    self,
    prompts: list[list[int]],
    completions: list[list[int]],
    cuts: list[list[int]],
  ) -> torch.Tensor:
    """Rewards [B, S] of steps: how much more likely good is than bad."""
    texts, places = [], []
    bare = (self._ids["separator"], self._ids["eos"])
    for prompt, tokens, ends in zip(prompts, completions, cuts, strict=True):
      text, scored, first = list(prompt), [], 0
      for end in ends:
        content = tokens[first : end + 1]
        if content[-1] in bare:
          content = content[:-1]
        text += [*content, self._ids["score"]]
        scored.append(len(text) - 1)
        first = end + 1
      texts.append(text)
      places.append(scored)
    rewards = torch.zeros(len(texts), max(map(len, cuts)))
    rows = len(texts) // self._parts
    for first in range(0, len(texts), rows):
      part = texts[first : first + rows]
      width = max(map(len, part))
      padded = [
        text + [self._ids["pad"]] * (width - len(text)) for text in part
      ]
      kept = [[1] * len(text) + [0] * (width - len(text)) for text in part]
      with self._trainer.accelerator.autocast():
        logits = self._judge(
          torch.tensor(padded, device=self._device),
          attention_mask=torch.tensor(kept, device=self._device),
        ).logits.float()
      good, bad = logits.softmax(-1).flip(-1).unbind(-1)
      for row, scored in enumerate(places[first : first + rows]):
        found = (good - bad)[row, scored]
        rewards[first + row, : len(scored)] = found.cpu()
    return rewards


if __name__ == "__main__":
  exchange.serve(Iteration())
