"""Reinforcement learning: compiled functions, weights, grading and logs."""
