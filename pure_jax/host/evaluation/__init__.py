"""Metrics of responses and of PRMs, with intervals, tables and reports."""
