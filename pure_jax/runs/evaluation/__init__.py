"""Code that the evaluation scripts share.

`evaluate.py` uses `requests` and `generation`. `evaluate_prm.py` uses
`loaded_prm`, `labelled_solutions` (as the training of a PRM does), `score_file`
and `prm_tables`.
"""
