"""Min-form credit assignment for process rewards, in JAX.

The method consists of pure functions over arrays, for any training loop::

  from pure_jax import credit, losses

The top-level modules contain only the method. Models, sampling, sharding and
training are in `pure_jax.models`, `pure_jax.rollout`, `pure_jax.parallel` and
`pure_jax.training`. Code that handles strings, files and processes is in
`pure_jax.host`. Importing `pure_jax` starts no jax backend.
"""

from pure_jax import (
  advantages,
  credit,
  credit_metrics,
  estimators,
  importance,
  losses,
  masked,
  ratios,
  settings,
  steps,
  types,
)

__version__ = "0.1.0"

__all__ = [
  "__version__",
  "advantages",
  "credit",
  "credit_metrics",
  "estimators",
  "importance",
  "losses",
  "masked",
  "ratios",
  "settings",
  "steps",
  "types",
]
