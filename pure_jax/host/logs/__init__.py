"""Logs of a run: metrics, TensorBoard events, curves, batches; and all that
scripts print, with control characters made visible (`console`, `visible`).
"""
