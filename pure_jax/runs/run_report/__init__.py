"""One page of HTML about a run: curves, alarms, samples with their credit."""
