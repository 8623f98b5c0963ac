"""Runs functions in processes of their own, within limits.

pool         time and memory are limited: comparisons of answers, chat
             templates, Parquet files
worker       the script of such a process
child_guard  ends child processes with their parent
"""
