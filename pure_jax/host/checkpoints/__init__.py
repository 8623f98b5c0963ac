"""What a run saves: orbax checkpoints, their records, integrity and weights."""
