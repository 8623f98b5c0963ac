"""Memory and cost of a run on devices that need not be present."""
