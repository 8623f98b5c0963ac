"""The baseline "trl" in a whole iteration of RL.

transformers' `generate`, log-probs of a policy and a reference, rewards of a
PRM, the advantages of `torch_advantages.py`, and a step of TRL's GRPOTrainer
with them. The environment is that of `trl.txt`.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import exchange
import torch
import torch_advantages
import transformers
import transformers_sampler
import trl_step
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.utils import add_fused_lm_head


@dataclasses.dataclass(frozen=True)
class StepRules:
  """How responses are cut into steps, and how steps get credit.

  Attributes:
    temperature: temperature of softmin.
    separator_id: ends a step.
    eos_id: ends a step.
    score_id: the PRM scores a step here.
    max_steps: steps of a response; later ones are merged into the last.
  """

  temperature: float
  separator_id: int
  eos_id: int
  score_id: int
  max_steps: int

  def cut(
    self, prompt: list[int], tokens: list[int]
  ) -> tuple[list[int], list[int], list[int]]:
    """Cuts a response into steps.

    The result is the last position of each step, the text that the PRM reads,
    and the positions of its score tokens.
    """
    last, separators = len(tokens) - 1, (self.separator_id, self.eos_id)
    ends = [
      position
      for position, token in enumerate(tokens)
      if token in separators or position == last
    ]
    if len(ends) > self.max_steps:
      ends = [*ends[: self.max_steps - 1], last]
    text, positions, first = list(prompt), [], 0
    for end in ends:
      content = tokens[first : end + 1]
      if content[-1] in separators:
        content = content[:-1]
      text += [*content, self.score_id]
      positions.append(len(text) - 1)
      first = end + 1
    return ends, text, positions


class Iteration:
  """Three models, a trainer and the prompts of an iteration."""

  def load(self, policy: str, prm: str, dtype: str) -> dict[str, Any]:
    """Reads two folders that transformers can load."""
    self._dtype = dtype
    self._device = "cuda" if torch.cuda.is_available() else "cpu"
    causal = transformers.AutoModelForCausalLM
    classifier = transformers.AutoModelForTokenClassification
    self._policy, self._reference, self._prm = (
      kind.from_pretrained(
        folder, dtype=getattr(torch, stored), local_files_only=True
      ).to(self._device)
      for kind, folder, stored in (
        (causal, policy, "float32"),
        (causal, policy, dtype),
        (classifier, prm, dtype),
      )
    )
    # GRPOTrainer does the same with its own reference.
    add_fused_lm_head(self._reference)
    self._policy.generation_config.eos_token_id = None
    return exchange.versions("torch", "transformers", "trl")

  def prepare(
    self,
    trainer: dict[str, Any],
    rules: dict[str, Any],
    tokens: list[list[int]],
    lengths: list[int],
    correct: list[float],
  ) -> dict[str, Any]:
    """Takes fields of `TrainerConfig` and `StepRules`, and a batch.

    Prompts `tokens` [P, L] have no padding. `lengths` [B] are the tokens after
    which each of the P * samples rows ends, `correct` [B] outcomes, 1 or 0.
    """
    self._config = config = trl_step.TrainerConfig(**trainer)
    self._rules = StepRules(**rules)
    self._correct, self._lengths = torch.tensor(correct), torch.tensor(lengths)
    self._prompts = torch.tensor(tokens, device=self._device)
    self._trainer = trl_step.make_grpo_trainer(
      config, self._policy, self._dtype
    )
    self._generate_arguments = transformers_sampler.generate_arguments(
      self._prompts, config.samples, config.new_tokens, config.pad_id, lengths
    )
    return {}

  def run(self) -> dict[str, Any]:
    """Iterates once; returns the seconds and the number of new tokens."""
    torch.manual_seed(0)
    start = time.perf_counter()
    self._policy.eval()
    with torch.inference_mode(), self._trainer.accelerator.autocast():
      tokens = self._policy.generate(self._prompts, **self._generate_arguments)
    self._policy.train()
    # A backward pass cannot keep a tensor of inference mode.
    completions = tokens[:, self._prompts.shape[1] :].clone()
    self._learn(completions, self._lengths)
    count = int((completions != self._config.pad_id).sum())
    return {**exchange.timed(start), "tokens": count}

  def learn_from(self, completions: list[list[int]]) -> dict[str, Any]:
    """Returns scores, loss and gradient norm of responses without padding."""
    rows = torch.tensor(completions, device=self._device)
    lengths = torch.full((len(rows),), rows.shape[1])
    return {
      name: x.tolist() if isinstance(x, torch.Tensor) else x
      for name, x in self._learn(rows, lengths).items()
    }

  def _learn(
    self, completions: torch.Tensor, lengths: torch.Tensor
  ) -> dict[str, Any]:
    """Scores, advantages and the step of responses [B, C]."""
    prompts = self._prompts.repeat_interleave(self._config.samples, dim=0)
    columns = torch.arange(completions.shape[1])
    mask = (columns < lengths[:, None]).long().to(self._device)
    rows = zip(
      prompts.tolist(), completions.tolist(), lengths.tolist(), strict=True
    )
    step_ends, texts, positions = zip(
      *(self._rules.cut(prompt, row[:length]) for prompt, row, length in rows),
      strict=True,
    )
    with torch.no_grad():
      old, reference = (
        self._logp(model, prompts, completions, mask)
        for model in (self._policy, self._reference)
      )
      rewards = self._step_rewards(texts, positions)
    advantages = torch_advantages.advantages(
      rewards,
      step_ends,
      self._correct,
      self._config.samples,
      self._rules.temperature,
      completions.shape[1],
    )
    batches = trl_step.split(
      self._trainer,
      self._config.micro_batches,
      prompt_ids=prompts,
      completion_ids=completions,
      completion_mask=mask,
      advantages=advantages,
      old_per_token_logps=old,
    )
    return {
      "old_logp": old,
      "ref_logp": reference,
      "step_rewards": rewards,
      **trl_step.take_step(self._trainer, batches),
    }

  def _logp(
    self,
    model: transformers.PreTrainedModel,
    prompts: torch.Tensor,
    completions: torch.Tensor,
    mask: torch.Tensor,
  ) -> torch.Tensor:
    """Log-probs [B, C] of responses, by the trainer's own function."""
    logp, *_ = self._trainer._get_per_token_logps_and_entropies(
      model,
      torch.cat([prompts, completions], dim=1),
      torch.cat([torch.ones_like(prompts), mask], dim=1),
      completions.shape[1],
      batch_size=len(prompts) // self._config.micro_batches,
    )
    return logp

  def _step_rewards(
    self, texts: Sequence[list[int]], positions: Sequence[list[int]]
  ) -> torch.Tensor:
    """Rewards [B, S] of steps: the PRM's probability of good less of bad."""
    rewards = torch.zeros(len(texts), max(map(len, positions)))
    rows = len(texts) // self._config.micro_batches
    for first in range(0, len(texts), rows):
      token_rewards = self._token_rewards(texts[first : first + rows])
      for row in range(rows):
        at = positions[first + row]
        rewards[first + row, : len(at)] = token_rewards[row, at].cpu()
    return rewards

  def _token_rewards(self, texts: Sequence[list[int]]) -> torch.Tensor:
    """Rewards [B, T] at each token of texts."""
    tokens = pad_sequence(
      [torch.tensor(text) for text in texts],
      batch_first=True,
      padding_value=self._config.pad_id,
    )
    mask = pad_sequence(
      [torch.ones(len(text), dtype=torch.long) for text in texts],
      batch_first=True,
    )
    with self._trainer.accelerator.autocast():
      logits = self._prm(
        tokens.to(self._device), attention_mask=mask.to(self._device)
      ).logits.float()
    bad, good = logits.softmax(-1).unbind(-1)
    return good - bad


if __name__ == "__main__":
  exchange.serve(Iteration())
