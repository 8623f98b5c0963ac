"""Several processes as one run: cluster, watchdog, signals, global batches."""
