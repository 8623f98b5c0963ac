"""All faults."""

from faults import (
  accelerator,
  evaluation,
  folders,
  method,
  models,
  rollout,
  runs,
  survival,
  texts,
  training,
)

FAULTS = (
  *method.FAULTS,
  *models.FAULTS,
  *rollout.FAULTS,
  *training.FAULTS,
  *evaluation.FAULTS,
  *runs.FAULTS,
  *survival.FAULTS,
  *folders.FAULTS,
  *texts.FAULTS,
  *accelerator.FAULTS,
)
