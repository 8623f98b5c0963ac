"""What a run is about: the embedded world, or files of the user."""
