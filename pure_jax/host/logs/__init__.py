"""What a run logs: metrics, TensorBoard events, progress bars, curves."""
