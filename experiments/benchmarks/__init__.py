"""Modules of `benchmark.py`: cases, suites, baselines, bounds and results."""
