"""Optimizers and the jit boundary: generate, score, update."""
