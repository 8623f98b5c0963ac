"""What a run logs: metrics, TensorBoard events, curves, progress, batches."""
