"""All faults, one table for each part of the library."""

from faults import evaluation, method, models, rollout, survival, training

FAULTS = (
  *method.FAULTS,
  *models.FAULTS,
  *rollout.FAULTS,
  *training.FAULTS,
  *evaluation.FAULTS,
  *survival.FAULTS,
)
