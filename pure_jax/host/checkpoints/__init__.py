"""Checkpoints of a run: saved by Orbax, with our own record and checksums."""
