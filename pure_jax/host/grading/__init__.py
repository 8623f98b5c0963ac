"""Grades the answers of responses.

verify       extracts the answer of a response and compares it
equivalence  tells whether two answers are equal
answers      reads and compares them
sandbox      forbids what a comparison need not do
"""
