"""Logs of a run: metrics, TensorBoard events, curves, progress, batches."""
