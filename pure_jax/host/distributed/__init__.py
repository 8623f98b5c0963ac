"""Several processes as one program: cluster, watchdog, signals, shared rows."""
