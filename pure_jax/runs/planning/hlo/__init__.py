"""Costs of a compiled XLA program, read from its text."""
