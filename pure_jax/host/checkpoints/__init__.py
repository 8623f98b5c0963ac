"""Checkpoints of a run: saved by Orbax, with a record and checksums of ours."""
