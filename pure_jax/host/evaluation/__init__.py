"""Metrics of responses and of PRMs, their intervals, tables and reports."""
