"""The embedded world: chained additions and subtractions, with a checker."""
