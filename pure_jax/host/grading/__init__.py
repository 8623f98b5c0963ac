"""Whether an answer is right: extraction, equivalence, worker processes."""
