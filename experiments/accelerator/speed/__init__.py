"""Fast or slow: rows of programs of ours and of others, with their bounds."""
