"""What a compiled XLA program costs, read from its text."""
