"""The decoder in numpy and float64: written from the equations, in plain loops.

It shares no code with `pure_jax.models`, so that it can tell whether a device
computes the right thing and not only the same as another device. It reads the
texts of a batch one by one, without padding and without a cache.

Axes: T tokens, D width, N query heads, K key heads, H head dimension.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pure_jax.models.config import ModelConfig


def as_float64(params: Any) -> Any:
  """Converts a nested dict of weights."""
  if isinstance(params, dict):
    return {name: as_float64(weight) for name, weight in params.items()}
  return np.asarray(params, np.float64)


def read_hidden(params: Any, config: ModelConfig, text: np.ndarray) -> Any:
  """Reads one text.

  Args:
    params: weights in float64, as `pure_jax.models` names them, with biases
      of queries, keys and values.
    config: the architecture.
    text: [T] int, ids.

  Returns:
    [T, D] float64, hidden states after the final norm.
  """
  x = params["embedding"][text]
  for number in range(len(params["layers"]["query"])):
    layer = {name: stack[number] for name, stack in params["layers"].items()}
    x = x + _attend(config, layer, _norm(config, x, layer["attention_norm"]))
    normed = _norm(config, x, layer["mlp_norm"])
    gate = normed @ layer["gate"]
    x = (
      x + (gate / (1 + np.exp(-gate)) * (normed @ layer["up"])) @ layer["down"]
    )
  return _norm(config, x, params["final_norm"])


def _norm(config, x, scale):
  """x / sqrt(mean(x^2) + epsilon) * scale."""
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale


def _attend(config, layer, x):
  """Causal attention, one head after the other: [T, D]."""
  out = np.zeros_like(x)
  for head in range(config.num_heads):
    shared = head * config.num_kv_heads // config.num_heads
    q = x @ layer["query"][:, head] + layer["query_bias"][head]
    k = x @ layer["key"][:, shared] + layer["key_bias"][shared]
    v = x @ layer["value"][:, shared] + layer["value_bias"][shared]
    scores = _rotate(config, q) @ _rotate(config, k).T
    scores /= np.sqrt(config.head_dim)
    scores[np.triu_indices(len(x), 1)] = -np.inf
    out += _softmax(scores) @ v @ layer["output"][head]
  return out


def _rotate(config, x):
  """Rotates entry i with entry i + H / 2 by position * theta^(-2 i / H)."""
  T, H = x.shape
  frequency = config.rope_theta ** -(np.arange(0, H, 2) / H)
  angle = np.arange(T)[:, None] * frequency
  first, second = x[:, : H // 2], x[:, H // 2 :]
  return np.concatenate(
    [
      first * np.cos(angle) - second * np.sin(angle),
      second * np.cos(angle) + first * np.sin(angle),
    ],
    axis=1,
  )


def _softmax(scores):
  """Over the last axis."""
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def read_logits(
  params: Any, config: ModelConfig, text: np.ndarray, banned: Any
) -> np.ndarray:
  """Computes the logits [T, V] of the next token; banned ids have -inf."""
  logits = read_hidden(params, config, text) @ params["head"]
  logits[:, list(banned)] = -np.inf
  return logits


def texts_of(batch: Any) -> Iterator[tuple[np.ndarray, int]]:
  """Lists each text of a rollout without padding, and its prompt's length."""
  for prompt, prompt_mask, tokens, mask in zip(
    batch.prompt_tokens,
    batch.prompt_mask,
    batch.tokens,
    batch.completion_mask,
    strict=True,
  ):
    prompt = np.asarray(prompt)[np.asarray(prompt_mask)]
    tokens = np.asarray(tokens)[np.asarray(mask)]
    yield np.concatenate([prompt, tokens]), len(prompt)


def read_logp(
  params: Any, config: ModelConfig, batch: Any, banned: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Computes log-probs and entropies of the completions of a rollout.

  Args:
    params: weights in float64.
    config: the architecture.
    batch: a `Rollout` of B responses.
    banned: ids without probability.

  Returns:
    (log-probs, entropies), each [B, C] float64 nats, 0 where masked.
  """
  logp, entropy = np.zeros((2, *np.shape(batch.tokens)))
  for row, (text, start) in enumerate(texts_of(batch)):
    logits = read_logits(params, config, text[:-1], banned)[start - 1 :]
    p = _softmax(logits)
    size = len(logits)
    logp[row, :size] = np.log(p[np.arange(size), text[start:]])
    entropy[row, :size] = -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)
  return logp, entropy


def read_rewards(params: Any, config: ModelConfig, inputs: Any) -> np.ndarray:
  """Computes step rewards, 2 p(good) - 1, of a PRM.

  Args:
    params: weights of the PRM in float64.
    config: its architecture.
    inputs: `PRMInputs` of B responses, padded on either side.

  Returns:
    [B, S] float64, 0 where there is no score.
  """
  rewards = np.zeros(np.shape(inputs.score_mask))
  for row, mask in enumerate(np.asarray(inputs.mask)):
    hidden = read_hidden(params, config, np.asarray(inputs.tokens)[row][mask])
    logits = hidden @ params["score"]["kernel"] + params["score"]["bias"]
    place = np.cumsum(mask) - 1
    for step in np.flatnonzero(np.asarray(inputs.score_mask)[row]):
      bad, good = logits[place[inputs.score_position[row, step]]]
      rewards[row, step] = np.tanh((good - bad) / 2)
  return rewards


def sample(
  params: Any,
  config: ModelConfig,
  prompt: np.ndarray,
  noise: np.ndarray,
  banned: Any,
  stop_id: int,
) -> tuple[np.ndarray, float]:
  """Samples one response with given noise; noise of zeros is greedy.

  Args:
    params: weights in float64.
    config: the architecture.
    prompt: [T] int, ids.
    noise: [C, V] float, added to the logits of each token.
    banned: ids without probability.
    stop_id: the id that ends the response and is part of it.

  Returns:
    (ids of the response; the least distance by which a token won).
  """
  text, closest = list(prompt), np.inf
  for row in noise:
    scores = read_logits(params, config, np.array(text), banned)[-1] + row
    second, first = np.argsort(scores)[-2:]
    closest = min(closest, scores[first] - scores[second])
    text.append(int(first))
    if first == stop_id:
      break
  return np.array(text[len(prompt) :]), float(closest)
