"""Code that the evaluation scripts share.

Of a policy (`evaluate.py`):

  requests            one request per response, from the benchmarks
  generation          generates, scores and grades the responses by batch

Of a PRM (`evaluate_prm.py`):

  loaded_prm          the PRM, from a folder or a training run
  labelled_solutions  encodes and batches solutions; training uses it too
  score_file          the file of step rewards
  prm_tables          from step rewards to tables
"""
