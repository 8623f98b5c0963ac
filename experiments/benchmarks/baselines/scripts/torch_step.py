"""A plain training step in torch: the clipped loss on given advantages.

It is what a user would write with transformers' model, torch's AdamW and
autocast. Responses, advantages and old log-probs are given. The environment
needs the packages of `transformers.txt`.
"""

import time
from typing import Any

import exchange
import torch
import transformers


class Step:
  """Takes steps of a policy on one batch, in micro-batches."""

  def load(self, policy: str, dtype: str, device: str) -> dict[str, Any]:
    """Reads a folder that transformers can load; weights are float32.

    Args:
      policy: the folder.
      dtype: of products.
      device: torch's name of the device.

    Returns:
      The ``versions`` of the packages.
    """
    self._dtype = getattr(torch, dtype)
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      policy, dtype=torch.float32, local_files_only=True
    ).to(device)
    self._model.train()
    return exchange.versions("torch", "transformers")

  def prepare(
    self,
    batch: dict[str, list[list[float]]],
    micro_batches: int,
    clip: float,
    remat: bool,
    optimizer: dict[str, float],
  ) -> dict[str, Any]:
    """Takes a batch without padding, and makes the optimizer.

    Args:
      batch: ``prompts`` [B, L] and ``completions`` [B, C], ids; ``advantages``
        and ``old_logp`` [B, C], the latter in nats.
      micro_batches: a divisor of B.
      clip: the ratio is clipped to 1 - clip .. 1 + clip.
      remat: whether layers are computed again for the backward pass.
      optimizer: fields of our `OptimConfig`.

    Returns:
      Nothing.
    """
    device, model = self._model.device, self._model
    if remat:
      model.gradient_checkpointing_enable()
    names = ("prompts", "completions", "advantages", "old_logp")
    arrays = [torch.tensor(batch[name], device=device) for name in names]
    chunks = [array.chunk(micro_batches) for array in arrays]
    self._batches = list(zip(*chunks, strict=True))
    self._tokens, self._clip = arrays[1].numel(), clip
    self._max_norm = optimizer["max_grad_norm"]
    self._optimizer = torch.optim.AdamW(
      model.parameters(),
      lr=optimizer["learning_rate"],
      betas=(optimizer["beta1"], optimizer["beta2"]),
      weight_decay=optimizer["weight_decay"],
      fused=device.type == "cuda",
    )
    return {}

  def run(self) -> dict[str, Any]:
    """Takes one step; returns the seconds."""
    start, total = time.perf_counter(), 0.0
    for batch in self._batches:
      loss = self._loss(*batch)
      loss.backward()
      total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(
      self._model.parameters(), self._max_norm
    )
    self._optimizer.step()
    self._optimizer.zero_grad()
    # The norm comes from the host: the device has ended its backward passes.
    self._answer = {"loss": total, "grad_norm": norm.item()}
    if self._model.device.type == "cuda":
      torch.cuda.synchronize()
    return exchange.timed(start)

  def _loss(
    self,
    prompts: torch.Tensor,
    completions: torch.Tensor,
    advantages: torch.Tensor,
    old_logp: torch.Tensor,
  ) -> torch.Tensor:
    """The micro-batch's share of the mean over all tokens."""
    with torch.autocast(
      self._model.device.type, self._dtype, self._dtype != torch.float32
    ):
      # The last token predicts none.
      logits = self._model(
        torch.cat([prompts, completions], dim=1),
        use_cache=False,
        logits_to_keep=completions.shape[1] + 1,
      ).logits[:, :-1]
    logp = torch.log_softmax(logits.float(), dim=-1)
    logp = logp.gather(-1, completions[..., None])[..., 0]
    ratio = torch.exp(logp - old_logp)
    clipped = ratio.clamp(1 - self._clip, 1 + self._clip)
    gains = torch.minimum(ratio * advantages, clipped * advantages)
    return -gains.sum() / self._tokens

  def answer(self) -> dict[str, Any]:
    """Returns the last loss and the norm of its gradient before clipping."""
    return self._answer


if __name__ == "__main__":
  exchange.serve(Step())
