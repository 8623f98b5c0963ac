"""Updates of the PRM on rollouts, while the policy trains on its scores.

A policy finds steps that a fixed PRM scores wrongly, and the PRM has never been
trained on them. An online PRM is: every few iterations it is updated on a
rollout that it has just scored. Its labels come from a checker of steps, or
from the verdicts on answers (`label_worst_steps`).

The legend of axes is in `pure_jax.types`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pure_jax import losses
from pure_jax.models import prm
from pure_jax.parallel import sharding
from pure_jax.training.micro_batches import (
  accumulate_gradients,
  count_micro_batches,
)
from pure_jax.training.score import (
  prm_batch,
  prm_forward,
  prm_inputs,
)
from pure_jax.training.step_spec import StepSpec
from pure_jax.training.train import (
  Metrics,
  TrainState,
  apply_gradients,
  state_shardings,
)
from pure_jax.types import MetricGroups


def label_worst_steps(
  step_rewards: Array, step_mask: Array, correct: Array, known: Array
) -> tuple[Array, Array]:
  """Labels the worst step of each response with the verdict on its answer.

  Min-form credit values a response by its smallest step reward, so this reward
  should say whether the response is right. The cross-entropy of these labels is
  that of the minimum, and its gradient reaches the worst step alone: a wrong
  response has a bad step, and no verdict says which of the others are good.

  >>> import jax.numpy as jnp
  >>> rewards = jnp.array([[0.8, -0.6, 0.4], [0.9, 0.5, 0.0]])
  >>> mask = jnp.array([[True, True, True], [True, True, False]])
  >>> verdicts = jnp.array([True, False]), jnp.array([True, True])
  >>> labels, labelled = label_worst_steps(rewards, mask, *verdicts)
  >>> labels.tolist(), labelled.astype(int).tolist()
  ([[0, 1, 0], [0, 0, 0]], [[0, 1, 0], [0, 1, 0]])

  Args:
    step_rewards: [B, S] float, scores of the PRM that is updated.
    step_mask: [B, S] bool, True where a step exists.
    correct: [B] bool, whether the answer is right.
    known: [B] bool, True where the verdict may be used.

  Returns:
    (labels [B, S] int32, 1 for good; their mask [B, S] bool). A response
    without a step has no label.
  """
  rewards = jnp.where(step_mask, step_rewards, jnp.inf)
  worst = jnp.argmin(rewards, axis=1)[:, None]
  labelled = (jnp.arange(rewards.shape[1])[None] == worst) & step_mask
  labelled &= known[:, None].astype(bool)
  labels = labelled & correct[:, None].astype(bool)
  return labels.astype(jnp.int32), labelled


def make_prm_update(
  spec: StepSpec, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Makes one update of all weights of the PRM, on a rollout.

  The loss is that of the PRM's training, the cross-entropy of step labels
  (`losses.prm_loss`), averaged over the labelled steps of the whole rollout.

  Args:
    spec: the step's specification, with a PRM. The state is in the layout of
      training; its micro-batches are those of the policy.
    optimizer: the optax transformation.

  Returns:
    A jitted function (state, rollout, PRM texts, labels [B, S], label_mask
    [B, S]) -> (state, metrics). The texts are as for `score.make_score`; the
    state given is donated. The metrics are ``prm_update_loss``, in nats per
    step, ``prm_update_accuracy`` before the update, ``prm_update_steps``, the
    number of labelled steps, ``prm_grad_norm`` and ``prm_skipped_updates``.
    Without a labelled step nothing is updated, and loss and accuracy are 0.
  """
  layout, model = spec.layouts.training, spec.prm_model

  def update(state, rollout, prm_texts, labels, label_mask):
    batch = prm_batch(spec, rollout, prm_texts)
    exists = prm_inputs(spec.scoring, spec.table, batch).score_mask
    count = jnp.sum(label_mask & exists).astype(jnp.float32)

    def objective(params, micro_batch):
      batch, labels, label_mask = micro_batch
      logits, inputs = prm_forward(
        params, model, spec.scoring, spec.table, batch, layout.act_sharding
      )
      loss, metrics = losses.prm_loss(logits, inputs, labels, label_mask)
      share = metrics["labelled_steps"] / jnp.maximum(count, 1)
      return loss * share, MetricGroups(
        {
          "prm_update_loss": metrics["prm_loss"] * share,
          "prm_update_accuracy": metrics["accuracy"] * share,
        }
      )

    micro_batches = count_micro_batches(
      len(rollout.tokens), spec.micro_batch_rows, layout.row_shards
    )
    (loss, metrics), grads = accumulate_gradients(
      objective, state.params, (batch, labels, label_mask), micro_batches
    )
    # Without labels the moments and the decay of weights would still move it.
    state, applied = jax.lax.cond(
      count > 0,
      lambda: apply_gradients(state, grads, loss, optimizer),
      lambda: (state, _nothing_applied(state, grads)),
    )
    return state, metrics.to_dict() | {
      "prm_update_steps": count,
      "prm_grad_norm": applied["grad_norm"],
      "prm_skipped_updates": applied["skipped_updates"],
    }

  state = state_shardings(prm.declare_prm(model), optimizer, layout)
  rows = sharding.batch_sharding(layout)
  return jax.jit(
    update,
    in_shardings=(state, rows, rows, rows, rows),
    out_shardings=(state, sharding.replicated(layout)),
    donate_argnums=0,
  )


def _nothing_applied(state, grads):
  """The metrics of `apply_gradients` of an update that is left out."""
  return {
    "grad_norm": optax.tree.norm(grads),
    "skipped_updates": state.skipped,
    "skipped_in_a_row": state.skipped_in_a_row,
  }
