"""Metrics of policies and of PRMs, with intervals, tables and reports.

answer_metrics   pass@k, maj@k, best-of-k, weighted vote
prm_metrics      ProcessBench, single steps, calibration, best-of-n of a PRM
response_scores  one score for a response from its step rewards
rollout_metrics  a training batch: accuracy, process reward, repetition
repetition       how much a text repeats itself
intervals        means over problems, bootstrap intervals
tables           from graded responses to tables
report           tables as Markdown, JSON and a picture
response_file    the file of graded responses
record_file      an append-only file of records
"""
