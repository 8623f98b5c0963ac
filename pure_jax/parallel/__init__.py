"""Meshes and shardings: where each array lives."""
