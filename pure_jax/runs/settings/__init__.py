"""A run's settings: frozen dataclasses, and their conversion from a config."""
