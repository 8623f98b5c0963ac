"""Shared code of the experiment scripts: settings, tasks, runs and loops."""
