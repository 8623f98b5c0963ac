"""The embedded world: chained additions and subtractions, with a checker.

  arithmetic    its problems, and the imperfect teachers who demonstrate them
  checker       labels the steps of a response, grades its answer
  prm_examples  responses written to train the PRM on
  dataset       its data set and its tokenizer, made on first use

Everything is deterministic: example i depends only on (seed, split, i).
"""
