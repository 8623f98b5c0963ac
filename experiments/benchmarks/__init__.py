"""What `benchmark.py` measures: cases, suites, peers, bounds and the report."""
