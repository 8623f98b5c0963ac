"""The baseline "trl" in a whole iteration of RL.

transformers' `generate`, log-probs of a policy and a reference, rewards of a
PRM, the advantages of `torch_advantages.py`, and a step of TRL's GRPOTrainer
with them. The environment is that of `trl.txt`.
"""

import dataclasses
import time
from typing import Any

import exchange
import torch
import torch_advantages
import transformers
import transformers_sampler
import trl_trainers
import trl_training
from trl.trainer.utils import add_fused_lm_head


@dataclasses.dataclass(frozen=True)
class Credit:
  """How responses are cut into steps and get advantages.

  Attributes:
    correct: [B] 1 for a correct answer, else 0.
    temperature: temperature of softmin.
    step_ids: ids by name: "eos" and "separator" end a step, and the PRM scores
      a step at "score".
    max_steps: steps of a response; later ones are merged into the last.
  """

  correct: torch.Tensor
  temperature: float
  step_ids: dict[str, int]
  max_steps: int

  def step_ends(self, tokens: list[int]) -> list[int]:
    """Returns the last position of each step of a response."""
    last = len(tokens) - 1
    separators = self.step_ids["separator"], self.step_ids["eos"]
    ends = [
      position
      for position, token in enumerate(tokens)
      if token in separators or position == last
    ]
    if len(ends) <= self.max_steps:
      return ends
    return [*ends[: self.max_steps - 1], last]

  def insert_score_tokens(
    self, prompt: list[int], tokens: list[int], ends: list[int]
  ) -> tuple[list[int], list[int]]:
    """Returns the text that the PRM reads, and where its score tokens are."""
    separators = self.step_ids["separator"], self.step_ids["eos"]
    text, positions, first = list(prompt), [], 0
    for end in ends:
      content = tokens[first : end + 1]
      if content[-1] in separators:
        content = content[:-1]
      text += [*content, self.step_ids["score"]]
      positions.append(len(text) - 1)
      first = end + 1
    return text, positions

  def advantages(
    self,
    step_rewards: torch.Tensor,
    step_ends: list[list[int]],
    lengths: torch.Tensor,
    shape: tuple[int, int],
    samples: int,
  ) -> torch.Tensor:
    """Returns the advantages of all tokens, of the given shape [B, C]."""
    step_counts = torch.tensor([len(ends) for ends in step_ends])
    step_index = torch.zeros(shape, dtype=torch.long)
    for row, ends in enumerate(step_ends):
      first = 0
      for step, end in enumerate(ends):
        step_index[row, first : end + 1] = step
        first = end + 1
    return torch_advantages.advantages(
      step_rewards,
      step_counts,
      step_index,
      lengths,
      self.correct,
      samples,
      self.temperature,
    )


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
    return exchange.info("torch", "transformers", "trl")

  def prepare(
    self,
    trainer: dict[str, Any],
    tokens: list[list[int]],
    lengths: list[int],
    correct: list[float],
    credit_temperature: float,
    step_ids: dict[str, int],
    max_steps: int,
  ) -> dict[str, Any]:
    """Makes the trainer and the generation of an iteration.

    Args:
      trainer: fields of `TrainerConfig`.
      tokens: [P, L] prompts without padding.
      lengths: [B] tokens after which each of the P * samples rows ends.
      correct: [B] outcomes, 1 or 0.
      credit_temperature: temperature of softmin.
      step_ids: see `Credit`.
      max_steps: see `Credit`.
    """
    self._config = config = trl_training.TrainerConfig(**trainer)
    self._credit = Credit(
      torch.tensor(correct), credit_temperature, step_ids, max_steps
    )
    self._prompts = torch.tensor(tokens, device=self._device)
    self._lengths = torch.tensor(lengths)
    self._trainer = trl_trainers.make_trainer(config, self._policy, self._dtype)
    request = exchange.GenerationRequest(
      tokens,
      config.samples,
      config.new_tokens,
      config.pad_id,
      lengths,
      greedy=False,
    )
    self._generate_arguments = transformers_sampler.generate_arguments(
      self._prompts, request
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
    step_ends = [
      self._credit.step_ends(row[:length])
      for row, length in zip(
        completions.tolist(), lengths.tolist(), strict=True
      )
    ]
    with torch.no_grad():
      old, reference = (
        self._logp(model, prompts, completions, mask)
        for model in (self._policy, self._reference)
      )
      rewards = self._step_rewards(
        prompts.tolist(), completions.tolist(), step_ends
      )
    advantages = self._credit.advantages(
      rewards, step_ends, lengths, completions.shape, self._config.samples
    )
    batches = trl_trainers.split(
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
      **trl_training.take_step(self._trainer, batches),
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
    self,
    prompts: list[list[int]],
    completions: list[list[int]],
    step_ends: list[list[int]],
  ) -> torch.Tensor:
    """Rewards [B, S] of steps: the PRM's probability of good less of bad."""
    scored = [
      self._credit.insert_score_tokens(*row)
      for row in zip(prompts, completions, step_ends, strict=True)
    ]
    rewards = torch.zeros(len(scored), max(map(len, step_ends)))
    rows = len(scored) // self._config.micro_batches
    for first in range(0, len(scored), rows):
      texts = [text for text, _ in scored[first : first + rows]]
      good, bad = self._prm_probabilities(texts)
      for row, (_, positions) in enumerate(scored[first : first + rows]):
        values = (good - bad)[row, positions]
        rewards[first + row, : len(positions)] = values.cpu()
    return rewards

  def _prm_probabilities(
    self, texts: list[list[int]]
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """The PRM's probabilities of good and of bad at each token of texts."""
    width = max(map(len, texts))
    tokens, mask = [], []
    for text in texts:
      missing = width - len(text)
      tokens.append(text + [self._config.pad_id] * missing)
      mask.append([1] * len(text) + [0] * missing)
    with self._trainer.accelerator.autocast():
      logits = self._prm(
        torch.tensor(tokens, device=self._device),
        attention_mask=torch.tensor(mask, device=self._device),
      ).logits.float()
    bad, good = logits.softmax(-1).unbind(-1)
    return good, bad


if __name__ == "__main__":
  exchange.serve(Iteration())
