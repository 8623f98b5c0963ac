"""Lower bounds of the memory of a run, compared with what is available."""
