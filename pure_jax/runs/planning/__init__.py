"""The cost of a run on devices that are not here: compile, search, report."""
