"""What a run needs at least, compared with the memory that there is."""
