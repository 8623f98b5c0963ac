"""Grades answers: extraction, equivalence, worker processes."""
