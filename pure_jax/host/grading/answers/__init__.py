"""Reads and compares answers.

spelling    rewrites a text in a common spelling
words       which parts of a text are words
units       units behind numbers
tokens      tokens and names of a formula
algebra     operations that keep huge numbers unevaluated
formula     reads a formula as a sympy expression
structure   the records of a structure
reading     reads the structure of an answer
numeric     compares expressions by evaluating them
quantities  compares values with units
sets        compares sets of real numbers
comparison  compares two structures
"""
